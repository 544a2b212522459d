//! What can go wrong when a tool runs, and what a person can do about it.

use std::io;
use std::process::ExitStatus;

use banger_api::{ErrorCode, Problem};

use super::package_of;

/// How many of the last lines on stderr a person is shown.
const SHOWN_LINES: usize = 8;

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{program} is not installed")]
    Missing {
        /// Its name.
        program: String,
    },
    /// It could not be started.
    #[error("cannot start {program}")]
    Start {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The machine refused the namespaces that it was to run in.
    #[error("cannot isolate {program}: {reason}")]
    Isolation {
        /// Its name.
        program: String,
        /// What the machine said.
        reason: String,
    },
    /// It ended with a failure.
    #[error("{program} failed with {status}")]
    Failed {
        /// Its name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines on stderr.
        stderr: Vec<String>,
    },
    /// It wrote more to stdout than anybody expects of it.
    #[error("{program} wrote more than {limit} bytes")]
    TooMuchOutput {
        /// Its name.
        program: String,
        /// The limit.
        limit: usize,
    },
    /// Its streams could not be read or written.
    #[error("cannot talk to {program}")]
    Streams {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It was called off.
    #[error("{program} was cancelled")]
    Cancelled {
        /// Its name.
        program: String,
    },
}

impl ToolError {
    /// Whether it was called off.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled { .. })
    }

    /// Whether it failed because a disk is full, by its own words.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        self.stderr().iter().any(|line| says_disk_full(line))
    }

    /// The last lines on stderr of a tool that failed.
    #[must_use]
    pub fn stderr(&self) -> &[String] {
        match self {
            Self::Failed { stderr, .. } => stderr,
            _ => &[],
        }
    }

    /// The kind of failure. A tool that just failed has none of its own: `otherwise` says what its
    /// failing means to the caller.
    #[must_use]
    pub fn code(&self, otherwise: ErrorCode) -> ErrorCode {
        match self {
            Self::Missing { .. } => ErrorCode::HostProgramMissing,
            Self::Isolation { .. } => ErrorCode::HostNotPermitted,
            Self::Cancelled { .. } => ErrorCode::Cancelled,
            _ if self.is_disk_full() => ErrorCode::HostDiskFull,
            _ => otherwise,
        }
    }

    /// What to type next, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { program } => {
                let package = package_of(program)?;
                Some(format!("sudo apt-get install {package}"))
            }
            Self::Isolation { reason, .. } => Some(isolation_hint(reason)),
            _ if self.is_disk_full() => Some("banger system df".to_owned()),
            _ => None,
        }
    }

    /// The lines on stderr that a person should see: of a full disk the first complaint, else the
    /// last lines.
    fn telling_lines(&self) -> &[String] {
        let lines = self.stderr();
        match lines.iter().position(|line| says_disk_full(line)) {
            Some(first) => &lines[first..=first],
            None => &lines[lines.len().saturating_sub(SHOWN_LINES)..],
        }
    }

    /// The same for the API: `title` says what banger was doing.
    #[must_use]
    pub fn problem(&self, title: impl Into<String>, otherwise: ErrorCode) -> Problem {
        let mut problem = Problem::new(self.code(otherwise), title).because(self);
        for line in self.telling_lines() {
            problem = problem.cause(printable(line));
        }
        problem.hint = self.hint();
        problem
    }
}

/// Whether a line says that a disk is full.
fn says_disk_full(line: &str) -> bool {
    // The last one is apt's.
    ["No space left on device", "Disk quota exceeded", "have enough free space in"]
        .iter()
        .any(|words| line.contains(words))
}

/// What mends a refused namespace, from the words of `unshare`, `newuidmap` and `newgidmap`.
fn isolation_hint(reason: &str) -> String {
    if reason.contains("/etc/sub") || reason.contains("not allowed") {
        return "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"
            .to_owned();
    }
    if reason.contains("newuidmap") || reason.contains("newgidmap") {
        return "sudo apt-get install uidmap".to_owned();
    }
    "banger doctor".to_owned()
}

/// A line of a program without its control characters.
fn printable(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn failed(stderr: &[&str]) -> ToolError {
        ToolError::Failed {
            program: "mke2fs".to_owned(),
            status: ExitStatus::from_raw(1 << 8),
            stderr: stderr.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    #[test]
    fn a_failure_carries_the_last_words() {
        let problem = failed(&["one", "\x1b[1mtwo"]).problem("no disk", ErrorCode::PullFailed);
        assert_eq!(problem.code, ErrorCode::PullFailed);
        assert_eq!(problem.to_string(), "no disk: mke2fs failed with exit status: 1: one: [1mtwo");
    }

    #[test]
    fn a_full_disk_is_recognised_and_told_once() {
        let full = "write failed: No space left on device";
        let problem = failed(&["hello", full, full, "bye"]).problem("no", ErrorCode::PullFailed);
        assert_eq!(problem.code, ErrorCode::HostDiskFull);
        assert_eq!(problem.causes[1..], [full]);
    }

    #[test]
    fn of_many_last_words_the_last_are_shown() {
        let lines: Vec<String> = (0..30).map(|number| number.to_string()).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let problem = failed(&lines).problem("no", ErrorCode::PullFailed);
        assert_eq!(problem.causes[1..], lines[22..]);
    }

    #[test]
    fn hints_are_commands() {
        let isolation = |reason: &str| ToolError::Isolation {
            program: "tar".to_owned(),
            reason: reason.to_owned(),
        };
        let cases = [
            (ToolError::Missing { program: "mke2fs".to_owned() }, "install e2fsprogs"),
            (isolation("no line matching user \"x\" in /etc/subuid"), "--add-subuids"),
            (isolation("failed to execute newuidmap: No such file"), "install uidmap"),
            (isolation("unshare failed: Operation not permitted"), "banger doctor"),
        ];
        for (error, want) in cases {
            let hint = error.hint().expect("each has one");
            assert!(hint.contains(want), "{hint}");
        }
    }
}
