//! What a daemon makes of what it finds: running VMs are watched again, ended ones are recorded, and
//! removals that were begun are finished. All of it when it starts, and then, every now and then,
//! whether what it takes for true still is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_api::Problem;
use banger_api::event::EventType;
use banger_api::shim::{LAUNCH_FILE, STATUS_FILE};
use banger_api::step;
use banger_api::vm::VmStatus;
use banger_core::id::Id;
use banger_core::lifecycle::{Adoption, Desired, Found, Remains, Traces, plan_adoption, settle};
use banger_core::restart::{Run, after};
use banger_host::clock;

use crate::daemon::{Daemon, blocking, failed, lengthy};
use crate::events::News;
use crate::store::VmRow;
use crate::vm::{Phase, clear_leftovers, is_locked, read_launch_file, read_status};
use crate::{pool, snapshots};

/// A VM in the database, and what is known of it beside that.
#[derive(Debug)]
struct Observed {
    row: VmRow,
    locked: bool,
    written: Option<VmStatus>,
    traces: Traces,
}

/// How often a running daemon compares what it takes for true with what is.
const LOOK: Duration = Duration::from_secs(15);

/// Removes what a killed daemon was making and still held when this one began: the kernel ends a
/// process in its own time, and lets go of its files one after the other.
pub async fn clear_up(daemon: Arc<Daemon>) {
    let artifacts = Arc::clone(&daemon.host.artifacts);
    if let Err(problem) = lengthy(move || artifacts.outlast_others()).await {
        tracing::warn!("what was left of interrupted work stays until the next start: {problem}");
    }
}

/// Has every VM's task look, every now and then, as long as the daemon lives.
pub async fn keep_looking(daemon: Arc<Daemon>) {
    loop {
        tokio::time::sleep(LOOK).await;
        look(&daemon);
    }
}

/// Has every VM's task look whether what it takes for true still is, and the pool after its guests.
pub fn look(daemon: &Daemon) {
    daemon.pool.look();
    daemon.handles().iter().for_each(|vm| vm.look());
}

/// Takes up every VM in the database.
///
/// # Errors
/// If the database or the state directory cannot be read.
pub async fn reconcile(daemon: &Arc<Daemon>) -> Result<(), Problem> {
    let rows = daemon.store(crate::store::Store::all).await?;
    daemon.gate.pass(step::DAEMON_OBSERVE).await?;
    let now_ms = clock::now_ms();
    let (observed, guests) = observe(daemon, rows).await?;
    tokio::spawn(pool::clear_up(Arc::clone(daemon), guests));
    let found: Vec<_> = observed.into_iter().map(|vm| plan(vm, now_ms)).collect();
    record(daemon, &found).await;
    for (row, plan) in found {
        take_up(daemon, row, plan);
    }
    Ok(())
}

/// What is known of the VMs, and the directories of guests that stood ready for a former daemon.
async fn observe(
    daemon: &Arc<Daemon>,
    rows: Vec<VmRow>,
) -> Result<(Vec<Observed>, Vec<PathBuf>), Problem> {
    let daemon = Arc::clone(daemon);
    blocking(move || {
        let boot_id = daemon.host.machine.boot_id();
        let known: Vec<Id> = rows.iter().map(|row| row.id.clone()).collect();
        let strangers = clear_leftovers(&daemon.dirs.vms(), &known)
            .map_err(|error| failed("cannot look through the VMs' directories", &error))?;
        let (guests, strangers): (Vec<_>, Vec<_>) =
            strangers.into_iter().partition(|dir| pool::is_guests(dir));
        warn_of(&strangers);
        let observed = rows
            .into_iter()
            .map(|row| {
                let dir = daemon.vm_dir(&row.id);
                let locked = is_locked(daemon.host.shims.as_ref(), &dir);
                let ran = locked || row.desired == Desired::Running;
                let written = if ran { read_status(&dir.join(STATUS_FILE)) } else { None };
                let traces = if ran && !locked {
                    traces(&dir, boot_id.as_deref())
                } else {
                    Traces::default()
                };
                Observed { row, locked, written, traces }
            })
            .collect();
        Ok((observed, guests))
    })
    .await
}

/// What shows of a VM that ended while no daemon looked.
fn traces(vm_dir: &Path, boot_id: Option<&str>) -> Traces {
    let started_in = read_launch_file(&vm_dir.join(LAUNCH_FILE)).and_then(|it| it.host_boot_id);
    let rebooted = started_in.is_some() && boot_id.is_some() && started_in.as_deref() != boot_id;
    Traces { rebooted, ..Traces::default() }
}

