//! The state as a whole: what it takes, what can go, and removing all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use banger_api::Problem;
use banger_api::image::{Image, PruneImages};
use banger_api::operation::{OperationResult, Progress};
use banger_api::system::{DiskUse, DiskUseRow, ResetPlan};
use banger_api::vm::{Pruned, VmState, VmStatus};
use banger_core::id::Id;
use banger_host::files;
use banger_host::leftovers::state::SET_ASIDE;
use futures_util::future::join_all;

use crate::daemon::{Daemon, blocking, failed};
use crate::operations::Handle;
use crate::snapshots;
use crate::vm::{Outcome, VmHandle, clear_leftovers};

/// One thing that takes space.
#[derive(Debug)]
struct Holding {
    bytes: u64,
    in_use: bool,
}

/// What the state takes on the host's disk.
///
/// # Errors
/// If it cannot be measured.
pub async fn disk_use(daemon: &Arc<Daemon>) -> Result<DiskUse, Problem> {
    let kept = snapshots::images_in_use(daemon).await?;
    let daemon = Arc::clone(daemon);
    blocking(move || {
        let handles = daemon.handles();
        let image_in_use = |digest: &str| {
            kept.contains(digest) || handles.iter().any(|vm| vm.row().image_digest == digest)
        };
        let kernel_in_use =
            |digest: &str| handles.iter().any(|vm| vm.row().kernel_digest == digest);
        let vms = handles.iter().map(|vm| {
            Ok(Holding { bytes: measure(&daemon.vm_dir(&vm.id))?, in_use: vm.state().is_live() })
        });
        let images = distinct_images(&daemon)?.into_values().map(|image| {
            Ok(Holding { bytes: image.allocated_bytes, in_use: image_in_use(&image.digest) })
        });
        let kernels = daemon.host.artifacts.kernels()?.into_iter().map(|kernel| {
            Ok(Holding { bytes: kernel.allocated_bytes, in_use: kernel_in_use(&kernel.digest) })
        });
        let templates = entries(&daemon.dirs.templates())?
            .into_iter()
            .map(|entry| Ok(Holding { bytes: measure(&entry.path())?, in_use: false }));
        let layers = daemon.host.artifacts.layers()?;
        let layers = DiskUseRow {
            kind: "layers".to_owned(),
            count: layers.count,
            in_use: layers.used,
            bytes: layers.bytes,
            reclaimable_bytes: layers.unused_bytes,
        };
        let cache = entries(&daemon.dirs.cache())?
            .into_iter()
            .map(|entry| Ok(Holding { bytes: measure(&entry.path())?, in_use: false }));
        let aside = entries(&daemon.dirs.data.join(SET_ASIDE))?
            .into_iter()
            .map(|entry| Ok(Holding { bytes: measure(&entry.path())?, in_use: true }));
        let aside = row("set aside", aside)?;
        let free = daemon.host.machine.free_bytes(&daemon.dirs.data);
        let mut rows = vec![
            row("vms", vms)?,
            row("images", images)?,
            row("kernels", kernels)?,
            layers,
            row("templates", templates)?,
            row("cache", cache)?,
        ];
        rows.extend((aside.count > 0).then_some(aside));
        Ok(DiskUse {
            rows,
            free_bytes: free
                .map_err(|error| failed("cannot tell how much disk is free", &error))?,
        })
    })
    .await
}

/// The images by digest: one that has several names is listed under each, and is one all the same.
fn distinct_images(daemon: &Daemon) -> Result<BTreeMap<String, Image>, Problem> {
    let images = daemon.host.artifacts.images()?;
    Ok(images.into_iter().map(|image| (image.digest.clone(), image)).collect())
}

fn row(
    kind: &str,
    holdings: impl Iterator<Item = Result<Holding, Problem>>,
) -> Result<DiskUseRow, Problem> {
    let mut row =
        DiskUseRow { kind: kind.to_owned(), count: 0, in_use: 0, bytes: 0, reclaimable_bytes: 0 };
    for holding in holdings {
        let Holding { bytes, in_use } = holding?;
        row.count += 1;
        row.bytes += bytes;
        if in_use {
            row.in_use += 1;
        } else {
            row.reclaimable_bytes += bytes;
        }
    }
    Ok(row)
}

fn measure(path: &std::path::Path) -> Result<u64, Problem> {
    files::allocated_bytes(path)
        .map_err(|error| failed(format!("cannot measure {}", path.display()), &error))
}

fn entries(dir: &std::path::Path) -> Result<Vec<std::fs::DirEntry>, Problem> {
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(format!("cannot list {}", dir.display()), &error)),
    }
}

/// The names of what is in a directory. One that is not there is empty.
fn list(dir: &std::path::Path) -> Result<Vec<String>, Problem> {
    let name = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    Ok(entries(dir)?.iter().map(name).collect())
}

