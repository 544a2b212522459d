//! Snapshots: what a VM was at one moment, kept in its directory, to which it can go back.
//!
//! A snapshot is a directory named as the person named it, in `snapshots` of the VM's. It has the disks,
//! and of a VM that ran its memory and the state of its devices; they belong together, so they are sealed
//! together and only restored together. It is made elsewhere (see [`crate::saved`]) and moved here when it
//! is complete and durable, so what is here is whole, or damaged by others.

mod back;
mod standstill;
mod take;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::event::EventType;
use banger_api::snapshot::Snapshot;
use banger_api::{ErrorCode, Problem, step};
use banger_core::id::Id;
use banger_core::snapshot::SavedSettings;
use banger_core::{name, suggest};
use serde::{Deserialize, Serialize};

pub use back::GoingBack;
pub use standstill::go_on_after;
pub use take::Taking;

use crate::daemon::{Daemon, blocking, failed};
use crate::events::News;
use crate::saved::{self, Manifest};
use crate::vm::VmHandle;

/// Where a VM has its snapshots, in its directory.
const SNAPSHOTS: &str = "snapshots";
/// What a snapshot is, beside its files.
const MANIFEST: &str = "snapshot.json";
/// What the names of automatic ones begin with, followed by a number.
const AUTOMATIC: &str = "auto-";

/// What a snapshot's manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    snapshot: Snapshot,
    /// What the VM was.
    settings: SavedSettings,
}

fn snapshots_dir(daemon: &Daemon, vm: &Id) -> PathBuf {
    daemon.vm_dir(vm).join(SNAPSHOTS)
}

fn read(dir: &Path) -> Option<Manifest<Record>> {
    Manifest::read(dir, MANIFEST)
}

/// What a snapshot is called as it lies here: its directory is moved as a whole by those who back it up.
fn as_found(dir: &Path, vm: &VmHandle) -> Option<Snapshot> {
    let name = dir.file_name()?.to_str()?.to_owned();
    let snapshot = read(dir)?.what.snapshot;
    Some(Snapshot { name, vm: vm.name.clone(), ..snapshot })
}

