//! What a new process does between the fork and the program.
//!
//! Another thread of the agent may have held any lock at the moment of the fork. So nothing here
//! allocates, locks or panics: only system calls, on data that was laid out before.

use std::ffi::CStr;
use std::io;

use libc::{c_char, c_int, c_long};

use super::command::Credentials;
use super::spawn::Descriptor;

/// Length of what a child reports: a step and an error number.
pub const REPORT_LEN: usize = 8;

/// Open files of a command: what other init systems give.
static OPEN_FILES: libc::rlimit = libc::rlimit { rlim_cur: 1024, rlim_max: 524_288 };

/// Everything a child needs. Arrays end with a null pointer.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Files to try in turn.
    pub programs: &'a [*const c_char],
    /// Arguments.
    pub argv: &'a [*const c_char],
    /// Environment.
    pub env: &'a [*const c_char],
    /// Working directory.
    pub workdir: &'a CStr,
    /// Otherwise `/` will do.
    pub workdir_required: bool,
    /// New identity.
    pub credentials: Option<&'a Credentials>,
    /// What becomes 0, 1 and 2.
    pub stdio: [Descriptor; 3],
    /// They are a terminal.
    pub terminal: bool,
    /// The directory of the cgroup to join, if it was not made in it.
    pub group: Option<Descriptor>,
    /// Where to say what failed; closes when the program runs.
    pub report: Descriptor,
}

/// What a child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Joining its cgroup.
    Group = 1,
    /// Beginning a session.
    Session,
    /// Taking its terminal.
    Terminal,
    /// Taking its streams.
    Streams,
    /// Becoming its user.
    Identity,
    /// Entering its directory.
    Directory,
    /// Becoming the program.
    Program,
}

impl Step {
    const ALL: [Self; 7] = [
        Self::Group,
        Self::Session,
        Self::Terminal,
        Self::Streams,
        Self::Identity,
        Self::Directory,
        Self::Program,
    ];

    /// What failed, in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Group => "joining the command's cgroup failed",
            Self::Session => "beginning a session failed",
            Self::Terminal => "taking the terminal failed",
            Self::Streams => "taking the streams failed",
            Self::Identity => "becoming the user failed",
            Self::Directory => "entering the working directory failed",
            Self::Program => "starting the program failed",
        }
    }
}

/// Reads what a child reported; None if it had nothing to report.
pub fn parse_report(bytes: &[u8]) -> Option<(Step, io::Error)> {
    let (step, error) = bytes.split_first_chunk::<4>()?;
    let step = u32::from_ne_bytes(*step);
    let error = c_int::from_ne_bytes(*error.first_chunk::<4>()?);
    let step = Step::ALL.into_iter().find(|known| u32::from(*known as u8) == step)?;
    Some((step, io::Error::from_raw_os_error(error)))
}

/// Becomes the program, or reports why not and exits.
///
/// # Safety
/// To be called only in the child of a fork, with all signals blocked. The pointers in `plan` lead
/// to NUL-terminated strings, and its arrays end with null.
pub unsafe fn run(plan: &Plan<'_>) -> ! {
    // SAFETY: the caller's promises are exactly what `become_program` and these calls need.
    unsafe {
        let (step, error) = match become_program(plan) {
            Err(failed) => failed,
            Ok(never) => match never {},
        };
        let mut report = [0; REPORT_LEN];
        report[..4].copy_from_slice(&u32::from(step as u8).to_ne_bytes());
        report[4..].copy_from_slice(&error.to_ne_bytes());
        libc::write(plan.report, report.as_ptr().cast(), REPORT_LEN);
        libc::_exit(127)
    }
}

