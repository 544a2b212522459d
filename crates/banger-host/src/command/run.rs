//! One run of a tool: start it, carry its streams, end it.
//!
//! Everything happens in the calling thread, in one `poll` loop, so there is no thread to join and
//! no order between the two output streams to get wrong beyond what the pipes do.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, geteuid, getppid};

use super::isolation::wrapper;
use super::lines::{LineSplitter, Tail};
use super::programs::search_path;
use super::{Cancel, Finished, Piece, STDERR_TAIL_LINES, Stdout, Tool, ToolError, find_program};

/// How often a run looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(50);
/// How long the output of a tool that has ended is awaited, in case a process it left behind holds
/// the pipes.
const DRAIN: Duration = Duration::from_millis(500);
/// How long killed processes may take to vanish before the run returns without them: they are in
/// uninterruptible sleep then.
const BURY: Duration = Duration::from_secs(10);

/// Run `tool` to its end.
pub(super) fn run(
    tool: Tool,
    cancel: &Cancel,
    on_piece: &mut dyn FnMut(Piece<'_>),
) -> Result<Finished, ToolError> {
    let program = tool.program.clone();
    if cancel.is_cancelled() {
        return Err(ToolError::Cancelled { program });
    }
    let mut running = Running::start(tool)?;
    let carried = running.carry(cancel, on_piece);
    let status = running.bury(if carried.is_err() { BURY } else { DRAIN });
    carried?;
    let status = status.map_err(|source| running.streams(source))?;
    running.judge(status)
}

/// A tool that has been started.
struct Running {
    program: String,
    isolated: bool,
    child: Child,
    stdin: Option<ChildStdin>,
    input: Vec<u8>,
    written: usize,
    /// None once it has ended.
    stdout: Option<ChildStdout>,
    /// None once it has ended.
    stderr: Option<ChildStderr>,
    stderr_lines: LineSplitter,
    captured: Vec<u8>,
    capture_limit: Option<usize>,
    tail: Tail,
}

impl Running {
    fn start(tool: Tool) -> Result<Self, ToolError> {
        let Tool { program, args, env, dir, isolation, stdin, stdout } = tool;
        let command_line = command_line(&program, args, wrapper(isolation, geteuid().is_root()))?;
        let capture_limit = match &stdout {
            Stdout::Capture(limit) => Some(*limit),
            Stdout::Pass | Stdout::File(_) => None,
        };
        #[expect(clippy::disallowed_methods, reason = "this is where programs are started")]
        let mut command = Command::new(&command_line[0]);
        command
            .args(&command_line[1..])
            .env("LC_ALL", "C.UTF-8")
            .env_remove("LANGUAGE")
            .env("PATH", search_path())
            .envs(env)
            .current_dir(dir.unwrap_or_else(|| "/".into()))
            .process_group(0)
            .stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(match stdout {
                Stdout::File(file) => Stdio::from(file),
                Stdout::Capture(_) | Stdout::Pass => Stdio::piped(),
            })
            .stderr(Stdio::piped());
        die_with_this_thread(&mut command);
        let mut child = command
            .spawn()
            .map_err(|source| ToolError::Start { program: program.clone(), source })?;
        let running = Self {
            isolated: command_line.len() > 1 && isolation != super::Isolation::Group,
            stdin: child.stdin.take(),
            input: stdin,
            written: 0,
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            stderr_lines: LineSplitter::default(),
            captured: Vec::new(),
            capture_limit,
            tail: Tail::new(STDERR_TAIL_LINES),
            program,
            child,
        };
        Ok(running)
    }

    /// Carry its streams until it has ended and they are drained.
    fn carry(
        &mut self,
        cancel: &Cancel,
        on_piece: &mut dyn FnMut(Piece<'_>),
    ) -> Result<(), ToolError> {
        self.set_nonblocking().map_err(|source| self.streams(source))?;
        let mut ended: Option<Instant> = None;
        loop {
            if cancel.is_cancelled() {
                return Err(ToolError::Cancelled { program: self.program.clone() });
            }
            self.wait_for_streams(LOOK).map_err(|source| self.streams(source))?;
            self.feed().map_err(|source| self.streams(source))?;
            self.read_stdout(on_piece)?;
            self.read_stderr(on_piece).map_err(|source| self.streams(source))?;
            if ended.is_none() && self.has_ended().map_err(|source| self.streams(source))? {
                ended = Some(Instant::now());
            }
            let drained = self.stdout.is_none() && self.stderr.is_none();
            if ended.is_some_and(|since| drained || since.elapsed() > DRAIN) {
                self.finish_lines(on_piece);
                return Ok(());
            }
        }
    }

    /// Whether the tool has ended. It is not reaped yet: until it is, the kernel gives its process
    /// group's number to nobody else.
    fn has_ended(&self) -> io::Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(self.pid()), flags)?;
        Ok(status != WaitStatus::StillAlive)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn streams(&self, source: io::Error) -> ToolError {
        ToolError::Streams { program: self.program.clone(), source }
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        let fds = [
            self.stdin.as_ref().map(AsFd::as_fd),
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
        ];
        for fd in fds.into_iter().flatten() {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(())
    }

    /// Sleep until a stream has something to do, or for `limit`.
    fn wait_for_streams(&self, limit: Duration) -> io::Result<()> {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let streams = [
            self.stdin.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)),
            self.stdout.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)),
            self.stderr.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)),
        ];
        let mut fds: Vec<PollFd<'_>> = streams.into_iter().flatten().collect();
        if fds.is_empty() {
            // Its streams are closed, so its end is near; there is nothing to poll for that.
            std::thread::sleep(Duration::from_millis(2));
            return Ok(());
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Write what the pipe takes of the input, and close it at the end.
    fn feed(&mut self) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else {
            return Ok(());
        };
        match stdin.write(&self.input[self.written..]) {
            Ok(count) => self.written += count,
            Err(error) if is_retry(&error) => {}
            // It need not read its input; whether that is a failure, its status says.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.written = self.input.len(),
            Err(error) => return Err(error),
        }
        if self.written == self.input.len() {
            self.stdin = None;
        }
        Ok(())
    }

    fn read_stdout(&mut self, on_piece: &mut dyn FnMut(Piece<'_>)) -> Result<(), ToolError> {
        let Self { stdout, captured, capture_limit, .. } = self;
        let read = drain(stdout, &mut |bytes| {
            if capture_limit.is_some() {
                captured.extend_from_slice(bytes);
            }
            on_piece(Piece::Bytes(bytes));
            capture_limit.is_none_or(|limit| captured.len() <= limit)
        });
        read.map_err(|source| self.streams(source))?;
        match self.capture_limit {
            Some(limit) if self.captured.len() > limit => {
                Err(ToolError::TooMuchOutput { program: self.program.clone(), limit })
            }
            _ => Ok(()),
        }
    }

    fn read_stderr(&mut self, on_piece: &mut dyn FnMut(Piece<'_>)) -> io::Result<()> {
        let Self { stderr, stderr_lines, tail, .. } = self;
        drain(stderr, &mut |bytes| {
            stderr_lines.push(bytes, &mut |line| {
                tail.push(line);
                on_piece(Piece::Stderr(line));
            });
            true
        })
    }

    fn finish_lines(&mut self, on_piece: &mut dyn FnMut(Piece<'_>)) {
        let tail = &mut self.tail;
        self.stderr_lines.finish(&mut |line| {
            tail.push(line);
            on_piece(Piece::Stderr(line));
        });
    }

    /// Kill what is left of the tool and of all it has started, and reap it. Wait up to `limit` until
    /// all of it is gone: the end of the output streams, which all of it holds, shows that.
    fn bury(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let status = self.child.wait();
        self.stdin = None;
        let since = Instant::now();
        while since.elapsed() < limit && (self.stdout.is_some() || self.stderr.is_some()) {
            self.wait_for_streams(LOOK)?;
            drain(&mut self.stdout, &mut |_| true)?;
            drain(&mut self.stderr, &mut |_| true)?;
        }
        status
    }

    /// What its exit status means.
    fn judge(self, status: ExitStatus) -> Result<Finished, ToolError> {
        let Self { program, captured, tail, isolated, .. } = self;
        if status.success() {
            return Ok(Finished { stdout: captured });
        }
        let stderr = tail.into_lines();
        let refused = |line: &&String| {
            ["unshare: ", "newuidmap: ", "newgidmap: "].iter().any(|by| line.starts_with(by))
        };
        match stderr.iter().find(refused) {
            Some(reason) if isolated => {
                // util-linux adds the text of errno even where there is none.
                let reason = reason.trim_end_matches(": Success").to_owned();
                Err(ToolError::Isolation { program, reason })
            }
            _ => Err(ToolError::Failed { program, status, stderr }),
        }
    }
}

/// The words to execute: the wrapper's, if any, then the program's.
fn command_line(
    program: &str,
    args: Vec<OsString>,
    wrapper: Option<Vec<OsString>>,
) -> Result<Vec<OsString>, ToolError> {
    let find = |name: &str| {
        find_program(name).ok_or_else(|| ToolError::Missing { program: name.to_owned() })
    };
    let mut words = wrapper.unwrap_or_default();
    if let Some(first) = words.first_mut() {
        *first = find(&first.to_string_lossy())?.into();
    }
    words.push(find(program)?.into());
    words.extend(args);
    Ok(words)
}

/// Have the kernel kill the child when the thread that starts it ends.
fn die_with_this_thread(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let before_exec = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // If the parent died before the signal was set, nobody is left to send it.
        if getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec the closure makes system calls only: it neither allocates nor
    // takes a lock.
    unsafe { command.pre_exec(before_exec) };
}

/// Read what a pipe holds without waiting; forget the pipe at its end. `on_bytes` says whether to go
/// on.
fn drain<P: Read>(pipe: &mut Option<P>, on_bytes: &mut dyn FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut buffer = [0_u8; 16 * 1024];
    while let Some(open) = pipe {
        match open.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(count) if on_bytes(&buffer[..count]) => {}
            Ok(_) => return Ok(()),
            Err(error) if is_retry(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::thread;

    use super::super::{Isolation, STDOUT_LIMIT};
    use super::*;

    fn shell(script: &str) -> Tool {
        Tool::new("sh").arg("-c").arg(script)
    }

    fn is_alive(pid_file: &Path) -> bool {
        let pid = std::fs::read_to_string(pid_file).unwrap_or_default();
        !pid.trim().is_empty() && Path::new("/proc").join(pid.trim()).join("exe").exists()
    }

    #[test]
    fn stdin_goes_in_and_both_outputs_come_out() {
        let big = vec![b'x'; 300_000];
        let mut seen = Vec::new();
        let finished = shell("echo warning >&2; cat | wc -c")
            .stdin(big)
            .run_watched(&Cancel::new(), &mut |line| seen.push(format!("{line:?}")))
            .expect("it succeeds");
        assert_eq!(finished.text().trim(), "300000");
        seen.sort();
        assert_eq!(seen, ["Stderr(\"warning\")", "Stdout(\"300000\")"]);
    }

    #[test]
    fn large_output_is_complete() {
        let finished = shell("head -c 3000000 /dev/zero").run(&Cancel::new()).expect("it succeeds");
        assert_eq!(finished.stdout.len(), 3_000_000);
    }

    #[test]
    fn bytes_stream_as_they_are() {
        let mut count = 0;
        shell("head -c 9000000 /dev/zero")
            .run_streaming(&Cancel::new(), &mut |bytes| count += bytes.len())
            .expect("more than may be kept may stream");
        assert_eq!(count, 9_000_000);
    }

    #[test]
    fn too_much_output_is_an_error() {
        let error = shell("yes").run(&Cancel::new()).expect_err("yes never ends");
        assert!(matches!(error, ToolError::TooMuchOutput { limit: STDOUT_LIMIT, .. }), "{error}");
    }

    #[test]
    fn a_failure_has_the_status_and_the_last_words() {
        let error = shell("seq 100 >&2; exit 3").run(&Cancel::new()).expect_err("exit 3");
        assert_eq!(error.to_string(), "sh failed with exit status: 3");
        assert_eq!(error.stderr().len(), STDERR_TAIL_LINES);
        assert_eq!(error.stderr().last().map(String::as_str), Some("100"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Tool::new("no-such-tool").run(&Cancel::new()).expect_err("there is none");
        assert_eq!(error.to_string(), "no-such-tool is not installed");
    }

    #[test]
    fn the_input_of_a_tool_that_does_not_read_is_dropped() {
        let tool = shell("exit 0").stdin(vec![0; 1_000_000]);
        tool.run(&Cancel::new()).expect("not reading is no failure");
    }

    #[test]
    fn what_a_tool_leaves_behind_does_not_hold_it_and_does_not_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let pid_file = dir.path().join("pid");
        let since = Instant::now();
        shell("sleep 600 & echo $! > \"$0\"").arg(&pid_file).run(&Cancel::new()).expect("it ends");
        assert!(since.elapsed() < Duration::from_secs(5));
        assert!(!is_alive(&pid_file));
    }

    #[test]
    fn cancelling_kills_the_whole_group() {
        let dir = tempfile::tempdir().expect("a directory");
        let pid_file = dir.path().join("pid");
        let cancel = Cancel::new();
        let later = cancel.clone();
        let watched = pid_file.clone();
        let canceller = thread::spawn(move || {
            while !is_alive(&watched) {
                thread::sleep(Duration::from_millis(5));
            }
            later.cancel();
        });
        let tool = shell("trap '' TERM; sleep 600 & echo $! > \"$0\"; wait").arg(&pid_file);
        let error = tool.run(&cancel).expect_err("it is cancelled");
        canceller.join().expect("no panic");
        assert!(error.is_cancelled());
        assert!(!is_alive(&pid_file));
    }

    #[test]
    fn a_cancelled_namespace_takes_even_daemons_with_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let ready = dir.path().join("ready");
        let held = dir.path().join("held");
        let cancel = Cancel::new();
        let later = cancel.clone();
        let watched = ready.clone();
        let canceller = thread::spawn(move || {
            let since = Instant::now();
            while !watched.exists() && since.elapsed() < Duration::from_secs(30) {
                thread::sleep(Duration::from_millis(5));
            }
            later.cancel();
        });
        // The daemon has its own session and none of our pipes: only the namespace still holds it.
        let script = "cd \"$0\"; setsid flock held sh -c 'touch ready; sleep 600; :' \
                      </dev/null >/dev/null 2>&1 & wait";
        let tool = shell(script).arg(dir.path()).isolation(Isolation::Processes);
        let ended = tool.run(&cancel);
        canceller.join().expect("no panic");
        match ended {
            Err(ToolError::Isolation { reason, .. }) => {
                assert!(!reason.is_empty());
                return eprintln!("skipped: this machine has no user namespaces");
            }
            other => assert!(other.expect_err("it is cancelled").is_cancelled()),
        }
        assert!(ready.exists(), "the daemon ran");
        let held = std::fs::File::open(&held).expect("its lock");
        let since = Instant::now();
        while held.try_lock().is_err() {
            assert!(since.elapsed() < Duration::from_secs(10), "the daemon goes on");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_cancelled_token_starts_nothing() {
        let cancel = Cancel::new();
        cancel.cancel();
        assert!(shell("exit 0").run(&cancel).expect_err("cancelled").is_cancelled());
    }

    #[test]
    fn the_end_of_the_thread_that_waits_ends_the_tool() {
        let dir = tempfile::tempdir().expect("a directory");
        let pid_file = dir.path().join("pid");
        let for_thread = pid_file.clone();
        let starter = thread::spawn(move || {
            // Start without waiting, as a killed daemon would leave it.
            let tool = shell("echo $$ > \"$0\"; exec sleep 600").arg(&for_thread);
            let running = Running::start(tool).expect("it starts");
            while !is_alive(&for_thread) {
                thread::sleep(Duration::from_millis(5));
            }
            running
        });
        let mut running = starter.join().expect("no panic");
        let status = running.child.wait().expect("it ends");
        assert!(!status.success());
    }
}
