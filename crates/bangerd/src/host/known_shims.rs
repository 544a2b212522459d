//! What this daemon remembers of shims that it has talked to, for the time when they are gone.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_core::lifecycle::Traces;
use banger_host::supervisor::{Ends, Supervisor};
use tokio::net::UnixStream;

/// Shims, by their VMs' directories.
#[derive(Debug, Clone)]
pub struct KnownShims {
    ends: Ends,
    shims: Arc<Mutex<BTreeMap<PathBuf, Supervisor>>>,
}

impl KnownShims {
    /// None yet. `ends` is told how this process's children end.
    #[must_use]
    pub fn new(ends: Ends) -> Self {
        Self { ends, shims: Arc::default() }
    }

    /// Notes who is at the other end of a connection.
    pub fn note(&self, vm_dir: &Path, stream: &UnixStream) {
        let Some(pid) = stream.peer_cred().ok().and_then(|peer| peer.pid()) else { return };
        if self.shims().get(vm_dir).is_some_and(|known| known.is(pid) && known.is_alive()) {
            return;
        }
        match Supervisor::new(pid, &self.ends) {
            Ok(found) => drop(self.shims().insert(vm_dir.to_owned(), found)),
            Err(error) => tracing::debug!(dir = %vm_dir.display(), "cannot note its shim: {error}"),
        }
    }

    /// Whether the shim that was noted lives.
    #[must_use]
    pub fn is_alive(&self, vm_dir: &Path) -> bool {
        self.shims().get(vm_dir).is_some_and(Supervisor::is_alive)
    }

    /// Ends the shim that was noted with SIGKILL. Whether there was one.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn kill(&self, vm_dir: &Path) -> io::Result<bool> {
        self.shims().get(vm_dir).map_or(Ok(false), Supervisor::kill)
    }

    /// Forgets a shim whose last word says how it ended.
    pub fn forget(&self, vm_dir: &Path) {
        self.shims().remove(vm_dir);
    }

    /// What tells how a shim ended that is gone; it is forgotten.
    pub async fn traces(&self, vm_dir: &Path) -> Traces {
        let Some(shim) = self.shims().remove(vm_dir) else { return Traces::default() };
        let exit = shim.ended(&self.ends).await;
        Traces { exit, out_of_memory: shim.ran_out_of_memory(), rebooted: false }
    }

    fn shims(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Supervisor>> {
        self.shims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