/// # Safety
/// As for [`run`].
unsafe fn become_program(plan: &Plan<'_>) -> Result<std::convert::Infallible, (Step, c_int)> {
    // SAFETY: system calls on descriptors and strings that `plan` promises.
    unsafe {
        if let Some(group) = plan.group {
            let flags = libc::O_WRONLY | libc::O_CLOEXEC;
            let members = libc::openat(group, c"cgroup.procs".as_ptr(), flags);
            check(Step::Group, members.into())?;
            check(Step::Group, libc::write(members, c"0".as_ptr().cast(), 1) as c_long)?;
        }
        check(Step::Session, libc::setsid().into())?;
        if plan.terminal {
            check(Step::Terminal, libc::ioctl(plan.stdio[0], libc::TIOCSCTTY, 0).into())?;
        }
        for (number, descriptor) in (0..).zip(plan.stdio) {
            check(Step::Streams, libc::dup2(descriptor, number).into())?;
        }
        leave_agent_settings();
        if let Some(credentials) = plan.credentials {
            become_user(credentials)?;
        }
        enter(plan)?;
        reset_signals();
        Err((Step::Program, execute(plan)))
    }
}

/// Gives up what only the agent has. None of it can keep a command from running. Descriptors are
/// closed by `execve`, so that a failure can still be reported.
///
/// # Safety
/// As for [`run`].
unsafe fn leave_agent_settings() {
    // SAFETY: plain system calls; the path and the bytes are constants.
    unsafe {
        let flags = libc::O_WRONLY | libc::O_CLOEXEC;
        let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), flags);
        if score >= 0 {
            libc::write(score, c"0".as_ptr().cast(), 1);
            libc::close(score);
        }
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const OPEN_FILES);
        libc::umask(0o022);
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

/// # Safety
/// As for [`run`].
unsafe fn become_user(credentials: &Credentials) -> Result<(), (Step, c_int)> {
    let Credentials { uid, gid, groups } = credentials;
    // The system calls themselves: the C library's functions would talk to other threads.
    // SAFETY: the array of groups is as long as said.
    unsafe {
        let set = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
        check(Step::Identity, set)?;
        check(Step::Identity, libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid))?;
        check(Step::Identity, libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid))
    }
}

/// # Safety
/// As for [`run`].
unsafe fn enter(plan: &Plan<'_>) -> Result<(), (Step, c_int)> {
    // SAFETY: both paths are NUL-terminated.
    unsafe {
        let entered = check(Step::Directory, libc::chdir(plan.workdir.as_ptr()).into());
        if plan.workdir_required {
            return entered;
        }
        entered.or_else(|_| check(Step::Directory, libc::chdir(c"/".as_ptr()).into()))
    }
}

/// Undoes the agent's handlers, what it ignores, and the mask around the fork.
///
/// # Safety
/// As for [`run`].
unsafe fn reset_signals() {
    const LAST_SIGNAL: c_int = 64;
    // SAFETY: all zeros is the default action; the calls read the structures given.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for number in 1..=LAST_SIGNAL {
            // Fails for the few whose action cannot be changed.
            libc::sigaction(number, &raw const default, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Tries the candidates as `execvp` does; returns the error to report.
///
/// # Safety
/// As for [`run`].
unsafe fn execute(plan: &Plan<'_>) -> c_int {
    let mut error = libc::ENOENT;
    for program in plan.programs.iter().take_while(|program| !program.is_null()) {
        // SAFETY: all pointers lead to what `execve` expects; it returns only on failure.
        let failed = unsafe {
            libc::execve(*program, plan.argv.as_ptr(), plan.env.as_ptr());
            *libc::__errno_location()
        };
        match failed {
            libc::ENOENT | libc::ENOTDIR => {}
            // Another directory may have one that is allowed.
            libc::EACCES => error = failed,
            _ => return failed,
        }
    }
    error
}

fn check(step: Step, result: c_long) -> Result<(), (Step, c_int)> {
    if result >= 0 {
        return Ok(());
    }
    // SAFETY: the location is this thread's own.
    Err((step, unsafe { *libc::__errno_location() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        let report = |step: u32, error: c_int| [step.to_ne_bytes(), error.to_ne_bytes()].concat();
        let (step, error) = parse_report(&report(7, libc::ENOENT)).expect("a report");
        assert_eq!((step, error.raw_os_error()), (Step::Program, Some(libc::ENOENT)));
        assert!(parse_report(b"").is_none());
        assert!(parse_report(&report(99, 1)).is_none());
        assert!(parse_report(&report(1, 1)[..7]).is_none());
    }
}