/// What there is of snapshots, whatever it is.
fn directories(shelf: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(shelf) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The snapshots of a VM, the oldest first.
fn of_vm(daemon: &Daemon, vm: &VmHandle) -> io::Result<Vec<Snapshot>> {
    let dirs = directories(&snapshots_dir(daemon, &vm.id))?;
    let mut snapshots: Vec<_> = dirs.iter().filter_map(|dir| as_found(dir, vm)).collect();
    snapshots.sort_by(|a, b| (a.created_at_ms, &a.name).cmp(&(b.created_at_ms, &b.name)));
    Ok(snapshots)
}

/// The snapshots of a VM, or of all, the oldest of each first.
///
/// # Errors
/// `vm_not_found`, or if they cannot be listed.
pub async fn list(daemon: &Arc<Daemon>, vm: Option<&str>) -> Result<Vec<Snapshot>, Problem> {
    let mut vms = match vm {
        Some(wanted) => vec![daemon.find(wanted)?],
        None => daemon.handles().into_iter().filter(|vm| !vm.is_hidden()).collect(),
    };
    vms.sort_by(|a, b| a.name.cmp(&b.name));
    let all = Arc::clone(daemon);
    blocking(move || {
        let mut snapshots = Vec::new();
        for vm in vms {
            let found = of_vm(&all, &vm);
            snapshots.extend(found.map_err(|error| failed("cannot list the snapshots", &error))?);
        }
        Ok(snapshots)
    })
    .await
}

/// The snapshot of that name.
///
/// # Errors
/// `snapshot_not_found` with the nearest name.
pub async fn show(
    daemon: &Arc<Daemon>,
    vm: &Arc<VmHandle>,
    name: &str,
) -> Result<Snapshot, Problem> {
    let all = list(daemon, Some(vm.id.as_str())).await?;
    let names: Vec<String> = all.iter().map(|snapshot| snapshot.name.clone()).collect();
    let found = all.into_iter().find(|snapshot| snapshot.name == name);
    if found.is_none() && is_there(daemon, vm, name) {
        return Err(unusable(&vm.name, name)
            .cause(format!("its {MANIFEST} cannot be read"))
            .hint(format!("banger snapshot rm {} {name}", vm.name)));
    }
    found.ok_or_else(|| {
        let title = format!("VM {} has no snapshot {name:?}", vm.name);
        let problem = Problem::new(ErrorCode::SnapshotNotFound, title);
        match suggest::nearest(name, names.iter().map(String::as_str)) {
            Some(near) => problem.hint(format!("did you mean {near}?")),
            None => problem.hint(format!("banger snapshot ls {}", vm.name)),
        }
    })
}

/// Whether there is something of that name, whatever it is.
fn is_there(daemon: &Daemon, vm: &VmHandle, name: &str) -> bool {
    name::validate(name).is_ok() && snapshots_dir(daemon, &vm.id).join(name).is_dir()
}

fn unusable(vm: &str, snapshot: &str) -> Problem {
    let title = format!("the snapshot {snapshot} of VM {vm} cannot be used");
    Problem::new(ErrorCode::SnapshotUnusable, title)
}

/// Removes a snapshot, also a damaged one. A VM that went on from it goes on.
///
/// # Errors
/// As [`show`], or of the file system.
pub async fn remove(daemon: &Arc<Daemon>, vm: &Arc<VmHandle>, name: &str) -> Result<(), Problem> {
    let (daemon, vm, name) = (Arc::clone(daemon), Arc::clone(vm), name.to_owned());
    // Done to its end, whatever becomes of whoever asked.
    let removal = tokio::spawn(async move {
        let _alone = vm.snapshots_alone().await;
        if !is_there(&daemon, &vm, &name) {
            show(&daemon, &vm, &name).await?;
        }
        discard(&daemon, &vm, &name).await
    });
    removal.await.unwrap_or_else(|error| {
        Err(Problem::new(ErrorCode::Internal, "a part of the daemon broke off").because(&error))
    })
}

/// Takes the name from a snapshot, and deletes what had it.
async fn discard(daemon: &Arc<Daemon>, vm: &VmHandle, name: &str) -> Result<(), Problem> {
    daemon.gate.pass(step::SNAPSHOT_REMOVE).await?;
    let dir = snapshots_dir(daemon, &vm.id).join(name);
    let aside = saved::unfinished_dir(daemon, &format!("snapshot-{}", vm.id));
    let gone = aside.clone();
    blocking(move || {
        saved::publish(&dir, &gone).map_err(|error| failed("cannot remove the snapshot", &error))
    })
    .await?;
    tell(daemon, EventType::SnapshotRemoved, vm, name);
    saved::discard(daemon, aside).await;
    Ok(())
}

fn tell(daemon: &Daemon, kind: EventType, vm: &VmHandle, snapshot: &str) {
    daemon.events.tell(News::vm(kind, &vm.row()).because(snapshot));
}

/// Digests of the images that snapshots need.
///
/// # Errors
/// If they cannot be listed.
pub async fn images_in_use(daemon: &Arc<Daemon>) -> Result<BTreeSet<String>, Problem> {
    let snapshots = list(daemon, None).await?;
    Ok(snapshots.into_iter().map(|snapshot| snapshot.image_digest).collect())
}

/// Names of the VMs that have snapshots with an image.
///
/// # Errors
/// If they cannot be listed.
pub async fn users_of_image(
    daemon: &Arc<Daemon>,
    digest: &str,
) -> Result<BTreeSet<String>, Problem> {
    let snapshots = list(daemon, None).await?.into_iter();
    let users = snapshots.filter(|snapshot| snapshot.image_digest == digest);
    Ok(users.map(|snapshot| snapshot.vm).collect())
}
