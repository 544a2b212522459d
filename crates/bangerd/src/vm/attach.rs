//! Watching a VM through its shim.

use std::path::Path;
use std::time::Duration;

use banger_api::vm::VmStatus;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::end::is_locked;
use crate::host::Shims;

/// Pause between two tries to reach a shim that is alive and does not answer.
const RETRY: Duration = Duration::from_millis(100);
/// How long a shim may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The daemon's eye on a VM.
#[derive(Debug, Default)]
pub(super) struct Eye {
    changes: Option<mpsc::Receiver<VmStatus>>,
}

impl Eye {
    /// The next status, or None when nothing of the VM is alive or soon will be. Connects first if
    /// it must, as long as the VM lives. May be cancelled without losing anything.
    pub(super) async fn next(&mut self, shims: &dyn Shims, vm_dir: &Path) -> Option<VmStatus> {
        loop {
            if let Some(changes) = &mut self.changes {
                return changes.recv().await;
            }
            match timeout(ANSWER, shims.watch(vm_dir)).await {
                Ok(Ok(changes)) => self.changes = Some(changes),
                Ok(Err(problem)) => {
                    tracing::debug!(dir = %vm_dir.display(), "cannot watch the VM: {problem}");
                    if !is_locked(shims, vm_dir) {
                        return None;
                    }
                    sleep(RETRY).await;
                }
                Err(_) => tracing::warn!(dir = %vm_dir.display(), "the shim does not answer"),
            }
        }
    }
}
