//! Running programs of the host: start, watch, bound, and never leave one behind.
//!
//! A [`Tool`] is a program to be run to its end by a thread that has nothing else to do (the API
//! blocks; async callers use a blocking pool). Three things hold for every run:
//!
//! - **Nothing is left over.** A cancelled run is killed with everything it started, and the call
//!   returns only when all of it is gone. If banger itself is killed, even by `kill -9`, the kernel
//!   kills the program: by its parent-death signal, and with [`Isolation::Processes`] or
//!   [`Isolation::Root`] by the end of the PID namespace that it and all its descendants live in.
//! - **Output is bounded.** Lines go to a callback as they come; what is kept has a limit.
//! - **Errors say enough.** [`ToolError`] knows the program, how it ended, its last words, and, if
//!   it is missing, the Debian package that has it.
//!
//! The parent-death signal is tied to the *thread* that started the program. That is why there is no
//! way to start a tool and walk away: the thread waits in [`Tool::run`].

mod cancel;
mod error;
mod isolation;
mod lines;
mod programs;
mod run;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};

pub use cancel::Cancel;
pub use error::ToolError;
pub use isolation::Isolation;
pub use programs::{find_program, package_of};

/// How many of the last lines on stderr an error carries.
pub const STDERR_TAIL_LINES: usize = 40;
/// Default limit of captured stdout, in bytes.
pub const STDOUT_LIMIT: usize = 4 * 1024 * 1024;

/// A line that a tool wrote, without its end, control characters included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// On standard output.
    Stdout(&'a str),
    /// On standard error.
    Stderr(&'a str),
}

/// What a tool just wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    /// Bytes on standard output, as they came.
    Bytes(&'a [u8]),
    /// A line on standard error.
    Stderr(&'a str),
}

/// What a tool that succeeded has left.
#[derive(Debug)]
pub struct Finished {
    /// What it wrote to stdout, unless that went to a file.
    pub stdout: Vec<u8>,
}

impl Finished {
    /// Its stdout as text; bytes that are no UTF-8 are replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A program to run, with its arguments.
#[derive(Debug)]
pub struct Tool {
    program: String,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    isolation: Isolation,
    stdin: Vec<u8>,
    stdout: Stdout,
}

/// Where stdout goes.
#[derive(Debug)]
enum Stdout {
    /// Into memory, up to that many bytes; more is an error.
    Capture(usize),
    /// To the callback only, as lines or as they come.
    Pass,
    /// Into a file.
    File(File),
}

impl Tool {
    /// A program by name, searched in `PATH` and the `sbin` directories, or by absolute path.
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
            isolation: Isolation::Group,
            stdin: Vec::new(),
            stdout: Stdout::Capture(STDOUT_LIMIT),
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// One more environment variable. The environment is banger's own, with `LC_ALL=C.UTF-8`, so
    /// that messages can be read by machine, and the `sbin` directories in `PATH`.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The working directory. The default is `/`, so that no tool keeps a directory busy or fails
    /// because the current one is not readable for the user it becomes.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().to_owned());
        self
    }

    /// The namespaces to run in.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// What it reads on stdin; by default nothing.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Send stdout into a file instead of memory.
    #[must_use]
    pub fn stdout_to(mut self, file: File) -> Self {
        self.stdout = Stdout::File(file);
        self
    }

    /// Keep nothing of stdout: its lines go to the callback of [`Tool::run_watched`] only.
    #[must_use]
    pub fn stdout_lines(mut self) -> Self {
        self.stdout = Stdout::Pass;
        self
    }

    /// Keep up to `limit` bytes of stdout; a tool that writes more is killed.
    #[must_use]
    pub fn stdout_limit(mut self, limit: usize) -> Self {
        self.stdout = Stdout::Capture(limit);
        self
    }

    /// Run it to its end.
    ///
    /// # Errors
    /// It is missing, cannot be started, ended with anything but 0, wrote too much, or was
    /// cancelled.
    pub fn run(self, cancel: &Cancel) -> Result<Finished, ToolError> {
        run::run(self, cancel, &mut |_| {})
    }

    /// Run it to its end and show each line that it writes to `on_line`, in the calling thread.
    ///
    /// # Errors
    /// As [`Tool::run`].
    pub fn run_watched(
        self,
        cancel: &Cancel,
        on_line: &mut dyn FnMut(Line<'_>),
    ) -> Result<Finished, ToolError> {
        let mut stdout = lines::LineSplitter::default();
        let finished = run::run(self, cancel, &mut |piece| match piece {
            Piece::Bytes(bytes) => {
                stdout.push(bytes, &mut |line| on_line(Line::Stdout(line)));
            }
            Piece::Stderr(line) => on_line(Line::Stderr(line)),
        })?;
        stdout.finish(&mut |line| on_line(Line::Stdout(line)));
        Ok(finished)
    }

    /// Run it to its end and hand what it writes to stdout to `on_bytes`, in the calling thread;
    /// nothing of it is kept.
    ///
    /// # Errors
    /// As [`Tool::run`].
    pub fn run_streaming(
        mut self,
        cancel: &Cancel,
        on_bytes: &mut dyn FnMut(&[u8]),
    ) -> Result<(), ToolError> {
        self.stdout = Stdout::Pass;
        run::run(self, cancel, &mut |piece| {
            if let Piece::Bytes(bytes) = piece {
                on_bytes(bytes);
            }
        })?;
        Ok(())
    }
}
