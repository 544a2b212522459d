//! One run of a program: what goes in, what comes out, and how long it may take.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::terminal::Terminal;

/// Long enough for a boot on a loaded machine without hardware virtualisation.
const DEFAULT_BOUND: Duration = Duration::from_secs(120);

/// A program that is about to run.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    stdin: Option<Vec<u8>>,
    bound: Duration,
}

/// How a program ended, and what it wrote.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 + N for death by signal N, as shells have it.
    pub code: i32,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// From start to end.
    pub took: Duration,
    /// CPU time of it and what it waited for. Right if nothing else of this process ended meanwhile.
    pub cpu: Duration,
    command: String,
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<Collector>,
    stderr: Option<Collector>,
    started: Instant,
    bound: Duration,
    cpu_before: Duration,
    command: String,
}

impl Invocation {
    pub(crate) fn new(command: Command) -> Self {
        Self { command, stdin: None, bound: DEFAULT_BOUND }
    }

    /// What it reads; without this, standard input is empty.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// How long it may take before the test fails.
    #[must_use]
    pub fn timeout(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// If it cannot be started or does not end in time.
    pub fn run(mut self) -> Output {
        let input = self.stdin.take().unwrap_or_default();
        let mut running = self.spawn();
        let mut stdin = running.stdin.take().expect("spawn pipes it");
        // A program may end without having read it all; then this thread sees a broken pipe.
        let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = running.wait();
        // If the program is gone the pipe is too, so this ends.
        feeder.join().expect("writing to a pipe does not panic");
        output
    }

    /// Starts it, with its standard input a pipe that stays open until [`Running::close_stdin`].
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(mut self) -> Running {
        let command = words(&self.command);
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("start {command}: {e}"));
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(Collector::start);
        let stderr = child.stderr.take().map(Collector::start);
        Running {
            child,
            stdin,
            stdout,
            stderr,
            started: Instant::now(),
            bound: self.bound,
            cpu_before: cpu_of_children(),
            command,
        }
    }

    /// Starts it, and reads nothing of its output before [`Running::wait`].
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn_unread(mut self) -> Running {
        let command = words(&self.command);
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.command.spawn().unwrap_or_else(|e| panic!("start {command}: {e}"));
        Running {
            child,
            stdin: None,
            stdout: None,
            stderr: None,
            started: Instant::now(),
            bound: self.bound,
            cpu_before: cpu_of_children(),
            command,
        }
    }

    /// Starts it in a terminal of that size.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn in_terminal(self, rows: u16, cols: u16) -> Terminal {
        let words = words(&self.command);
        Terminal::start(self.command, words, rows, cols)
    }
}

fn words(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Reads a pipe to its end.
#[derive(Debug)]
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Collector {
    fn start(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            let mut piece = [0; 64 << 10];
            loop {
                match pipe.read(&mut piece) {
                    Ok(count @ 1..) => lock(&all).extend_from_slice(&piece[..count]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // An error here shows as missing output.
                    Ok(0) | Err(_) => return,
                }
            }
        });
        Self { bytes, thread }
    }

    fn so_far(&self) -> Vec<u8> {
        lock(&self.bytes).clone()
    }

    fn finish(self) -> Vec<u8> {
        self.thread.join().expect("reading a pipe does not panic");
        std::mem::take(&mut lock(&self.bytes))
    }
}

fn lock(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids fit")
    }

    /// What was read of its standard output until now.
    #[must_use]
    pub fn stdout_so_far(&self) -> Vec<u8> {
        self.stdout.as_ref().map(Collector::so_far).unwrap_or_default()
    }

    /// Writes to its standard input.
    ///
    /// # Panics
    /// If it no longer reads.
    pub fn send(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("standard input is still open");
        stdin.write_all(bytes).expect("it reads");
        stdin.flush().expect("a pipe");
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it cannot be sent.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).expect("our child");
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// If the system does not say.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end in time; it is killed then.
    pub fn wait(mut self) -> Output {
        self.stdin = None;
        if let Some(unread) = self.child.stdout.take() {
            self.stdout = Some(Collector::start(unread));
        }
        if let Some(unread) = self.child.stderr.take() {
            self.stderr = Some(Collector::start(unread));
        }
        let pid = nix::unistd::Pid::from_raw(self.pid());
        let (done, status) = mpsc::channel();
        let mut child = self.child;
        // A thread that waits sees the end at once; asking now and then would blur what is measured.
        std::thread::spawn(move || done.send((child.wait(), Instant::now())));
        let mut ended = status.recv_timeout(self.bound);
        let in_time = ended.is_ok();
        if !in_time {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            ended = status.recv_timeout(self.bound);
        }
        let (status, at) = ended.expect("nothing survives SIGKILL");
        let status = status.expect("our child");
        let took = at.duration_since(self.started);
        let output = Output {
            code: code(status),
            stdout: self.stdout.take().map(Collector::finish).unwrap_or_default(),
            stderr: self.stderr.take().map(Collector::finish).unwrap_or_default(),
            took,
            cpu: cpu_of_children().saturating_sub(self.cpu_before),
            command: self.command.clone(),
        };
        assert!(in_time, "not done in {:?}: {output}", self.bound);
        output
    }
}

fn cpu_of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("our own children");
    let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).unwrap_or(0);
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

impl Output {
    /// Standard output as text.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless it succeeded.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn assert_ok(self) -> Self {
        self.assert_code(0)
    }

    /// Fails the test unless it ended with that code.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn assert_code(self, code: i32) -> Self {
        assert!(self.code == code, "wanted exit code {code}: {self}");
        self
    }

    /// Fails the test unless its standard output is exactly that.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn assert_stdout(self, text: &str) -> Self {
        assert!(self.stdout == text.as_bytes(), "wanted stdout {text:?}: {self}");
        self
    }

    /// Fails the test unless its standard output has that in it.
    ///
    /// # Panics
    /// If it has not.
    #[track_caller]
    pub fn assert_stdout_has(self, text: &str) -> Self {
        assert!(self.stdout_text().contains(text), "wanted {text:?} in stdout: {self}");
        self
    }

    /// Fails the test unless its standard error has that in it.
    ///
    /// # Panics
    /// If it has not.
    #[track_caller]
    pub fn assert_stderr_has(self, text: &str) -> Self {
        assert!(self.stderr_text().contains(text), "wanted {text:?} in stderr: {self}");
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            text.chars().take(4000).collect::<String>()
        };
        writeln!(f, "`{}` ended with {} after {:?}", self.command, self.code, self.took)?;
        writeln!(f, "-- stdout ({} bytes)\n{}", self.stdout.len(), short(&self.stdout))?;
        write!(f, "-- stderr ({} bytes)\n{}", self.stderr.len(), short(&self.stderr))
    }
}
