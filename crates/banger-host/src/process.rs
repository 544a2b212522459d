//! Children whose end can be awaited without a thread each.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Child, ExitStatus};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

/// A child process with its pidfd.
#[derive(Debug)]
pub struct Watched {
    child: Child,
    pidfd: AsyncFd<OwnedFd>,
}

impl Watched {
    /// Watches a child of this process that nobody else waits for.
    ///
    /// # Errors
    /// Of the kernel.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(child: Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidData)?;
        // The child is not waited for yet, so its number is still its own.
        let pidfd = pidfd_open(Pid::from_raw(pid))?;
        // SAFETY: an OwnedFd is open, and the same, as long as the AsyncFd owns it.
        let pidfd = unsafe { AsyncFd::register(pidfd) }?;
        Ok(Self { child, pidfd })
    }

    /// Waits until it has ended. May be called again.
    ///
    /// # Errors
    /// Of the kernel.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            self.pidfd.readable().await?.clear_ready();
        }
    }

    /// Ends it with SIGKILL. One that has ended already is fine.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }
}

/// What to do if it was a limit of this process that made an error.
#[must_use]
pub fn limit_hint(error: &io::Error) -> Option<&'static str> {
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::EAGAIN => Some("end other processes, or raise the limit (ulimit -u)"),
        Errno::EMFILE => Some("raise the limit of open files (ulimit -n)"),
        _ => None,
    }
}

/// Blocks the signals by which sessions and hosts ask their processes to end.
///
/// Async-signal-safe.
pub(crate) fn block_polite_signals() -> io::Result<()> {
    let mut polite = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        polite.add(signal);
    }
    polite.thread_block().map_err(Into::into)
}

/// In a child about to execute a program: of all descriptors beyond the standard three, only `kept`
/// stay open. What this process itself inherited from who knows where does not reach a VM.
///
/// Async-signal-safe.
pub(crate) fn keep_only(kept: &[RawFd]) -> io::Result<()> {
    // SAFETY: close_range takes three numbers; with this flag it closes nothing before the exec.
    let marked =
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if marked == -1 {
        return Err(io::Error::last_os_error());
    }
    for &fd in kept {
        // SAFETY: F_SETFD takes a number and touches no memory.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A descriptor that means this process for good, whatever becomes of its number.
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave this descriptor to nobody else.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

/// Sends a signal to the process that a descriptor is of; 0 only asks. Whether it was there.
pub(crate) fn pidfd_signal(pidfd: &OwnedFd, signal: libc::c_int) -> io::Result<bool> {
    // SAFETY: pidfd_send_signal with a null siginfo touches no memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        error => Err(error),
    }
}

/// Waits until a process has ended, also if it is nobody's child any more.
///
/// # Panics
/// Outside of a tokio runtime.
pub(crate) async fn gone(pidfd: &OwnedFd) -> io::Result<()> {
    // SAFETY: an OwnedFd is open, and the same, as long as the AsyncFd owns it.
    let pidfd = unsafe { AsyncFd::register(pidfd.try_clone()?) }?;
    pidfd.readable().await.map(drop)
}

/// Collects a child that has ended; `StillAlive` if it has not. An error if it is no child, or was
/// collected before.
pub(crate) fn collect(pidfd: &OwnedFd) -> io::Result<WaitStatus> {
    waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)
        .map_err(Into::into)
}

/// Memory that the processes of a `/proc` share with nobody, in bytes: what none of them has in common
/// with a file. Who ends meanwhile does not count.
#[must_use]
pub fn private_bytes(proc: &Path) -> u64 {
    // SAFETY: sysconf takes a number and touches no memory.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let processes = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let of_one = |process: std::fs::DirEntry| {
        // Size, resident, and of that what is of files or shared, in pages.
        let counts = std::fs::read_to_string(process.path().join("statm")).ok()?;
        let mut counts = counts.split_whitespace().skip(1).map(str::parse::<u64>);
        let (resident, shared) = (counts.next()?.ok()?, counts.next()?.ok()?);
        Some(resident.saturating_sub(shared).saturating_mul(page))
    };
    processes.filter_map(of_one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_told_from_other_trouble() {
        let hint = |number| limit_hint(&io::Error::from_raw_os_error(number));
        assert!(hint(libc::EMFILE).is_some_and(|hint| hint.contains("ulimit -n")));
        assert!(hint(libc::EAGAIN).is_some_and(|hint| hint.contains("ulimit -u")));
        assert_eq!(hint(libc::EACCES), None);
    }

    #[test]
    fn private_memory_is_what_is_resident_and_not_shared() {
        let proc = tempfile::tempdir().expect("a directory");
        for (pid, statm) in
            [("1", "900 30 10 5 0 7 0\n"), ("22", "50 5 5 1 0 1 0\n"), ("self", "no")]
        {
            std::fs::create_dir(proc.path().join(pid)).expect("a directory");
            std::fs::write(proc.path().join(pid).join("statm"), statm).expect("write");
        }
        let page = private_bytes(proc.path()) / 20;
        assert!(page.is_power_of_two() && page >= 4096, "{page}");
        assert_eq!(private_bytes(&proc.path().join("1/statm")), 0, "nobody");
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a process to watch")]
    async fn an_end_is_noticed_and_told_again() {
        let child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn().expect("sh");
        let mut watched = Watched::new(child).expect("watch");
        for _ in 0..2 {
            assert_eq!(watched.wait().await.expect("wait").code(), Some(3));
        }
        watched.kill().expect("killing the dead is fine");
    }
}
