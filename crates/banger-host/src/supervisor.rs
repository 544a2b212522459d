//! What the daemon keeps of a shim that it has talked to: who it is, and how it ends.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_core::lifecycle::ShimExit;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use tokio::sync::Notify;

use crate::oom::OomWatch;
use crate::process;

/// How many ends are kept for those who ask later.
const REMEMBERED: usize = 256;
/// How long the end of a child may take to become known once it is gone.
const NEWS: Duration = Duration::from_secs(5);

/// How shims ended that were children of this process.
#[derive(Debug, Clone, Default)]
pub struct Ends {
    known: Arc<Mutex<VecDeque<(i32, ShimExit)>>>,
    news: Arc<Notify>,
}

impl Ends {
    /// Adds what [`crate::shim::reap`] found.
    pub fn add(&self, ended: Vec<(i32, ShimExit)>) {
        let mut known = self.known();
        known.extend(ended);
        let excess = known.len().saturating_sub(REMEMBERED);
        known.drain(..excess);
        drop(known);
        self.news.notify_waiters();
    }

    fn of(&self, pid: i32) -> Option<ShimExit> {
        self.known().iter().rev().find(|(known, _)| *known == pid).map(|(_, exit)| *exit)
    }

    /// A number that is given to a new process says nothing of an older one.
    fn forget(&self, pid: i32) {
        self.known().retain(|(known, _)| *known != pid);
    }

    async fn wait_for(&self, pid: i32) -> ShimExit {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // Registered first: what is added in between wakes it.
            news.as_mut().enable();
            if let Some(exit) = self.of(pid) {
                return exit;
            }
            news.await;
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, VecDeque<(i32, ShimExit)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shim.
#[derive(Debug)]
pub struct Supervisor {
    pid: i32,
    pidfd: OwnedFd,
    is_child: bool,
    oom: OomWatch,
}

impl Supervisor {
    /// The process at the other end of a connection that is open, so that the number is its own.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn new(pid: i32, ends: &Ends) -> io::Result<Self> {
        let pidfd = process::pidfd_open(Pid::from_raw(pid))?;
        ends.forget(pid);
        let is_child = parent(pid) == i32::try_from(std::process::id()).ok();
        Ok(Self { pid, pidfd, is_child, oom: OomWatch::of(pid) })
    }

    /// Whether it is that process.
    #[must_use]
    pub fn is(&self, pid: i32) -> bool {
        self.pid == pid
    }

    /// Whether it lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        process::pidfd_signal(&self.pidfd, 0).unwrap_or(true)
    }

    /// Ends it with SIGKILL. Whether it was there.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn kill(&self) -> io::Result<bool> {
        process::pidfd_signal(&self.pidfd, libc::SIGKILL)
    }

    /// Whether the kernel killed something in its group for want of memory since it is known.
    #[must_use]
    pub fn ran_out_of_memory(&self) -> bool {
        self.oom.has_killed()
    }

    /// How it ended, which only its parent learns. To be asked when it is gone, or about to be.
    pub async fn ended(&self, ends: &Ends) -> Option<ShimExit> {
        if !self.is_child {
            return None;
        }
        let wait = async {
            // Without this the news come as well, only later.
            let _ = process::gone(&self.pidfd).await;
            // Whoever collects orphans may be faster, and knows then.
            match process::collect(&self.pidfd) {
                Ok(WaitStatus::Exited(_, code)) => ShimExit::Exited(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => ShimExit::Signaled(signal as i32),
                _ => ends.wait_for(self.pid).await,
            }
        };
        tokio::time::timeout(NEWS, wait).await.ok()
    }
}

fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_told_when_it_is_known() {
        let ends = Ends::default();
        let asking = tokio::spawn({
            let ends = ends.clone();
            async move { ends.wait_for(7).await }
        });
        tokio::task::yield_now().await;
        ends.add(vec![(7, ShimExit::Signaled(9)), (8, ShimExit::Exited(0))]);
        assert_eq!(asking.await.expect("no panic"), ShimExit::Signaled(9));
        assert_eq!(ends.wait_for(8).await, ShimExit::Exited(0));
        ends.forget(7);
        assert_eq!(ends.of(7), None);
    }

    #[test]
    fn only_so_many_ends_are_kept() {
        let ends = Ends::default();
        ends.add((0..1000).map(|pid| (pid, ShimExit::Exited(0))).collect());
        assert_eq!(ends.known().len(), REMEMBERED);
        assert!(ends.of(999).is_some() && ends.of(0).is_none());
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a process to kill")]
    async fn a_process_is_killed_by_what_it_is() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = i32::try_from(child.id()).expect("a number");
        let supervisor = Supervisor::new(pid, &Ends::default()).expect("it lives");
        assert!(supervisor.is(pid) && supervisor.is_alive());
        assert!(supervisor.kill().expect("it was there"));
        let ended = supervisor.ended(&Ends::default()).await;
        assert_eq!(ended, Some(ShimExit::Signaled(9)), "also if nobody collects orphans");
        child.wait().expect_err("it was collected");
        assert!(!supervisor.is_alive());
        assert!(!supervisor.kill().expect("it is gone"));
    }
}
