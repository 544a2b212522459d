//! Why a command did not start, for people: what failed, because of what, what to do.

use std::io;
use std::path::Path;

use banger_api::exec::ExecEnd;
use banger_api::{ErrorCode, Problem};

use super::account::{AccountError, Accounts};
use super::child::Step;
use super::command::Command;
use super::interpreter;
use super::spawn::SpawnError;

/// The guest is out of something that every command needs.
pub fn resource(what: &str, error: &io::Error) -> Problem {
    Problem::new(ErrorCode::ExecFailed, format!("the guest cannot make {what}")).because(error)
}

/// There is nobody of that name to run as.
pub fn no_account(error: &AccountError, accounts: &Accounts) -> Problem {
    let (file, text) = match error {
        AccountError::NoUser(_) => ("/etc/passwd", &accounts.passwd),
        AccountError::NoGroup(_) => ("/etc/group", &accounts.group),
    };
    let cause = match text.is_empty() {
        true => format!("its image has no {file}"),
        false => format!("no line of its {file} has that name"),
    };
    Problem::new(ErrorCode::ExecFailed, error.to_string())
        .cause(cause)
        .hint("name one that it has, or give a number, with -u")
}

/// What to answer for a command that could not be started.
pub fn problem(command: &Command, error: &SpawnError) -> Problem {
    match error {
        SpawnError::Child { step: Step::Program, source } => program(command, source),
        SpawnError::Child { step: Step::Directory, source } => directory(command, source),
        _ => Problem::new(ErrorCode::ExecFailed, "The command could not be started").because(error),
    }
}

/// What to say of a program of the agent's own choice that failed.
pub fn bad_end(command: &Command, end: ExecEnd) -> Problem {
    let how = match end {
        ExecEnd::Exited(code) => format!("it exited with {code}"),
        ExecEnd::Signaled(number) => format!("signal {number} killed it"),
        ExecEnd::TimedOut => "it took too long".to_owned(),
    };
    Problem::new(ErrorCode::ExecFailed, format!("{} failed", command.program_name)).cause(how)
}

fn program(command: &Command, error: &io::Error) -> Problem {
    let name = &command.program_name;
    let not_executable = |reason: &str| {
        Problem::new(ErrorCode::ExecNotExecutable, format!("{name:?} cannot be executed"))
            .cause(reason)
    };
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => not_found(command),
        Some(libc::EACCES) if found(command).is_some_and(Path::is_dir) => {
            not_executable("it is a directory").hint("give the path of a program")
        }
        Some(libc::EACCES) => not_executable("permission denied")
            .hint(format!("make it executable for user {}: chmod +x {name}", command.user)),
        Some(libc::ENOEXEC) => {
            not_executable("it is neither a program for this machine nor a script")
                .hint("a script begins with a line like #!/bin/sh")
        }
        Some(libc::E2BIG) => {
            Problem::new(ErrorCode::ExecFailed, "The arguments and the environment are too long")
                .hint("send long input through stdin instead")
        }
        _ => Problem::new(ErrorCode::ExecNotExecutable, format!("{name:?} cannot be executed"))
            .because(error),
    }
}

fn not_found(command: &Command) -> Problem {
    let name = &command.program_name;
    if let Some(path) = found(command) {
        let title = format!("the VM lacks what {name:?} needs to run");
        let needed = match interpreter::named_in(path) {
            Some(needed) => format!("{needed:?}, which it names, is not"),
            None => "the loader or interpreter that it names is not".to_owned(),
        };
        return Problem::new(ErrorCode::ExecNotFound, title)
            .cause(format!("{} is there, but {needed}", path.display()))
            .hint("install what it needs in the VM, or use a program built for its image");
    }
    let title = format!("the VM has no program {name:?}");
    let problem = Problem::new(ErrorCode::ExecNotFound, title);
    if name.contains('/') {
        return problem.hint("give the path that it has in the VM");
    }
    problem
        .cause(format!("it is in no directory of PATH ({})", command.path))
        .hint("install it in the VM, or give its full path")
}

/// The file that the command's name leads to. Paths relative to its working directory are not looked
/// at again from here.
fn found(command: &Command) -> Option<&Path> {
    let paths = command.programs.iter().filter_map(|path| path.to_str().ok()).map(Path::new);
    paths.filter(|path| path.is_absolute()).find(|path| path.symlink_metadata().is_ok())
}

fn directory(command: &Command, error: &io::Error) -> Problem {
    let path = command.workdir.path.to_string_lossy();
    let title = match error.raw_os_error() {
        Some(libc::ENOENT) => format!("the VM has no directory {path:?}"),
        Some(libc::ENOTDIR) => format!("{path:?} is not a directory in the VM"),
        Some(libc::EACCES) => format!("User {} may not enter {path:?}", command.user),
        _ => {
            return Problem::new(ErrorCode::ExecFailed, format!("{path:?} cannot be entered"))
                .because(error);
        }
    };
    Problem::new(ErrorCode::ExecFailed, title)
        .cause("it was to be the command's working directory")
        .hint("name another one with -w")
}
