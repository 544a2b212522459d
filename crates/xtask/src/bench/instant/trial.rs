//! One run of a peer: bounded in time, and gone when it is over, with all that it started.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use banger_testkit::Account;

use super::contender::Reason;

/// Nobody takes that long unless it hangs.
const BOUND: Duration = Duration::from_secs(180);
/// How much of the end of what it said is kept.
const KEPT_BYTES: usize = 64 << 10;

/// A program that runs in a process namespace of its own, for which one waits as long as anything in
/// it lives.
pub(super) struct Trial {
    child: Child,
    said: mpsc::Receiver<Vec<u8>>,
    heard: Vec<u8>,
    started: Instant,
}

/// How it ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// From the start until nothing of it was left.
    pub(super) took: Duration,
    pub(super) status: ExitStatus,
    /// The end of what it wrote, to both outputs.
    pub(super) said: String,
}

impl Trial {
    /// Starts it. Its standard input is a pipe that [`Trial::send`] writes to.
    pub(super) fn start(command: &Command) -> Result<Self, Reason> {
        Self::start_with(command, Stdio::piped())
    }

    fn start_with(command: &Command, stdin: Stdio) -> Result<Self, Reason> {
        let mut alone = in_namespace(command);
        let started = Instant::now();
        let mut child = alone
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Reason::new(&format!("cannot start setpriv: {error}")))?;
        let (words, said) = mpsc::channel();
        child.stdout.take().into_iter().for_each(|pipe| listen(pipe, words.clone()));
        child.stderr.take().into_iter().for_each(|pipe| listen(pipe, words.clone()));
        Ok(Self { child, said, heard: Vec::new(), started })
    }

    /// Waits until it has said something.
    pub(super) fn expect(&mut self, text: &str) -> Result<(), Reason> {
        while !contains(&self.heard, text) {
            let heard = self.hear()?;
            if !heard {
                return Err(Reason::new(&format!("it ended: {}", last_line(&self.heard))));
            }
        }
        Ok(())
    }

    /// Writes to its standard input.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        let stdin = self.child.stdin.as_mut().ok_or(Reason::new("its input is closed"))?;
        let sent = stdin.write_all(bytes).and_then(|()| stdin.flush());
        sent.map_err(|error| Reason::new(&format!("it does not listen: {error}")))
    }

    /// Waits until nothing of it is left: its outputs are closed then.
    pub(super) fn end(mut self) -> Result<Ended, Reason> {
        while self.hear()? {}
        let status = self.child.wait().map_err(|error| Reason::new(&error.to_string()))?;
        let said = String::from_utf8_lossy(&self.heard).into_owned();
        Ok(Ended { took: self.started.elapsed(), status, said })
    }

    /// Takes in what it says next; false if it has ended.
    fn hear(&mut self) -> Result<bool, Reason> {
        match self.said.recv_timeout(BOUND.saturating_sub(self.started.elapsed())) {
            Ok(bytes) => {
                self.heard.extend(bytes);
                let surplus = self.heard.len().saturating_sub(KEPT_BYTES);
                self.heard.drain(..surplus);
                Ok(true)
            }
            Err(RecvTimeoutError::Disconnected) => Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                let last = last_line(&self.heard);
                Err(Reason::new(&format!("not done in {} s: {last}", BOUND.as_secs())))
            }
        }
    }
}

impl Drop for Trial {
    /// One that was given up is ended; if we are killed instead, the kernel does it.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end, and fails unless it succeeds.
pub(super) fn run(command: &Command) -> Result<Ended, Reason> {
    let ended = Trial::start_with(command, Stdio::null())?.end()?;
    if ended.status.success() {
        return Ok(ended);
    }
    Err(Reason::new(&format!("{}: {}", ended.status, last_line(ended.said.as_bytes()))))
}

/// The same program in a process namespace that ends with it, and it with us: some peers leave
/// daemons behind, or hang.
fn in_namespace(command: &Command) -> Command {
    let mut alone = Command::new("setpriv");
    alone.args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child"]);
    alone.arg("--mount-proc");
    if !Account::current().is_root() {
        alone.args(["--user", "--map-current-user"]);
    }
    alone.arg("--").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => alone.env(name, value),
            None => alone.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        alone.current_dir(dir);
    }
    alone
}

fn listen(mut pipe: impl Read + Send + 'static, words: mpsc::Sender<Vec<u8>>) {
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        // Whatever stops the reading, the program's end is noticed by its pipe being closed.
        while let Ok(count @ 1..) = pipe.read(&mut piece) {
            if words.send(piece[..count].to_vec()).is_err() {
                return;
            }
        }
    });
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_trial_is_a_conversation_and_what_it_leaves_behind_ends_with_it() {
        let script = "sleep 1000 & read word; echo heard $word; read word";
        let mut trial = Trial::start(&shell(script)).unwrap();
        trial.send(b"this\n").unwrap();
        trial.expect("heard this").unwrap();
        trial.send(b"bye\n").unwrap();
        let ended = trial.end().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        assert!(ended.took < BOUND, "the sleeper held its output open");
    }

    #[test]
    fn a_failure_says_its_last_words() {
        let reason = run(&shell("echo one; echo two >&2; exit 3")).unwrap_err().to_string();
        assert!(reason.starts_with("exit status: 3: "), "{reason}");
        let mut trial = Trial::start(&shell("echo nothing of interest")).unwrap();
        let reason = trial.expect("a prompt").unwrap_err();
        assert_eq!(reason, Reason::new("it ended: nothing of interest"));
    }
}
