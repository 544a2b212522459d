//! Talking to the machine: each command is a login session of its own, through ssh and PAM.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::machine::Machine;
use crate::failure::{ChoreFailure, on_file, run};

/// Makes the machine ready for a command; runs there as root.
const PREPARE: &str = include_str!("prepare.sh");
/// What ssh answers when it, and not the command, failed.
const SSH_FAILED: i32 = 255;

/// As whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Root.
    Root,
    /// The ordinary user.
    Tester,
}

impl Who {
    fn login(self) -> &'static str {
        match self {
            Self::Root => "root@127.0.0.1",
            Self::Tester => "tester@127.0.0.1",
        }
    }
}

/// Words as a shell takes them.
pub(super) fn quoted(words: &[String]) -> String {
    let quote = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// A shell's command in the copied tree, with its programs found. A command that a signal ended
/// gives 128 plus its number, as everywhere.
pub(super) fn in_tree(command: &str) -> String {
    format!(
        "cd /home/tester/banger && PATH=$PWD/target/dist/bin:$PATH:/usr/sbin:/sbin && \
         export PATH && {command}; exit $?"
    )
}

impl Machine {
    /// Runs a shell's command there, its streams being ours, and gives its exit code.
    pub(super) fn ssh(&self, who: Who, command: &str) -> Result<u8, ChoreFailure> {
        let mut ssh = self.ssh_command(who);
        ssh.arg(command).stdin(Stdio::null());
        let status = ssh
            .status()
            .map_err(|source| ChoreFailure::NotStarted { program: "ssh".to_owned(), source })?;
        match status.code() {
            Some(SSH_FAILED) => Err(ChoreFailure::Lost("the machine does not answer any more")),
            code => Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)),
        }
    }

    /// Starts a shell's command there and does not wait; its output can be read.
    pub(super) fn ssh_in_background(&self, who: Who, command: &str) -> Result<Child, ChoreFailure> {
        let mut ssh = self.ssh_command(who);
        ssh.arg(command).stdin(Stdio::null()).stdout(Stdio::piped());
        ssh.spawn().map_err(|source| ChoreFailure::NotStarted { program: "ssh".to_owned(), source })
    }

    fn ssh_command(&self, who: Who) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-q", "-F", "/dev/null", "-o", "BatchMode=yes"]);
        ssh.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        ssh.args(["-o", "ConnectTimeout=60", "-o", "ServerAliveInterval=30"]);
        ssh.args(["-o", "IdentitiesOnly=yes", "-p", &self.port().to_string(), "-i"]);
        ssh.arg(self.key()).arg(who.login());
        ssh
    }

    /// Mounts the disks, gives them to the user, and sets whether the user's services linger.
    pub(super) fn prepare(&self, linger: bool) -> Result<(), ChoreFailure> {
        let linger = if linger { "linger" } else { "" };
        let script = PREPARE.replace("@LINGER@", linger);
        match self.ssh(Who::Root, &script)? {
            0 => Ok(()),
            code => Err(ChoreFailure::Found(format!("the machine's set-up failed: {code}"))),
        }
    }

    /// Copies what the command left in `~/results` there into a directory here.
    pub(super) fn fetch_results(&self, into: &Path) -> Result<(), ChoreFailure> {
        let _ = std::fs::remove_dir_all(into);
        std::fs::create_dir_all(into).map_err(on_file("create", into))?;
        let mut ssh = self.ssh_command(Who::Root);
        ssh.arg("tar -C /home/tester/results -c .").stdin(Stdio::null()).stdout(Stdio::piped());
        let not_started = |source| ChoreFailure::NotStarted { program: "ssh".to_owned(), source };
        let mut ssh = ssh.spawn().map_err(not_started)?;
        let archive = ssh.stdout.take().expect("it was asked to be a pipe");
        run(Command::new("tar").args(["--no-same-owner", "-x", "-C"]).arg(into).stdin(archive))?;
        ssh.wait().map(drop).map_err(not_started)
    }
}

/// Waits for the first line that a command says, then for `moment`, and forgets the command.
pub(super) fn cut_after_first_words(
    mut command: Child,
    moment: Duration,
) -> Result<Duration, ChoreFailure> {
    let output = command.stdout.take().expect("it was asked to be a pipe");
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).map_err(on_file("read", Path::new("ssh")))?;
    if line.is_empty() {
        return Err(ChoreFailure::Found("it ended before it said a word".to_owned()));
    }
    std::thread::sleep(moment);
    let _ = command.kill();
    command.wait().map_err(on_file("end", Path::new("ssh")))?;
    Ok(moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        let words = ["a b", "it's", "$HOME", ""].map(str::to_owned);
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("printf '%s|' {}", quoted(&words)));
        let output = shell.output().expect("there is a shell");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|it's|$HOME||");
    }
}
