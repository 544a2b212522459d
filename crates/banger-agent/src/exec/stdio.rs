//! The streams of a command: three pipes, or one terminal.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use banger_api::exec::{Channel, WindowSize};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use tokio::io::unix::AsyncFd;

use super::input::{Control, Stdin};
use super::output::Source;
use super::spawn::Child;

/// The agent's end of a pipe, or of a terminal, which is both read and written.
pub type End = Arc<AsyncFd<OwnedFd>>;

/// The agent's ends.
#[derive(Debug)]
pub struct Streams {
    /// What the command writes.
    pub outputs: Vec<Source>,
    /// What it reads; taken by whoever feeds it.
    pub stdin: Option<Stdin>,
    terminal: Option<Arc<Terminal>>,
}

/// The command's ends; closed here once it has them.
#[derive(Debug)]
pub struct ChildEnds {
    /// Its descriptors 0, 1 and 2.
    pub stdio: [OwnedFd; 3],
    /// They are a terminal, which is to be its controlling one.
    pub terminal: bool,
}

/// A terminal that a command runs on.
#[derive(Debug)]
pub struct Terminal {
    master: End,
    /// Held so that the terminal does not end when the command closes it and opens it again.
    _slave: OwnedFd,
}

/// Opens the streams of a command that runs as `owner`.
///
/// A terminal is the command's standard input even if the client sends none: programs ask it for
/// its size and its settings.
pub fn open(
    tty: Option<WindowSize>,
    stdin: bool,
    owner: Option<u32>,
) -> io::Result<(Streams, ChildEnds)> {
    match tty {
        Some(size) => open_terminal(size, stdin, owner),
        None => open_pipes(stdin),
    }
}

impl Streams {
    /// What signals and resizes act on.
    pub fn control(&self, child: &Child) -> Control {
        Control::new(child, self.terminal.clone())
    }
}

/// Streams that lead nowhere.
pub fn nothing() -> io::Result<ChildEnds> {
    let null: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/null")?
        .into();
    Ok(ChildEnds { stdio: [null.try_clone()?, null.try_clone()?, null], terminal: false })
}

fn open_pipes(stdin: bool) -> io::Result<(Streams, ChildEnds)> {
    let (stdout, child_stdout) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, child_stderr) = pipe2(OFlag::O_CLOEXEC)?;
    let (child_stdin, stdin) = if stdin {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        (theirs, Some(Stdin::pipe(end(ours)?)))
    } else {
        let null = OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC).open("/dev/null")?;
        (null.into(), None)
    };
    let outputs = vec![
        Source::pipe(Channel::Stdout, end(stdout)?),
        Source::pipe(Channel::Stderr, end(stderr)?),
    ];
    let ends = ChildEnds { stdio: [child_stdin, child_stdout, child_stderr], terminal: false };
    Ok((Streams { outputs, stdin, terminal: None }, ends))
}

fn open_terminal(
    size: WindowSize,
    stdin: bool,
    owner: Option<u32>,
) -> io::Result<(Streams, ChildEnds)> {
    let (master, slave) = open_pty()?;
    // Programs such as `mesg` and `tmux` want the terminal to be their user's. Its group stays what
    // the mount says.
    let _ = nix::unistd::fchown(&slave, owner.map(Into::into), None);
    let stdio = [slave.try_clone()?, slave.try_clone()?, slave.try_clone()?];
    let master = end(master)?;
    let terminal = Arc::new(Terminal { master: Arc::clone(&master), _slave: slave });
    terminal.resize(size)?;
    let streams = Streams {
        outputs: vec![Source::terminal(Arc::clone(&master))],
        stdin: stdin.then(|| Stdin::terminal(master)),
        terminal: Some(terminal),
    };
    Ok((streams, ChildEnds { stdio, terminal: true }))
}

/// A new pair of master and slave.
fn open_pty() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let master: OwnedFd =
        OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/ptmx")?.into();
    let unlocked: libc::c_int = 0;
    // SAFETY: the call reads one `int`.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // By this call instead of a path: the guest may have mounted anything on /dev/pts.
    // SAFETY: the call takes open flags and returns a new descriptor.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for nobody else.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    expect_utf8(&slave);
    Ok((master, slave))
}

/// Lets the terminal erase whole characters in its line editing.
fn expect_utf8(slave: &OwnedFd) {
    use nix::sys::termios::{InputFlags, SetArg, tcgetattr, tcsetattr};
    if let Ok(mut settings) = tcgetattr(slave) {
        settings.input_flags.insert(InputFlags::IUTF8);
        let _ = tcsetattr(slave, SetArg::TCSANOW, &settings);
    }
}

fn end(descriptor: OwnedFd) -> io::Result<End> {
    let flags = OFlag::from_bits_retain(fcntl(descriptor.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(descriptor.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // SAFETY: the descriptor is owned and stays the same until the registration drops it.
    let registered = unsafe { AsyncFd::register(descriptor)? };
    Ok(Arc::new(registered))
}

impl Terminal {
    /// Gives it a size; the foreground processes are told.
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        let size =
            libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the call reads one `winsize`.
        let done =
            unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The process group that the terminal's own signals go to.
    pub fn foreground_group(&self) -> Option<i32> {
        let mut group: libc::pid_t = 0;
        // SAFETY: the call writes one `pid_t`.
        let done = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCGPGRP, &raw mut group) };
        (done == 0 && group > 0).then_some(group)
    }
}
