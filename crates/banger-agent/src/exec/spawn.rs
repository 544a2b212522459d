//! The fork, seen from the agent.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::cgroup::Group;
use super::child::{self, Step};
use super::command::Command;
use super::stdio::ChildEnds;
use crate::reaper::{Ended, Reaper};

/// A process that has become the program.
#[derive(Debug)]
pub struct Child {
    /// Its id, which is also its process group's and its session's.
    pub pid: i32,
    /// How it ended, once it has.
    pub ended: Ended,
}

impl Child {
    /// Its id while it runs. After that the number may be another process's.
    pub fn running(&self) -> Option<i32> {
        self.ended.borrow().is_none().then_some(self.pid)
    }
}

/// Why there is no such process.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The kernel makes no process.
    #[error("a process cannot be made")]
    Fork(#[source] io::Error),
    /// The process could not become the program.
    #[error("{}", .step.words())]
    Child {
        /// What it was doing.
        step: Step,
        /// Why it failed.
        source: io::Error,
    },
}

/// Makes a process that runs `command` in `group`.
///
/// Waiting for it to become the program does not block the agent: its file may lie on a file system
/// that takes its time.
pub async fn spawn(
    reaper: &Reaper,
    command: &Command,
    ends: ChildEnds,
    group: &Group,
) -> Result<Child, SpawnError> {
    let (report, child_report) = pipe2(OFlag::O_CLOEXEC).map_err(|e| SpawnError::Fork(e.into()))?;
    let mut child = fork(reaper, command, &ends, group, &child_report).map_err(SpawnError::Fork)?;
    drop((ends, child_report));
    let report = read_report(report).await.map_err(SpawnError::Fork)?;
    let Some((step, source)) = report else { return Ok(child) };
    // It is about to exit; its group can be removed after that.
    let _ = child.ended.wait_for(Option::is_some).await;
    Err(SpawnError::Child { step, source })
}

/// Forks and registers the child before anything else can happen on this thread.
fn fork(
    reaper: &Reaper,
    command: &Command,
    ends: &ChildEnds,
    group: &Group,
    report: &OwnedFd,
) -> io::Result<Child> {
    let programs = pointers(&command.programs);
    let argv = pointers(&command.argv);
    let env = pointers(&command.env);
    let mut plan = child::Plan {
        programs: &programs,
        argv: &argv,
        env: &env,
        workdir: &command.workdir.path,
        workdir_required: command.workdir.required,
        credentials: command.credentials.as_ref(),
        stdio: ends.stdio.each_ref().map(AsRawFd::as_raw_fd),
        terminal: ends.terminal,
        group: None,
        report: report.as_raw_fd(),
    };
    // The child shares the agent's signal handlers until it has reset them.
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let mut forked = Err(io::Error::from(io::ErrorKind::Unsupported));
    if let Some(dir) = group.dir() {
        // SAFETY: the child makes only calls that are allowed after a fork; see `child::run`.
        forked = unsafe { fork_into(dir) };
    }
    if forked.is_err() {
        plan.group = group.dir().map(|dir| dir.as_raw_fd());
        // SAFETY: as above.
        forked = nix::errno::Errno::result(unsafe { libc::fork() }).map_err(Into::into);
    }
    if let Ok(0) = forked {
        // SAFETY: this is the child of a fork with all signals blocked, and `plan` is complete.
        unsafe { child::run(&plan) }
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    forked.map(|pid| Child { pid, ended: reaper.register(pid) })
}

/// `struct clone_args` of the kernel, as far as it is used: the rest is zero.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    unused: [u64; 3],
    exit_signal: u64,
    unused_too: [u64; 5],
    cgroup: u64,
}

/// The child is in that cgroup.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A fork whose child is in a cgroup from the start, since Linux 5.7. Whoever moves there later waits until
/// all processors have noticed, which takes an emulated guest some milliseconds.
///
/// # Safety
/// As for `fork`; and the C library does not know of it, so the child may only make system calls.
unsafe fn fork_into(cgroup: BorrowedFd<'_>) -> io::Result<i32> {
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        cgroup: u64::from(cgroup.as_raw_fd().unsigned_abs()),
        ..CloneArgs::default()
    };
    // SAFETY: the structure is as long as said, and lives as long as the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match i32::try_from(pid) {
        Ok(-1) | Err(_) => Err(io::Error::last_os_error()),
        Ok(pid) => Ok(pid),
    }
}

/// A null-terminated array of pointers, as `execve` takes it.
fn pointers(strings: &[std::ffi::CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// Waits until the child has become the program, or says why it has not.
async fn read_report(report: OwnedFd) -> io::Result<Option<(Step, io::Error)>> {
    let mut bytes = Vec::new();
    let limit = child::REPORT_LEN as u64;
    Receiver::from_owned_fd(report)?.take(limit).read_to_end(&mut bytes).await?;
    Ok(child::parse_report(&bytes))
}

/// For [`child::Plan`]: descriptors are plain numbers after a fork.
pub type Descriptor = RawFd;
