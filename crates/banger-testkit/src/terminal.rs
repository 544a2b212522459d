//! A program in a terminal, and somebody who types and reads.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};

use crate::wait;

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

/// A program in a terminal.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    /// Kept open, so that the settings can be read after the program ended.
    line: OwnedFd,
    before: Termios,
    screen: Arc<(Mutex<Vec<u8>>, Condvar)>,
    reader: JoinHandle<()>,
    seen: usize,
    words: String,
}

/// How a program in a terminal ended.
#[derive(Debug, Clone)]
pub struct TerminalEnd {
    /// Exit code; 128 + N for death by signal N.
    pub code: i32,
    /// Everything it wrote.
    pub text: String,
    /// Whether the terminal echoes and edits lines as it did before.
    pub sane: bool,
}

impl Terminal {
    pub(crate) fn start(mut command: Command, words: String, rows: u16, cols: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("the system has pseudo-terminals");
        let before = tcgetattr(&pty.slave).expect("a terminal");
        let stdio = || pty.slave.try_clone().expect("a free descriptor");
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        command.env("TERM", "xterm-256color");
        // SAFETY: setsid and ioctl are async-signal-safe, and nothing else happens between fork and
        // exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|e| panic!("start {words}: {e}"));
        let screen = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let keyboard = File::from(pty.master);
        let reader = watch(keyboard.try_clone().expect("a free descriptor"), Arc::clone(&screen));
        Self { child, keyboard, line: pty.slave, before, screen, reader, seen: 0, words }
    }

    /// Types.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn send(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal is there");
    }

    /// Waits until that text appears after what was already waited for.
    ///
    /// # Panics
    /// If it does not within the bound.
    pub fn wait_for(&mut self, text: &str, bound: Duration) {
        let deadline = Instant::now() + bound;
        let (screen, changed) = &*self.screen;
        let mut bytes = screen.lock().expect("the reader does not panic");
        loop {
            let fresh = &bytes[self.seen..];
            if let Some(at) = fresh.windows(text.len()).position(|w| w == text.as_bytes()) {
                self.seen += at + text.len();
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let shown = String::from_utf8_lossy(fresh);
            assert!(!left.is_zero(), "{}: no {text:?} in {bound:?}, but {shown:?}", self.words);
            bytes = changed.wait_timeout(bytes, left).expect("the reader does not panic").0;
        }
    }

    /// Changes the size of the window.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn resize(&mut self, rows: u16, cols: u16) {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is a terminal, and `size` lives through the call.
        unsafe { set_window_size(self.keyboard.as_raw_fd(), &raw const size) }
            .expect("the terminal is there");
    }

    /// The program's process id.
    ///
    /// # Panics
    /// Never: process ids fit.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids fit")
    }

    /// Waits for the program's end.
    ///
    /// # Panics
    /// If it does not end within the bound; it is killed then.
    pub fn wait_exit(mut self, bound: Duration) -> TerminalEnd {
        let mut status = None;
        let ended = wait::eventually(bound, || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let after = tcgetattr(&self.line).expect("kept open");
        let habits = LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG;
        let sane = after.local_flags & habits == self.before.local_flags & habits;
        // With the last descriptor closed the reader gets what is left, and ends.
        drop(self.line);
        wait::eventually(Duration::from_secs(5), || self.reader.is_finished());
        let text = {
            let bytes = self.screen.0.lock().expect("the reader does not panic");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        assert!(ended, "{}: not done in {bound:?}, but {text:?}", self.words);
        let status = status.expect("it ended");
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        TerminalEnd { code, text, sane }
    }
}

/// Collects what the program writes, until the last descriptor of the terminal is closed.
fn watch(mut master: File, screen: Arc<(Mutex<Vec<u8>>, Condvar)>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = master.read(&mut buffer) {
            let (bytes, changed) = &*screen;
            bytes.lock().expect("nobody panics").extend_from_slice(&buffer[..count]);
            changed.notify_all();
        }
    })
}