fn warn_of(strangers: &[PathBuf]) {
    for stranger in strangers {
        tracing::warn!(path = %stranger.display(), "belongs to no VM in the database; left alone");
    }
}

/// What becomes of a VM in the database.
#[derive(Debug)]
enum Plan {
    /// It runs: its shim is watched again.
    Watch(Option<VmStatus>),
    /// It is removed, once what is alive of it has ended.
    EndAndRemove(Option<VmStatus>),
    /// It is removed.
    Remove,
    /// It has ended.
    Settle(VmStatus),
}

fn plan(vm: Observed, now_ms: u64) -> (VmRow, Plan) {
    let Observed { row, locked, written, traces } = vm;
    let adoption = plan_adoption(Found {
        locked,
        deleting: row.deleting,
        unfinished: row.unfinished,
        remove_on_exit: row.spec.remove_on_exit,
        desired: row.desired,
    });
    if adoption != Adoption::Settle {
        tracing::info!(vm = %row.name, id = %row.id, plan = ?adoption, "found");
    }
    let plan = match adoption {
        Adoption::Watch => Plan::Watch(written),
        Adoption::Remove if locked => Plan::EndAndRemove(written),
        Adoption::Remove => Plan::Remove,
        Adoption::Settle => Plan::Settle(settled(&row, written, traces, now_ms)),
    };
    (row, plan)
}

/// The state of a VM that no shim runs.
fn settled(row: &VmRow, written: Option<VmStatus>, traces: Traces, now_ms: u64) -> VmStatus {
    let remains = Remains {
        desired: row.desired,
        recorded: row.last.clone(),
        written,
        created_at_ms: row.created_at_ms,
        traces,
    };
    let status = settle(remains, now_ms);
    let is_new = row.last.as_ref() != Some(&status);
    if row.desired == Desired::Running && is_new {
        let run = Run { policy: row.spec.restart, asked: false, restarts: 0, ran_ms: None };
        return after(run, status, now_ms);
    }
    status
}

/// Writes down what the former daemon could not, of all VMs at once: how they ended, and whose name is
/// free. After a power cut that may be every VM there is.
///
/// What cannot be written is found out again by the next daemon, and done again by the removal. A full
/// disk, say, must not keep this one from serving: removing things is the cure.
async fn record(daemon: &Arc<Daemon>, found: &[(VmRow, Plan)]) {
    let ended = |(row, plan): &(VmRow, Plan)| match plan {
        Plan::Settle(status) if row.desired == Desired::Running => {
            Some((row.id.clone(), status.clone()))
        }
        _ => None,
    };
    let ends: Vec<(Id, VmStatus)> = found.iter().filter_map(ended).collect();
    let goes = |plan: &Plan| matches!(plan, Plan::Remove | Plan::EndAndRemove(_));
    let going: Vec<Id> =
        found.iter().filter(|(_, plan)| goes(plan)).map(|(row, _)| row.id.clone()).collect();
    if !ends.is_empty()
        && let Err(problem) = record_ends(daemon, ends).await
    {
        tracing::error!("how VMs ended cannot be recorded: {problem}");
    }
    if !going.is_empty()
        && let Err(problem) = mark_deleting(daemon, going).await
    {
        tracing::error!("VMs cannot be marked as being removed: {problem}");
    }
}

async fn record_ends(daemon: &Arc<Daemon>, ends: Vec<(Id, VmStatus)>) -> Result<(), Problem> {
    daemon.gate.pass(step::DAEMON_SETTLE).await?;
    daemon.store(move |store| store.record_ends(ends.iter().map(|(id, end)| (id, end)))).await
}

/// Lets the names of VMs that will be removed be used again at once: nobody sees those VMs any more,
/// and their processes may take a moment to end.
async fn mark_deleting(daemon: &Arc<Daemon>, ids: Vec<Id>) -> Result<(), Problem> {
    daemon.gate.pass(step::REMOVE_MARK).await?;
    daemon.store(move |store| store.mark_all_deleting(&ids)).await
}

fn take_up(daemon: &Arc<Daemon>, row: VmRow, plan: Plan) {
    let phase = match plan {
        Plan::Watch(written) => {
            daemon.events.tell(News::vm(EventType::VmAdopted, &row));
            Phase::found_alive(written, false)
        }
        Plan::EndAndRemove(written) => Phase::found_alive(written, true),
        Plan::Remove => Phase::found_to_remove(),
        Plan::Settle(status) => Phase::Ended(status),
    };
    let vm = daemon.add(row, phase);
    vm.look();
    snapshots::go_on_after(daemon, &vm);
}
