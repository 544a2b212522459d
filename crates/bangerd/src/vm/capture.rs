//! Having a running VM saved by its shim.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use banger_api::shim::Captured;
use banger_api::{ErrorCode, Problem};
use tokio::time::timeout;

use super::VmHandle;
use crate::daemon::Daemon;

/// How long a shim may take beside what it sends.
const LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to send a MiB of memory: many times what it takes on a busy machine.
const FOR_A_MIB: Duration = Duration::from_millis(50);

/// Has a VM saved in a directory, with its disks. It goes on, if it ran, whatever comes of that.
///
/// # Errors
/// Those of the shim; `vm_wrong_state` where that does not answer, or is too old.
pub(crate) async fn capture(
    daemon: &Arc<Daemon>,
    vm: &VmHandle,
    dir: &Path,
) -> Result<Captured, Problem> {
    let name = &vm.name;
    let vm_dir = daemon.vm_dir(&vm.id);
    let limit = LIMIT + FOR_A_MIB * vm.row().spec.memory_mib;
    let captured = timeout(limit, daemon.host.shims.capture(&vm_dir, dir)).await;
    let not_saved = || Problem::new(ErrorCode::Internal, format!("VM {name} was not saved"));
    let Ok(captured) = captured else {
        return Err(not_saved()
            .cause(format!("its supervisor did not do it within {} s", limit.as_secs()))
            .hint(format!("banger kill {name}")));
    };
    captured.map_err(|problem| match problem.code {
        ErrorCode::NotFound => {
            let title = format!("VM {name} cannot be saved while it runs");
            Problem::new(ErrorCode::VmWrongState, title)
                .cause("it was started by an older release of banger")
                .hint(format!("banger restart {name}"))
        }
        ErrorCode::Internal if problem.hint.is_none() => {
            not_saved().because(&problem).hint(format!("banger show {name}"))
        }
        _ => problem,
    })
}
