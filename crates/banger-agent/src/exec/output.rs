//! What a command writes, on its way to the client.
//!
//! Nothing is read before there is room for it: one frame is read, sent, and only when the stream
//! has taken it comes the next. A slow client so slows the command, whose pipe fills.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use axum::extract::ws::{Message, WebSocket};
use banger_api::exec::{Channel, ExecEnd, MAX_PAYLOAD, ServerControl, ServerFrame};
use futures_util::SinkExt;
use futures_util::stream::SplitSink;

use super::input::Credit;
use super::stdio::End;
use crate::reaper::Ended;

/// Smallest buffer for one reading.
const MIN_READ: usize = 4096;
/// More than a terminal can hold between its two ends, flow control included.
const TERMINAL_CAPACITY: usize = 64 * 1024;

/// The client is gone, or says what it must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hangup;

/// One stream that a command writes to.
#[derive(Debug)]
pub struct Source {
    channel: Channel,
    end: End,
    open: bool,
    terminal: bool,
}

/// What a reading gave.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    /// A message for the client.
    Frame(Vec<u8>),
    /// Nothing now.
    Empty,
    /// Nothing ever again.
    End,
}

type Sink = SplitSink<WebSocket, Message>;

/// Sends a control frame.
pub async fn send(sink: &mut Sink, control: ServerControl) -> Result<(), Hangup> {
    send_frame(sink, ServerFrame::Control(control).encode()).await
}

async fn send_frame(sink: &mut Sink, frame: Vec<u8>) -> Result<(), Hangup> {
    sink.send(Message::Binary(frame.into())).await.map_err(|_| Hangup)
}

/// Carries output and stdin's credit until the command has ended and all it wrote is sent.
///
/// The end of the pipes is not waited for: background processes may hold them for ever.
pub async fn pump(
    sink: &mut Sink,
    sources: &mut [Source],
    credit: &Credit,
    mut ended: Ended,
) -> Result<ExecEnd, Hangup> {
    let end = loop {
        let (first, rest) = sources.split_at_mut(1);
        tokio::select! {
            Some(frame) = next(first) => send_frame(sink, frame).await?,
            Some(frame) = next(rest) => send_frame(sink, frame).await?,
            bytes = credit.take() => send(sink, ServerControl::StdinCredit(bytes)).await?,
            end = wait(&mut ended) => break end,
        }
    };
    for source in sources {
        source.drain(sink).await?;
    }
    Ok(end)
}

/// Waits until a command has ended.
pub async fn wait(ended: &mut Ended) -> ExecEnd {
    // The reaper outlives every command, so there is always an end to be had.
    let end = ended.wait_for(Option::is_some).await.ok().and_then(|end| *end);
    end.unwrap_or(ExecEnd::Signaled(libc::SIGKILL))
}

/// The next frame of a source, or nothing ever if it is closed or absent.
async fn next(source: &mut [Source]) -> Option<Vec<u8>> {
    match source {
        [source, ..] if source.open => source.next().await,
        _ => None,
    }
}

impl Source {
    /// A pipe.
    pub fn pipe(channel: Channel, end: End) -> Self {
        Self { channel, end, open: true, terminal: false }
    }

    /// A terminal, which is on the stdout channel.
    pub fn terminal(end: End) -> Self {
        Self { channel: Channel::Stdout, end, open: true, terminal: true }
    }

    /// Waits for bytes; None at the end. Loses nothing when it is dropped while it waits.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let Ok(mut ready) = self.end.readable().await else {
                self.open = false;
                return None;
            };
            match self.read(MAX_PAYLOAD) {
                Reading::Frame(frame) => return Some(frame),
                Reading::Empty => ready.clear_ready(),
                Reading::End => {
                    self.open = false;
                    return None;
                }
            }
        }
    }

    /// Sends what was written before now, and nothing that a background process adds meanwhile.
    async fn drain(&mut self, sink: &mut Sink) -> Result<(), Hangup> {
        let mut left = if self.terminal { TERMINAL_CAPACITY } else { self.unread() };
        while self.open && left > 0 {
            match self.read(left.min(MAX_PAYLOAD)) {
                Reading::Frame(frame) => {
                    left = left.saturating_sub(frame.len() - 1);
                    send_frame(sink, frame).await?;
                }
                Reading::Empty => break,
                Reading::End => self.open = false,
            }
        }
        Ok(())
    }

    /// Reads on and forgets, so that a background process that still writes is not killed by the
    /// closing of its pipe. A terminal just ends: that is what its closing means.
    pub fn discard(self) {
        if self.terminal || !self.open || matches!(self.read(1), Reading::End) {
            return;
        }
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok(mut ready) = self.end.readable().await {
                match ready.try_io(|end| read(end.get_ref(), &mut buffer)) {
                    Ok(Ok(0) | Err(_)) => return,
                    Ok(Ok(_)) => tokio::task::yield_now().await,
                    Err(_would_block) => {}
                }
            }
        });
    }

    /// Reads once without waiting, at most `limit` bytes.
    fn read(&self, limit: usize) -> Reading {
        let room = self.unread().clamp(MIN_READ, MAX_PAYLOAD).min(limit);
        let mut frame = vec![0; 1 + room];
        frame[0] = self.channel as u8;
        match read(self.end.get_ref(), &mut frame[1..]) {
            Ok(0) => Reading::End,
            Ok(count) => {
                frame.truncate(1 + count);
                Reading::Frame(frame)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Reading::Empty,
            Err(_) => Reading::End,
        }
    }

    /// How many bytes lie in it. A terminal's own queue may hold more.
    fn unread(&self) -> usize {
        let mut count: libc::c_int = 0;
        // SAFETY: the call writes one `int`.
        unsafe { libc::ioctl(self.end.as_raw_fd(), libc::FIONREAD, &raw mut count) };
        usize::try_from(count).unwrap_or(0)
    }
}

fn read(end: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match nix::unistd::read(end, buffer) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}
