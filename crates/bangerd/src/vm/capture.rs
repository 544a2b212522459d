//! Having a running VM saved by its shim.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_api::shim::{Captured, LAUNCH_FILE};
use banger_api::{ErrorCode, Problem};
use banger_host::qemu::arguments::machine_digest;
use tokio::time::timeout;

use super::VmHandle;
use super::launch::read_launch_file;
use crate::daemon::{Daemon, blocking};

/// How long a shim may take beside what it sends.
const LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to send a MiB of memory: many times what it takes on a busy machine.
const FOR_A_MIB: Duration = Duration::from_millis(50);

/// A VM that was saved.
#[derive(Debug)]
pub(crate) struct SavedVm {
    /// How long it took.
    pub(crate) captured: Captured,
    /// Digest of the machine that its guest must find again.
    pub(crate) machine: String,
}

/// Has a VM saved in a directory, with its disks. It goes on, if it ran, whatever comes of that.
///
/// # Errors
/// Those of the shim; `vm_wrong_state` where that does not answer, or is too old, or where this release would
/// give the guest another machine to go on in.
pub(crate) async fn capture(
    daemon: &Arc<Daemon>,
    vm: &VmHandle,
    dir: &Path,
) -> Result<SavedVm, Problem> {
    let name = &vm.name;
    let vm_dir = daemon.vm_dir(&vm.id);
    let too_old = || {
        let title = format!("VM {name} cannot be saved while it runs");
        Problem::new(ErrorCode::VmWrongState, title)
            .cause("it was started by an older release of banger")
            .hint(format!("banger restart {name}"))
    };
    let machine = its_machine(vm_dir.join(LAUNCH_FILE)).await?.ok_or_else(too_old)?;
    let limit = LIMIT + FOR_A_MIB * vm.row().spec.memory_mib;
    let captured = timeout(limit, daemon.host.shims.capture(&vm_dir, dir)).await;
    let not_saved = || Problem::new(ErrorCode::Internal, format!("VM {name} was not saved"));
    let Ok(captured) = captured else {
        return Err(not_saved()
            .cause(format!("its supervisor did not do it within {} s", limit.as_secs()))
            .hint(format!("banger kill {name}")));
    };
    let captured = captured.map_err(|problem| match problem.code {
        ErrorCode::NotFound => too_old(),
        ErrorCode::Internal if problem.hint.is_none() => {
            not_saved().because(&problem).hint(format!("banger show {name}"))
        }
        _ => problem,
    })?;
    Ok(SavedVm { captured, machine })
}

/// The machine of a VM, if this release makes the same of what the VM was started with.
async fn its_machine(launch_file: PathBuf) -> Result<Option<String>, Problem> {
    blocking(move || {
        let launch = read_launch_file(&launch_file);
        Ok(launch.and_then(|launch| {
            let now = machine_digest(&launch);
            launch.machine.filter(|then| *then == now)
        }))
    })
    .await
}
