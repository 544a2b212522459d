//! Starting a VM with a guest that stands ready: it only has to be told who it is.

use std::path::Path;

use banger_api::{ErrorCode, Problem, step, trace};

use super::end_unknown;
use super::launch::{Failure, Launch, Launched, Needs, launch_spec, unspawned};
use crate::daemon::failed;
use crate::operations::cancelled;
use crate::pool::Guest;

impl Launch {
    /// Has the guest be this VM. None if that did not work: the VM has a disk that nobody has used then, and
    /// can start as any other.
    ///
    /// # Errors
    /// [`Failure`]: `cancelled`, or if there is no such disk. Nothing of the VM is alive then.
    pub(super) async fn claim(
        &self,
        guest: Guest,
        vm_dir: &Path,
    ) -> Result<Option<Launched>, Failure> {
        let failure = match self.try_to_claim(guest, vm_dir).await {
            Ok(launched) => return Ok(Some(launched)),
            Err(failure) => failure,
        };
        end_unknown(&self.daemon, vm_dir).await;
        if failure.problem.code == ErrorCode::Cancelled {
            return Err(failure);
        }
        // The VM starts all the same, only later: nothing for its user to do.
        tracing::warn!(vm = %self.row.name, "the guest that stood ready did not work: {}", failure.problem);
        self.make_disk_anew(vm_dir).await.map_err(unspawned)?;
        Ok(None)
    }

    async fn try_to_claim(&self, guest: Guest, vm_dir: &Path) -> Result<Launched, Failure> {
        self.daemon.gate.pass(step::START_PREPARE).await.map_err(unspawned)?;
        let began = self.trace.begin();
        let needs = Needs::gather(&self.daemon, &self.row).await.map_err(unspawned)?;
        let (mut launch, warnings) = launch_spec(&self.daemon, &self.row, &self.request, &needs);
        self.trace.end(trace::DAEMON_NEEDS, began);
        if *needs.template(&self.daemon, &launch).key() != guest.template {
            let stale =
                Problem::new(ErrorCode::TemplateFailed, "it is made of what is no longer so");
            return Err(unspawned(stale));
        }
        launch.begin = guest.begin;
        self.write_down(launch, vm_dir).await.map_err(unspawned)?;
        if self.cancel.is_cancelled() {
            return Err(unspawned(cancelled()));
        }
        let began = self.trace.begin();
        self.daemon.gate.pass(step::START_CLAIM).await.map_err(unspawned)?;
        let given = guest.shim.word.give();
        given.map_err(|error| unspawned(failed("cannot tell it who it is", &error)))?;
        self.trace.end(trace::DAEMON_CLAIM, began);
        let outcome = self.await_ready(guest.shim.events, vm_dir).await;
        let launched = outcome.map_err(|problem| Failure { problem, spawned: true })?;
        self.warn(warnings);
        Ok(launched)
    }
}
