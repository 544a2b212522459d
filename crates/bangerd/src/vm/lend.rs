//! Lending the root disk of a VM that has ended, for an image to be made of it.
//!
//! Only the VM's task does, because only it knows that nothing changes the disk right now. As long as
//! somebody has the disk no other takes its place. A start is not refused: what its guest writes is
//! noticed by whoever reads.

use std::sync::Arc;

use banger_api::vm::VmState;
use banger_api::{ErrorCode, Problem};
use tokio::sync::OwnedRwLockReadGuard;

use super::actor::Actor;
use super::disks;
use crate::store::VmRow;

/// The root disk of a VM, which belongs to the image of the row for as long as this is kept.
#[derive(Debug)]
pub struct LentRoot {
    /// What the VM is.
    pub row: Arc<VmRow>,
    _lent: OwnedRwLockReadGuard<()>,
}

impl Actor {
    /// Hands out the root disk. Nothing of the VM may be alive.
    pub(super) async fn lend_root(&self) -> Result<LentRoot, Problem> {
        disks::settle_root(&self.daemon, &self.row).await?;
        let lent = Arc::clone(&self.root).read_owned().await;
        Ok(LentRoot { row: Arc::clone(&self.row), _lent: lent })
    }

    /// Whether another disk may take the root disk's place.
    ///
    /// # Errors
    /// `vm_wrong_state` as long as somebody has it.
    pub(super) fn check_not_lent(&self) -> Result<(), Problem> {
        let name = &self.row.name;
        self.root.try_write().map(drop).map_err(|_| {
            Problem::new(ErrorCode::VmWrongState, format!("the root disk of {name} is being read"))
                .cause("an image or a snapshot is made of it, and until then it keeps it")
                .hint("try again when `banger image promote` or `banger snapshot create` is done")
        })
    }
}

/// Why a VM that is alive keeps its root disk.
pub(super) fn not_ended(row: &VmRow, state: VmState) -> Problem {
    let name = &row.name;
    Problem::new(ErrorCode::VmWrongState, format!("{name} is {state}"))
        .cause("only the disk of a VM that does not run can become an image")
        .hint(format!("banger stop {name}"))
}
