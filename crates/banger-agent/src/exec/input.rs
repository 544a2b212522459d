//! What a client sends while its command runs: input, signals, new window sizes, or nothing more.
//!
//! The client's messages are always read, even when the command reads nothing and even when output
//! is stuck: only so is a hang-up noticed, and a signal not queued behind input. Credit bounds what
//! may wait here.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket};
use banger_api::exec::{ClientControl, ClientFrame, STDIN_WINDOW};
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
use tokio::sync::Notify;

use super::output::Hangup;
use super::spawn::Child;
use super::stdio::{End, Terminal};
use crate::reaper::Ended;

/// Credit is given in portions of this many bytes, or when nothing waits.
const CREDIT_PORTION: usize = 32 * 1024;

/// Stdin's credit on its way to the client.
#[derive(Debug, Default)]
pub struct Credit {
    bytes: AtomicU32,
    added: Notify,
}

impl Credit {
    fn add(&self, bytes: usize) {
        // At most the window is ever outstanding, which is far less than this can count.
        self.bytes.fetch_add(u32::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        self.added.notify_one();
    }

    /// Waits for credit to give.
    pub async fn take(&self) -> u32 {
        loop {
            match self.bytes.swap(0, Ordering::Relaxed) {
                0 => self.added.notified().await,
                bytes => return bytes,
            }
        }
    }
}

/// The command's standard input.
#[derive(Debug)]
pub struct Stdin {
    /// None once it is closed, by either side.
    end: Option<End>,
    terminal: bool,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    written: usize,
    no_more: bool,
}

/// What signals and window sizes act on.
#[derive(Debug)]
pub struct Control {
    pid: i32,
    ended: Ended,
    terminal: Option<Arc<Terminal>>,
}

/// Obeys the client until it hangs up or breaks the protocol. The command's input stays open: what breaks
/// off must not look like what has ended.
pub async fn pump(
    source: &mut SplitStream<WebSocket>,
    stdin: &mut Option<Stdin>,
    control: &Control,
    credit: &Credit,
) {
    loop {
        let obeyed = tokio::select! {
            message = source.next() => match message {
                Some(Ok(message)) => obey(&message, stdin.as_mut(), control, credit),
                None | Some(Err(_)) => Err(Hangup),
            },
            () = feed(stdin.as_mut(), credit) => Ok(()),
        };
        if obeyed == Err(Hangup) {
            return;
        }
    }
}

fn obey(
    message: &Message,
    stdin: Option<&mut Stdin>,
    control: &Control,
    credit: &Credit,
) -> Result<(), Hangup> {
    let bytes = match message {
        Message::Binary(bytes) => bytes,
        Message::Ping(_) | Message::Pong(_) => return Ok(()),
        Message::Text(_) | Message::Close(_) => return Err(Hangup),
    };
    match ClientFrame::decode(bytes).map_err(|_| Hangup)? {
        ClientFrame::Stdin(_) => match stdin {
            Some(stdin) => return stdin.push(bytes.slice(1..), credit),
            None => credit.add(bytes.len() - 1),
        },
        ClientFrame::Control(ClientControl::StdinEof) => {
            if let Some(stdin) = stdin {
                stdin.no_more = true;
                stdin.close_if_done();
            }
        }
        ClientFrame::Control(ClientControl::Resize(size)) => {
            if let Some(terminal) = &control.terminal {
                // A size that the kernel does not take leaves the old one.
                let _ = terminal.resize(size);
            }
        }
        ClientFrame::Control(ClientControl::Signal(number)) => control.signal(number)?,
    }
    Ok(())
}

/// Writes some of what waits, or waits for ever if nothing does.
async fn feed(stdin: Option<&mut Stdin>, credit: &Credit) {
    match stdin {
        Some(stdin) if !stdin.waiting.is_empty() => stdin.write(credit).await,
        _ => std::future::pending().await,
    }
}

impl Stdin {
    /// A pipe.
    pub fn pipe(end: End) -> Self {
        let waiting = VecDeque::new();
        let (waiting_bytes, written) = (0, 0);
        Self { end: Some(end), terminal: false, waiting, waiting_bytes, written, no_more: false }
    }

    /// A terminal.
    pub fn terminal(end: End) -> Self {
        Self { terminal: true, ..Self::pipe(end) }
    }

    fn push(&mut self, bytes: Bytes, credit: &Credit) -> Result<(), Hangup> {
        if self.end.is_none() {
            // Nobody reads it; the client goes on as if somebody did.
            credit.add(bytes.len());
            return Ok(());
        }
        if self.no_more || self.waiting_bytes + bytes.len() > STDIN_WINDOW {
            return Err(Hangup);
        }
        if !bytes.is_empty() {
            self.waiting_bytes += bytes.len();
            self.waiting.push_back(bytes);
        }
        Ok(())
    }

    /// Writes once, when there is room. Loses nothing when it is dropped while it waits.
    async fn write(&mut self, credit: &Credit) {
        let (Some(end), Some(first)) = (&self.end, self.waiting.front_mut()) else { return };
        let result = match end.writable().await {
            Ok(mut ready) => ready.try_io(|end| Ok(nix::unistd::write(end.get_ref(), first)?)),
            Err(error) => Ok(Err(error)),
        };
        match result {
            Ok(Ok(count)) => {
                let _ = first.split_to(count.min(first.len()));
                if first.is_empty() {
                    self.waiting.pop_front();
                }
                self.waiting_bytes -= count;
                self.written += count;
                self.give_credit(credit);
                self.close_if_done();
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(_)) => self.close(credit),
            Err(_would_block) => {}
        }
    }

    fn give_credit(&mut self, credit: &Credit) {
        if self.written >= CREDIT_PORTION || self.waiting.is_empty() {
            credit.add(std::mem::take(&mut self.written));
        }
    }

    /// The command has closed its end: what waits is dropped.
    fn close(&mut self, credit: &Credit) {
        self.end = None;
        self.waiting.clear();
        self.written += std::mem::take(&mut self.waiting_bytes);
        self.give_credit(credit);
    }

    /// Passes the client's end of input on once everything before it is written.
    fn close_if_done(&mut self) {
        if !self.no_more || !self.waiting.is_empty() {
            return;
        }
        if let Some(end) = self.end.take()
            && self.terminal
        {
            end_of_file(&end);
        }
    }
}

/// Types what ends the input of a terminal in line mode. In other modes there is no such thing.
fn end_of_file(master: &End) {
    let Ok(settings) = tcgetattr(master.get_ref()) else { return };
    if settings.local_flags.contains(LocalFlags::ICANON) {
        let key = settings.control_chars[SpecialCharacterIndices::VEOF as usize];
        let _ = nix::unistd::write(master.get_ref(), &[key]);
    }
}

impl Control {
    /// For a child and, if it has one, its terminal.
    pub fn new(child: &Child, terminal: Option<Arc<Terminal>>) -> Self {
        Self { pid: child.pid, ended: child.ended.clone(), terminal }
    }

    /// Signals the terminal's foreground process group, or the command's own.
    fn signal(&self, number: i32) -> Result<(), Hangup> {
        const LAST_SIGNAL: i32 = 64;
        if !(1..=LAST_SIGNAL).contains(&number) {
            return Err(Hangup);
        }
        // After its end the number may be another process's.
        if self.ended.borrow().is_none() {
            let foreground = self.terminal.as_ref().and_then(|it| it.foreground_group());
            let group = foreground.unwrap_or(self.pid);
            // SAFETY: a plain system call. `nix` has no names for real-time signals.
            unsafe { libc::kill(-group, number) };
        }
        Ok(())
    }
}
