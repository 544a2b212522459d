//! Watching a VM through its shim.

use std::path::Path;
use std::time::Duration;

use banger_api::vm::VmStatus;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::end::is_locked;
use crate::host::Shims;

/// First and longest pause between two tries to reach a shim that is alive and does not answer.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_millis(100);
/// How long a shim may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The daemon's eye on a VM.
#[derive(Debug, Default)]
pub(super) struct Eye {
    changes: Option<mpsc::Receiver<VmStatus>>,
    /// The shim has said that the VM ended.
    ended: bool,
}

impl Eye {
    /// The next status, or None when nothing of the VM is alive or soon will be. Connects first if
    /// it must, as long as the VM lives. May be cancelled without losing anything.
    pub(super) async fn next(&mut self, shims: &dyn Shims, vm_dir: &Path) -> Option<VmStatus> {
        let mut pause = FIRST_RETRY;
        loop {
            if let Some(changes) = &mut self.changes {
                if let Some(status) = changes.recv().await {
                    self.ended = status.end.is_some();
                    return Some(status);
                }
                // A connection can break without the VM's having ended.
                self.changes = None;
                if self.ended {
                    return None;
                }
            }
            match timeout(ANSWER, shims.watch(vm_dir)).await {
                Ok(Ok(changes)) => self.changes = Some(changes),
                Ok(Err(problem)) => {
                    tracing::debug!(dir = %vm_dir.display(), "cannot watch the VM: {problem}");
                    if !is_locked(shims, vm_dir) {
                        return None;
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_RETRY);
                }
                Err(_) => tracing::warn!(dir = %vm_dir.display(), "the shim does not answer"),
            }
        }
    }
}

/// The status file of a VM; None if there is none that can be read.
#[must_use]
pub fn read_status(file: &Path) -> Option<VmStatus> {
    let json = std::fs::read(file).ok()?;
    serde_json::from_slice(&json)
        .inspect_err(|error| tracing::warn!(file = %file.display(), "cannot be read: {error}"))
        .ok()
}
