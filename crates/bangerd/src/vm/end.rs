//! Ending a VM: politely through its shim, and when that does not help, without asking.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_api::step;
use banger_api::vm::{EndCause, StopVm, VmState, VmStatus};
use banger_core::lifecycle::plain_end;
use tokio::time::{sleep, timeout};

use crate::daemon::Daemon;
use crate::host::Shims;

/// How long a shim may take to answer a request.
const ANSWER: Duration = Duration::from_secs(5);
/// How long after its own deadline a shim may take until everything is gone.
const SLACK: Duration = Duration::from_secs(5);
/// First and longest pause between two looks at a VM's lock.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LONGEST_LOOK: Duration = Duration::from_millis(50);
/// How often a shim is killed again that does not die.
const KILL_AGAIN: Duration = Duration::from_secs(2);

/// How to end a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Sync, unmount, power off.
    Stop(StopVm),
    /// At once.
    Kill,
}

impl How {
    fn patience(self) -> Duration {
        match self {
            Self::Stop(stop) => Duration::from_millis(stop.grace_ms).saturating_add(SLACK),
            Self::Kill => SLACK,
        }
    }

    fn cause(self) -> EndCause {
        match self {
            Self::Stop(_) => EndCause::StopTimedOut,
            Self::Kill => EndCause::Killed,
        }
    }
}

/// Set when a shim had to be killed, for the record of the VM's end.
#[derive(Debug, Clone, Default)]
pub(super) struct Forced(Arc<Mutex<Option<(EndCause, String)>>>);

impl Forced {
    fn set(&self, cause: EndCause, why: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((cause, why.to_owned()));
    }

    /// Corrects the status of a VM whose shim could not write its own: it was killed on request.
    pub(super) fn correct(&self, status: VmStatus) -> VmStatus {
        let forced = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let by_itself = status.end.as_ref().is_none_or(|end| end.cause != EndCause::ShimGone);
        match forced {
            Some((cause, why)) if !by_itself => {
                let mut warnings = status.warnings;
                warnings.push(why.clone());
                VmStatus {
                    state: VmState::Stopped,
                    end: Some(plain_end(cause, &why)),
                    warnings,
                    ..status
                }
            }
            _ => status,
        }
    }
}

/// Ends a VM, one way or the other. Returns when nothing of it is alive.
pub(super) async fn end(daemon: Arc<Daemon>, vm_dir: &Path, how: How, forced: Forced) {
    let shims = Arc::clone(&daemon.host.shims);
    let asked = timeout(ANSWER, async {
        daemon.gate.pass(step::STOP_ASK).await?;
        match how {
            How::Stop(stop) => shims.stop(vm_dir, stop).await,
            How::Kill => shims.kill(vm_dir).await,
        }
    })
    .await;
    let why = match asked {
        Ok(Ok(())) => {
            if timeout(how.patience(), unlocked(shims.as_ref(), vm_dir)).await.is_ok() {
                return;
            }
            "its supervisor did not end it in time, so it was killed"
        }
        Ok(Err(problem)) => {
            tracing::info!(dir = %vm_dir.display(), "the shim does not answer: {problem}");
            "its supervisor did not answer, so it was killed"
        }
        Err(_) => "its supervisor did not answer in time, so it was killed",
    };
    // It may have ended in the very moment in which it was asked.
    if is_locked(shims.as_ref(), vm_dir) {
        forced.set(how.cause(), why);
        kill_until_unlocked(shims.as_ref(), vm_dir).await;
    }
}

/// Kills a VM's shim until nothing of the VM is alive.
pub(super) async fn kill_until_unlocked(shims: &dyn Shims, vm_dir: &Path) {
    let mut tries: u32 = 0;
    loop {
        match shims.kill_shim(vm_dir) {
            Ok(_) => {}
            Err(error) => tracing::warn!(dir = %vm_dir.display(), "cannot kill the shim: {error}"),
        }
        // A shim that has just begun cannot be found yet, so look again soon at first.
        let pause = if tries < 50 { Duration::from_millis(20) } else { KILL_AGAIN };
        if timeout(pause, unlocked(shims, vm_dir)).await.is_ok() {
            return;
        }
        tries = tries.saturating_add(1);
        if tries > 50 {
            tracing::warn!(dir = %vm_dir.display(), "the VM was killed and is still alive");
        }
    }
}

/// Waits until nothing may write the VM's disks any more.
pub(super) async fn unlocked(shims: &dyn Shims, vm_dir: &Path) {
    let mut pause = FIRST_LOOK;
    while is_locked(shims, vm_dir) {
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_LOOK);
    }
}

/// Whether anything may write the VM's disks. What cannot be told is taken for alive.
pub(crate) fn is_locked(shims: &dyn Shims, vm_dir: &Path) -> bool {
    shims.is_locked(vm_dir).unwrap_or_else(|error| {
        tracing::warn!(dir = %vm_dir.display(), "cannot ask for the VM's lock: {error}");
        true
    })
}
