//! Making a VM's disks what its row says, right before it starts.
//!
//! The row is the truth and the files follow. Each step can be cut off and is repeated by the next
//! start: a store or disk that is too short is made longer, a work disk that is missing is made under
//! another name and renamed, one that no row wants is removed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::shim::{COW_FILE, WORK_FILE};
use banger_api::{ErrorCode, Problem};
use banger_core::change::Settings;
use banger_core::id::Id;
use banger_core::spec::disks_of_image;
use banger_host::{cow, files};

use crate::daemon::{Daemon, blocking, failed};
use crate::store::VmRow;

/// What a root disk that shall replace another is called, followed by what the VM's disks are called.
const NEW_ROOT: &str = "root.cow.new-";
/// The same of a work disk.
const NEW_WORK: &str = "work.ext4.new-";
/// What a work disk is called while it is made.
const NEW_WORK_FILE: &str = "work.ext4.new";

/// Makes the files of the VM's disks fit its row. Nothing of the VM may be alive.
///
/// # Errors
/// Of the file system, or of what makes a work disk.
pub(super) async fn fit(daemon: &Arc<Daemon>, row: &VmRow) -> Result<(), Problem> {
    settle_root(daemon, row).await?;
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

/// Makes an empty root disk for the image of `settings`, beside the one that there is.
///
/// # Errors
/// Of the file system; the old disk is then as it was.
pub(super) async fn make_new_root(
    daemon: &Daemon,
    id: &Id,
    settings: &Settings,
) -> Result<(), Problem> {
    let (dir, bytes) = (daemon.vm_dir(id), settings.disk_bytes);
    let new = dir.join(new_root_name(&settings.image_digest));
    blocking(move || {
        // One of an earlier try may be left.
        remove_if_there(&new)
            .and_then(|()| cow::create(&new, bytes))
            .and_then(|()| files::sync_dir(&dir))
            .map_err(|error| failed("cannot create the VM's new root disk", &error))
    })
    .await
}

/// Removes what [`make_new_root`] has made, because the change failed after all.
///
/// # Errors
/// Of the file system.
pub(super) async fn forget_new_root(
    daemon: &Daemon,
    id: &Id,
    image_digest: &str,
) -> Result<(), Problem> {
    let new = daemon.vm_dir(id).join(new_root_name(image_digest));
    blocking(move || {
        remove_if_there(&new)
            .map_err(|error| failed("cannot remove the VM's new root disk", &error))
    })
    .await
}

/// Ends what a change of the image left: a new root disk that is for the image of the row takes the
/// place of the old one, any other goes. Nothing of the VM may be alive.
///
/// # Errors
/// Of the file system; it can be repeated.
pub(super) async fn settle_root(daemon: &Daemon, row: &VmRow) -> Result<(), Problem> {
    settled(daemon, row).await.map(drop)
}

/// The same, right after the row was written that wants a new root disk.
///
/// # Errors
/// Of the file system, also if there is no such disk: the old one belongs to another image.
pub(super) async fn place_new_root(daemon: &Daemon, row: &VmRow) -> Result<(), Problem> {
    if settled(daemon, row).await? {
        return Ok(());
    }
    let (name, image) = (&row.name, &row.spec.image);
    Err(Problem::new(ErrorCode::Internal, "cannot put the VM's new root disk in its place")
        .cause("it is no longer there")
        .hint(format!("banger set {name} --image {image}")))
}

/// Whether there was a new root disk for the image of the row.
async fn settled(daemon: &Daemon, row: &VmRow) -> Result<bool, Problem> {
    let (dir, wanted) = (daemon.vm_dir(&row.id), wanted(row));
    blocking(move || {
        settle(&dir, &wanted)
            .map_err(|error| failed("cannot put the VM's new root disk in its place", &error))
    })
    .await
}

/// Named for its image, so that a daemon that starts can tell whether the row already wants it.
fn new_root_name(image_digest: &str) -> String {
    format!("{NEW_ROOT}{}", disks_of_image(image_digest))
}

/// What the disks of a VM are called. The row of an older release says it by its image.
fn wanted(row: &VmRow) -> String {
    row.disks.clone().unwrap_or_else(|| disks_of_image(&row.image_digest).to_owned())
}

/// Brings the disks of a directory into that of a VM, for a row that will want `disks`. What is there for a
/// row that never came goes.
///
/// # Errors
/// Of the file system.
pub(super) async fn bring(
    daemon: &Daemon,
    row: &VmRow,
    from: PathBuf,
    disks: String,
) -> Result<(), Problem> {
    settle_root(daemon, row).await?;
    let dir = daemon.vm_dir(&row.id);
    blocking(move || {
        let bring = |name: &str, new: &str| match std::fs::rename(
            from.join(name),
            dir.join(format!("{new}{disks}")),
        ) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && name == WORK_FILE => Ok(()),
            moved => moved,
        };
        bring(WORK_FILE, NEW_WORK)
            .and_then(|()| bring(COW_FILE, NEW_ROOT))
            .and_then(|()| files::sync_dir(&dir))
            .map_err(|error| failed("cannot bring the disks into the VM's directory", &error))
    })
    .await
}

fn settle(dir: &Path, wanted: &str) -> io::Result<bool> {
    let mut placed = false;
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let new = |(prefix, disk)| Some((name.to_str()?.strip_prefix(prefix)?, disk));
        let found = [(NEW_ROOT, COW_FILE), (NEW_WORK, WORK_FILE)].into_iter().find_map(new);
        let Some((disks, disk)) = found else { continue };
        if disks == wanted {
            std::fs::rename(dir.join(&name), dir.join(disk))?;
            placed |= disk == COW_FILE;
        } else {
            remove_if_there(&dir.join(&name))?;
        }
        files::sync_dir(dir)?;
    }
    Ok(placed)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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
        let mut names: Vec<_> = [WORK_FILE, NEW_WORK_FILE].map(Into::into).into();
        // One that would take its place, if that was cut off.
        for entry in std::fs::read_dir(dir)? {
            let name = entry?.file_name();
            names.extend(name.to_string_lossy().starts_with(NEW_WORK).then_some(name));
        }
        for name in names {
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