/// Removes the VMs that have ended, or says which would go.
///
/// # Errors
/// Of the first removal that fails; the others are done.
pub async fn prune(daemon: &Arc<Daemon>, dry_run: bool) -> Result<Pruned, Problem> {
    let ended: Vec<Arc<VmHandle>> = daemon
        .handles()
        .into_iter()
        .filter(|vm| !vm.is_hidden() && has_ended(&vm.snapshot().status))
        .collect();
    let dirs: Vec<PathBuf> = ended.iter().map(|vm| daemon.vm_dir(&vm.id)).collect();
    let sizes =
        blocking(move || dirs.iter().map(|dir| measure(dir)).collect::<Result<Vec<_>, _>>())
            .await?;
    let mut pruned = Pruned::default();
    let mut failure = None;
    for (vm, bytes) in ended.iter().zip(sizes) {
        let gone = if dry_run { Ok(true) } else { remove(vm, false).await };
        match gone {
            Ok(true) => {
                pruned.vms.push(vm.name.clone());
                pruned.bytes += bytes;
            }
            Ok(false) => {}
            Err(problem) => failure = Some(problem),
        }
    }
    pruned.vms.sort();
    failure.map_or(Ok(pruned), Err)
}

/// Whether it has ended for good: one that is about to be started again has not.
fn has_ended(status: &VmStatus) -> bool {
    matches!(status.state, VmState::Stopped | VmState::Failed) && status.next_start_ms.is_none()
}

/// Removes a VM. Whether it is gone: one that was started meanwhile stays.
async fn remove(vm: &VmHandle, force: bool) -> Result<bool, Problem> {
    match vm.remove(force).await {
        Ok(Outcome::Accepted(work)) => work.finished().await.map(|()| true),
        Ok(Outcome::AlreadySo) => Ok(true),
        Err(_) => Ok(false),
    }
}

/// What a reset would remove.
///
/// # Errors
/// If it cannot be listed or measured.
pub async fn plan_reset(daemon: &Arc<Daemon>) -> Result<ResetPlan, Problem> {
    let bytes = disk_use(daemon).await?.rows.iter().map(|row| row.bytes).sum();
    let daemon = Arc::clone(daemon);
    blocking(move || {
        let artifacts = daemon.host.artifacts.as_ref();
        let mut plan = ResetPlan {
            vms: daemon.handles().iter().map(|vm| vm.name.clone()).collect(),
            images: artifacts.images()?.into_iter().map(|image| image.name).collect(),
            kernels: artifacts.kernels()?.into_iter().map(|kernel| kernel.name).collect(),
            set_aside: list(&daemon.dirs.data.join(SET_ASIDE))?,
            bytes,
        };
        for names in [&mut plan.vms, &mut plan.images, &mut plan.kernels, &mut plan.set_aside] {
            names.sort();
        }
        Ok(plan)
    })
    .await
}

/// Stops and removes everything. What fails does not keep the rest from going.
///
/// # Errors
/// The first failure, after everything was tried.
pub async fn reset(daemon: Arc<Daemon>, operation: Handle) -> Result<OperationResult, Problem> {
    // From here on nobody makes a VM.
    let _alone = daemon.artifacts_in_use.write().await;
    operation.progress(Progress::stage("reset.vms", "removing the VMs"));
    daemon.pool.empty(&daemon).await;
    let handles = daemon.handles();
    let mut outcomes: Vec<Result<(), Problem>> =
        join_all(handles.iter().map(|vm| remove(vm, true)))
            .await
            .into_iter()
            .map(|outcome| outcome.map(drop))
            .collect();
    outcomes.push(remove_strangers(&daemon).await);
    operation
        .progress(Progress::stage("reset.artifacts", "removing images, kernels and the cache"));
    let all = Arc::clone(&daemon);
    outcomes.extend(blocking(move || Ok(remove_artifacts(&all))).await?);
    outcomes.into_iter().collect::<Result<(), _>>()?;
    Ok(OperationResult::Nothing)
}

/// Removes the directories that belong to no VM in the database, ending what may run there.
async fn remove_strangers(daemon: &Arc<Daemon>) -> Result<(), Problem> {
    let all = Arc::clone(daemon);
    let strangers = blocking(move || {
        let known: Vec<Id> = all.handles().iter().map(|vm| vm.id.clone()).collect();
        clear_leftovers(&all.dirs.vms(), &known)
            .map_err(|error| failed("cannot look through the VMs' directories", &error))
    })
    .await?;
    for dir in strangers {
        crate::vm::end_unknown(daemon, &dir).await;
        blocking(move || {
            files::remove_tree(&dir)
                .map_err(|error| failed(format!("cannot remove {}", dir.display()), &error))
        })
        .await?;
    }
    Ok(())
}

fn remove_artifacts(daemon: &Daemon) -> Vec<Result<(), Problem>> {
    let artifacts = daemon.host.artifacts.as_ref();
    let mut outcomes = Vec::new();
    match distinct_images(daemon) {
        Ok(images) => {
            outcomes.extend(images.keys().map(|digest| artifacts.remove_image(digest)));
        }
        Err(problem) => outcomes.push(Err(problem)),
    }
    match artifacts.kernels() {
        Ok(kernels) => {
            outcomes.extend(kernels.iter().map(|kernel| artifacts.remove_kernel(&kernel.digest)));
        }
        Err(problem) => outcomes.push(Err(problem)),
    }
    // Now no image needs any layer.
    let all = PruneImages { all: true, dry_run: false };
    outcomes.push(artifacts.prune_images(all, &BTreeSet::new()).map(drop));
    let templates = files::remove_tree(&daemon.dirs.templates());
    outcomes.push(templates.map_err(|error| failed("cannot remove the templates", &error)));
    outcomes.push(artifacts.clear_cache());
    let aside = daemon.dirs.data.join(SET_ASIDE);
    let removed = files::remove_tree(&aside);
    outcomes.push(removed.map_err(|error| failed("cannot remove what was set aside", &error)));
    outcomes
}
