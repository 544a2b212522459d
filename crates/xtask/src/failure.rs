//! How a chore fails, and the two things all chores do: start a program and touch a file.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Why a chore could not be done.
#[derive(Debug, thiserror::Error)]
pub enum ChoreFailure {
    /// A file would not do what was asked.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was asked: `read`, `replace`.
        action: &'static str,
        /// Of which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program}")]
    NotStarted {
        /// Its name.
        program: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{command} failed: {status}")]
    Program {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// A machine that was worked with does not answer any more.
    #[error("{0}")]
    Lost(&'static str),
    /// Something was checked and is not as it must be; the details are printed already.
    #[error("{0}")]
    Found(String),
}

/// Wraps an I/O error with what was tried on which file.
pub fn on_file<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> ChoreFailure + 'a {
    move |source| ChoreFailure::File { action, path: path.to_owned(), source }
}

/// Runs a command to its end, its output going where ours goes.
///
/// # Errors
/// If it cannot be started or does not succeed.
pub fn run(command: &mut Command) -> Result<(), ChoreFailure> {
    let status = command.status().map_err(|source| not_started(command, source))?;
    succeeded(command, status)
}

/// Runs a command to its end and gives what it wrote to its standard output.
///
/// # Errors
/// If it cannot be started or does not succeed.
pub fn capture(command: &mut Command) -> Result<String, ChoreFailure> {
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|source| not_started(command, source))?;
    succeeded(command, output.status)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn not_started(command: &Command, source: std::io::Error) -> ChoreFailure {
    ChoreFailure::NotStarted { program: command.get_program().to_string_lossy().into(), source }
}

fn succeeded(command: &Command, status: ExitStatus) -> Result<(), ChoreFailure> {
    if status.success() {
        return Ok(());
    }
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    Err(ChoreFailure::Program { command: words.join(" "), status })
}
