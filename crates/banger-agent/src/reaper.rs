//! Collecting every process that ends: the agent's own children and, as the first process, all
//! orphans of the guest.
//!
//! There is one `waitpid` in the agent, so that no exit status can be taken by somebody else. It
//! runs on the same thread that starts children and registers them without waiting in between;
//! therefore a child is always registered before its end is collected.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use banger_api::exec::ExecEnd;
use nix::errno::Errno;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::console;
use crate::exec::cgroup::Cgroups;

/// Becomes `Some` once the process has been collected.
pub type Ended = watch::Receiver<Option<ExecEnd>>;

/// Whose ends are collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those of all children, as the first process must.
    Everyone,
    /// Those of registered children, for tests that share a process with other tests.
    #[cfg(test)]
    Registered,
}

/// The children whose ends somebody waits for.
#[derive(Debug, Default)]
pub struct Reaper {
    waiting: Mutex<HashMap<i32, watch::Sender<Option<ExecEnd>>>>,
    collected: Notify,
}

impl Reaper {
    /// Collects ended processes from now on.
    pub fn start(self: &Arc<Self>, scope: Scope, cgroups: &Arc<Cgroups>) {
        let mut children = match signal(SignalKind::child()) {
            Ok(children) => children,
            Err(error) => {
                console::say(&format!("ended processes cannot be noticed: {error}"));
                return;
            }
        };
        let reaper = Arc::clone(self);
        let cgroups = Arc::clone(cgroups);
        tokio::spawn(async move {
            loop {
                reaper.collect(scope);
                cgroups.sweep();
                reaper.collected.notify_waiters();
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
    }

    /// Asks for the end of a child that has just been started.
    pub fn register(&self, pid: i32) -> Ended {
        let (sender, receiver) = watch::channel(None);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, sender);
        receiver
    }

    /// The end of a child that somebody waits for already; None if no such child runs.
    pub fn watch(&self, pid: i32) -> Option<Ended> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.get(&pid).map(watch::Sender::subscribe)
    }

    /// Waits until some process has been collected.
    pub async fn collected(&self) {
        self.collected.notified().await;
    }

    fn collect(&self, scope: Scope) {
        match scope {
            Scope::Everyone => while self.collect_one(-1) {},
            #[cfg(test)]
            Scope::Registered => {
                let pids: Vec<i32> =
                    self.waiting.lock().expect("no panics").keys().copied().collect();
                for pid in pids {
                    self.collect_one(pid);
                }
            }
        }
    }

    /// Collects one ended process; false if there is none.
    ///
    /// Not through `nix`, whose `WaitStatus` cannot express death by a real-time signal.
    fn collect_one(&self, which: i32) -> bool {
        let mut status = 0;
        // SAFETY: `status` is valid for the one `int` that the call writes.
        let pid = unsafe { libc::waitpid(which, &raw mut status, libc::WNOHANG | libc::__WALL) };
        if pid < 0 {
            return Errno::last() == Errno::EINTR;
        }
        if pid == 0 {
            return false;
        }
        if let Some(end) = end_of(status) {
            self.tell(pid, end);
        }
        true
    }

    fn tell(&self, pid: i32, end: ExecEnd) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
        if let Some(sender) = waiting {
            sender.send_replace(Some(end));
        }
    }
}

/// How a process ended; None if it has not.
fn end_of(status: i32) -> Option<ExecEnd> {
    if libc::WIFEXITED(status) {
        return u8::try_from(libc::WEXITSTATUS(status)).ok().map(ExecEnd::Exited);
    }
    libc::WIFSIGNALED(status).then(|| ExecEnd::Signaled(libc::WTERMSIG(status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_say_how_a_process_ended() {
        let cases = [
            (0, Some(ExecEnd::Exited(0))),
            (3 << 8, Some(ExecEnd::Exited(3))),
            (255 << 8, Some(ExecEnd::Exited(255))),
            (9, Some(ExecEnd::Signaled(9))),
            (0x80 | 11, Some(ExecEnd::Signaled(11))),
            (40, Some(ExecEnd::Signaled(40))),
            (0x137f, None),
        ];
        for (status, want) in cases {
            assert_eq!(end_of(status), want, "{status:#x}");
        }
    }
}
