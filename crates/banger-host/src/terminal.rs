//! The terminal a person sits at, and the standard streams of this process.
//!
//! Raw mode has one owner per process and is undone by [`restore`] from wherever the process ends:
//! an ordinary return, a panic, a signal that it handles.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use banger_api::exec::WindowSize;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// The terminal's settings before raw mode; None while it is not raw.
static BEFORE: Mutex<Option<Before>> = Mutex::new(None);

struct Before(Termios);

/// The terminal at stdin in raw mode: every key reaches the guest, nothing is echoed here. Undone
/// when dropped, and by [`restore`].
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Takes stdin's terminal into raw mode.
    ///
    /// # Errors
    /// If stdin is no terminal.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let raw = raw_of(&before);
        *lock() = Some(Before(before));
        // Only now: were the process killed in between, the settings are known.
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal the settings back that it had before raw mode, if it is in raw mode. May be
/// called at any time and more than once.
pub fn restore() {
    if let Some(Before(before)) = lock().take() {
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &before);
    }
}

/// Takes the terminal into raw mode again if it was, after the process was stopped and continued
/// and the shell had set the terminal as it likes it.
pub fn enter_raw_again() {
    if let Some(Before(before)) = lock().as_ref() {
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &raw_of(before));
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Before>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn raw_of(settings: &Termios) -> Termios {
    let mut raw = settings.clone();
    cfmakeraw(&mut raw);
    raw
}

/// The size of the terminal at stdout, else stdin, else stderr; None if none of them is a terminal
/// that knows its size.
#[must_use]
pub fn size() -> Option<WindowSize> {
    size_of(io::stdout().as_fd())
        .or_else(|| size_of(io::stdin().as_fd()))
        .or_else(|| size_of(io::stderr().as_fd()))
}

fn size_of(terminal: BorrowedFd<'_>) -> Option<WindowSize> {
    use std::os::fd::AsRawFd;
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize` to the pointer, which is to one that lives here.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    let known = done == 0 && size.ws_row > 0 && size.ws_col > 0;
    known.then_some(WindowSize { rows: size.ws_row, cols: size.ws_col })
}

/// Whether stdin is a terminal that this process may use now. In the background a read from it, or
/// setting it, stops the process.
#[must_use]
pub fn stdin_is_foreground_terminal() -> bool {
    let stdin = io::stdin();
    stdin.is_terminal()
        && nix::unistd::tcgetpgrp(stdin.as_fd())
            .is_ok_and(|foreground| foreground == nix::unistd::getpgrp())
}

/// Whether this process was started with the signal ignored, as by `nohup`, or by a shell that
/// starts something in the background. What is ignored must stay so.
#[must_use]
pub fn signal_is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null second argument, sigaction only writes the present action to the third,
    // which points to memory of the right type that lives here.
    let known = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } == 0;
    // SAFETY: all-zero bytes are a valid `sigaction`, so it is initialised whether written or not.
    known && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// A standard stream of this process, without a buffer of its own. Reads and writes block the
/// calling thread even if somebody made the stream non-blocking, and go on after a signal.
#[derive(Debug)]
pub struct Stream(File);

impl Stream {
    /// Standard input.
    ///
    /// # Errors
    /// If no more files can be opened.
    pub fn stdin() -> io::Result<Self> {
        Self::of(io::stdin().as_fd())
    }

    /// Standard output.
    ///
    /// # Errors
    /// If no more files can be opened.
    pub fn stdout() -> io::Result<Self> {
        Self::of(io::stdout().as_fd())
    }

    /// Standard error.
    ///
    /// # Errors
    /// If no more files can be opened.
    pub fn stderr() -> io::Result<Self> {
        Self::of(io::stderr().as_fd())
    }

    fn of(stream: BorrowedFd<'_>) -> io::Result<Self> {
        stream.try_clone_to_owned().map(|fd| Self(File::from(fd)))
    }

    /// Waits until the stream is ready if that is all that was wrong.
    fn wait_after(&self, error: io::Error, ready: PollFlags) -> io::Result<()> {
        match error.kind() {
            ErrorKind::Interrupted => Ok(()),
            ErrorKind::WouldBlock => {
                let mut wanted = [PollFd::new(self.0.as_fd(), ready)];
                match poll(&mut wanted, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            _ => Err(error),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) => self.wait_after(error, PollFlags::POLLIN)?,
                count => return count,
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) => self.wait_after(error, PollFlags::POLLOUT)?,
                count => return count,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn nonblocking_pipe() -> (Stream, Stream) {
        let (read, write): (OwnedFd, OwnedFd) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).expect("a pipe");
        (Stream(File::from(read)), Stream(File::from(write)))
    }

    #[test]
    fn a_stream_that_somebody_made_nonblocking_is_waited_for() {
        let (mut read, mut write) = nonblocking_pipe();
        let sent = vec![7; 1 << 20];
        let expected = sent.clone();
        let writer = std::thread::spawn(move || write.write_all(&sent));
        let mut seen = Vec::new();
        let mut buffer = [0; 10_000];
        loop {
            match read.read(&mut buffer).expect("readable") {
                0 => break,
                count => seen.extend_from_slice(&buffer[..count]),
            }
        }
        writer.join().expect("no panic").expect("written");
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_broken_pipe_is_an_error() {
        let (read, mut write) = nonblocking_pipe();
        drop(read);
        let error = write.write_all(b"x").expect_err("nobody reads");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn restoring_what_was_never_raw_does_nothing() {
        restore();
        restore();
    }

    #[test]
    fn a_default_signal_is_not_ignored() {
        assert!(!signal_is_ignored(libc::SIGUSR2));
        // Rust's runtime ignores it in every program.
        assert!(signal_is_ignored(libc::SIGPIPE));
    }
}
