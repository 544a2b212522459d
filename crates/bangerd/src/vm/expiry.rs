//! VMs with a time to live: when it is over they are stopped cleanly and removed.
//!
//! Nothing is recorded but the moment itself, so a daemon that ends in between begins again, and one
//! that was not there at that moment does it at its next start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_api::{ErrorCode, Problem};
use banger_core::expiry::{Clocks, Deadline};
use banger_core::id::Id;

use super::{Outcome, VmHandle};
use crate::daemon::Daemon;

/// Longest pause between two looks: timers stand still while the host sleeps.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Pause after a removal that failed.
const AGAIN: Duration = Duration::from_secs(10);

/// Watches over all VMs as long as the daemon lives.
pub async fn watch(daemon: Arc<Daemon>) {
    let mut watch = Watch::default();
    loop {
        let pause = watch.look(&daemon, daemon.host.machine.clocks());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = daemon.expiries.notified() => {}
        }
    }
}

/// What is known of the VMs that will go.
#[derive(Debug, Default)]
pub struct Watch {
    /// When each goes, and of which moment that was computed.
    deadlines: BTreeMap<Id, (u64, Deadline)>,
    going: Arc<Mutex<BTreeSet<Id>>>,
}

impl Watch {
    /// Lets those go whose time is over; how long nothing more needs to be done.
    pub fn look(&mut self, daemon: &Arc<Daemon>, now: Clocks) -> Duration {
        let vms = daemon.handles();
        self.deadlines.retain(|id, _| vms.iter().any(|vm| vm.id == *id));
        let mut pause = LONGEST_PAUSE;
        for vm in vms {
            let Some(expires_at_ms) = vm.snapshot().expires_at_ms else { continue };
            let id = vm.id.clone();
            let known = self.deadlines.get(&id).filter(|(of, _)| *of == expires_at_ms);
            let deadline = match known {
                Some((_, deadline)) => *deadline,
                None => Deadline::new(expires_at_ms, now),
            };
            self.deadlines.insert(id.clone(), (expires_at_ms, deadline));
            let left_ms = deadline.left_ms(now);
            if left_ms > 0 {
                pause = pause.min(Duration::from_millis(left_ms));
            } else if self.going.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
                let going = Arc::clone(&self.going);
                tokio::spawn(let_go(Arc::clone(daemon), vm, expires_at_ms, going));
            }
        }
        pause
    }
}

async fn let_go(
    daemon: Arc<Daemon>,
    vm: Arc<VmHandle>,
    at_ms: u64,
    going: Arc<Mutex<BTreeSet<Id>>>,
) {
    if let Err(problem) = expire(&vm, at_ms).await {
        tracing::warn!(vm = %vm.name, "it has expired and cannot be removed: {problem}");
        tokio::time::sleep(AGAIN).await;
    }
    going.lock().unwrap_or_else(PoisonError::into_inner).remove(&vm.id);
    daemon.expiries.notify_one();
}

async fn expire(vm: &VmHandle, at_ms: u64) -> Result<(), Problem> {
    match vm.expire(at_ms).await {
        Ok(Outcome::Accepted(work)) => work.finished().await,
        // It has been given more.
        Ok(Outcome::AlreadySo) => Ok(()),
        // It went by itself.
        Err(problem) if problem.code == ErrorCode::VmNotFound => Ok(()),
        Err(problem) => Err(problem),
    }
}
