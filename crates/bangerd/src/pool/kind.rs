//! Which VMs a guest that stands ready can become.

use banger_api::vm::{EngineChoice, InitMode, NetworkPolicy};

use crate::store::VmRow;

/// All of a VM that is settled when its VMM starts. Whatever else it is, it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    image_digest: String,
    kernel_digest: String,
    cpus: u32,
    memory_mib: u32,
    disk_bytes: u64,
    engine: EngineChoice,
    /// What its network may reach.
    pub(super) network: NetworkPolicy,
    /// Whether its flushes reach the host's disk.
    pub(super) is_durable: bool,
}

impl Kind {
    /// The kind of a VM. None for those that must be started: a work disk cannot be put in later, and an
    /// init of the image's own would have begun its services for nobody.
    #[must_use]
    pub fn of(row: &VmRow) -> Option<Self> {
        let spec = &row.spec;
        let can_wait = spec.work_disk_bytes.is_none() && spec.init == Some(InitMode::Agent);
        can_wait.then(|| Self {
            image_digest: row.image_digest.clone(),
            kernel_digest: row.kernel_digest.clone(),
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            disk_bytes: row.disk_bytes,
            engine: spec.engine,
            network: spec.network,
            is_durable: !spec.remove_on_exit,
        })
    }
}
