//! Making a VM's disks what its row says, right before it starts.
//!
//! The row is the truth and the files follow. Each step can be cut off and is repeated by the next
//! start: a store or disk that is too short is made longer, a work disk that is missing is made under
//! another name and renamed, one that no row wants is removed.

use std::io;
use std::path::Path;
use std::sync::Arc;

use banger_api::Problem;
use banger_api::shim::{COW_FILE, WORK_FILE};
use banger_core::id::Id;
use banger_host::{cow, files};

use crate::daemon::{Daemon, blocking, failed};
use crate::store::VmRow;

/// What a work disk is called while it is made.
const NEW_WORK_FILE: &str = "work.ext4.new";

/// Makes the files of the VM's disks fit its row. Nothing of the VM may be alive.
///
/// # Errors
/// Of the file system, or of what makes a work disk.
pub(super) async fn fit(daemon: &Arc<Daemon>, row: &VmRow) -> Result<(), Problem> {
    let (daemon, dir) = (Arc::clone(daemon), daemon.vm_dir(&row.id));
    let (disk_bytes, work_bytes) = (row.disk_bytes, row.spec.work_disk_bytes);
    blocking(move || {
        cow::grow(&dir.join(COW_FILE), disk_bytes)
            .map_err(|error| failed("cannot make the VM's disk as large as it shall be", &error))?;
        match work_bytes {
            None => remove(&dir),
            Some(bytes) => ensure_work_disk(&daemon, &dir, bytes),
        }
    })
    .await
}

/// Removes a VM's work disk with everything on it. A missing one is fine.
///
/// # Errors
/// Of the file system.
pub(super) async fn remove_work_disk(daemon: &Daemon, id: &Id) -> Result<(), Problem> {
    let dir = daemon.vm_dir(id);
    blocking(move || remove(&dir)).await
}

fn remove(dir: &Path) -> Result<(), Problem> {
    let remove = || -> io::Result<()> {
        let mut removed = false;
        for name in [WORK_FILE, NEW_WORK_FILE] {
            match std::fs::remove_file(dir.join(name)) {
                Ok(()) => removed = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if removed { files::sync_dir(dir) } else { Ok(()) }
    };
    remove().map_err(|error| failed("cannot remove the VM's work disk", &error))
}

fn ensure_work_disk(daemon: &Daemon, dir: &Path, bytes: u64) -> Result<(), Problem> {
    let (disk, new) = (dir.join(WORK_FILE), dir.join(NEW_WORK_FILE));
    match files::grow(&disk, bytes) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        done => {
            return done.map_err(|error| failed("cannot make the VM's work disk larger", &error));
        }
    }
    remove(dir)?;
    daemon.host.artifacts.make_work_disk(&new, bytes)?;
    std::fs::rename(&new, &disk)
        .and_then(|()| files::sync_dir(dir))
        .map_err(|error| failed("cannot create the VM's work disk", &error))
}
