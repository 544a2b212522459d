//! What a daemon that starts makes of what it finds: running VMs are watched again, ended ones are
//! recorded, and removals that were begun are finished.

use std::path::PathBuf;
use std::sync::Arc;

use banger_api::Problem;
use banger_api::shim::STATUS_FILE;
use banger_api::step;
use banger_api::vm::VmStatus;
use banger_core::id::Id;
use banger_core::lifecycle::{Adoption, Desired, Found, Remains, plan_adoption, settle};
use banger_host::clock;

use crate::daemon::{Daemon, blocking, failed};
use crate::store::VmRow;
use crate::vm::{Phase, clear_leftovers, read_status};

/// A VM in the database, and what is known of it beside that.
#[derive(Debug)]
struct Observed {
    row: VmRow,
    locked: bool,
    written: Option<VmStatus>,
}

/// Takes up every VM in the database.
///
/// # Errors
/// If the database or the state directory cannot be read.
pub async fn reconcile(daemon: &Arc<Daemon>) -> Result<(), Problem> {
    let rows = daemon.store(crate::store::Store::all).await?;
    daemon.gate.pass(step::DAEMON_OBSERVE).await?;
    let observed = observe(daemon, rows).await?;
    for vm in observed {
        take_up(daemon, vm).await?;
    }
    Ok(())
}

async fn observe(daemon: &Arc<Daemon>, rows: Vec<VmRow>) -> Result<Vec<Observed>, Problem> {
    let daemon = Arc::clone(daemon);
    blocking(move || {
        let known: Vec<Id> = rows.iter().map(|row| row.id.clone()).collect();
        let strangers = clear_leftovers(&daemon.dirs.vms(), &known)
            .map_err(|error| failed("cannot look through the VMs' directories", &error))?;
        warn_of(&strangers);
        rows.into_iter()
            .map(|row| {
                let dir = daemon.vm_dir(&row.id);
                let locked = daemon.host.shims.is_locked(&dir).map_err(|error| {
                    failed(format!("cannot tell whether VM {} runs", row.name), &error)
                })?;
                let ran = locked || row.desired == Desired::Running;
                let written = if ran { read_status(&dir.join(STATUS_FILE)) } else { None };
                Ok(Observed { row, locked, written })
            })
            .collect()
    })
    .await
}

fn warn_of(strangers: &[PathBuf]) {
    for stranger in strangers {
        tracing::warn!(path = %stranger.display(), "belongs to no VM in the database; left alone");
    }
}

async fn take_up(daemon: &Arc<Daemon>, vm: Observed) -> Result<(), Problem> {
    let Observed { row, locked, written } = vm;
    let plan = plan_adoption(Found {
        locked,
        deleting: row.deleting,
        unfinished: row.unfinished,
        remove_on_exit: row.spec.remove_on_exit,
        desired: row.desired,
    });
    if plan != Adoption::Settle {
        tracing::info!(vm = %row.name, id = %row.id, ?plan, "found");
    }
    if plan == Adoption::Remove {
        free_name(daemon, &row).await;
    }
    let phase = match plan {
        Adoption::Watch => Phase::found_alive(written, false),
        Adoption::Remove if locked => Phase::found_alive(written, true),
        Adoption::Remove => Phase::found_to_remove(),
        Adoption::Settle => Phase::Ended(settle_row(daemon, &row, written).await),
    };
    daemon.add(row, phase);
    Ok(())
}

/// The state of a VM that no shim runs; recorded if the former daemon could not.
async fn settle_row(daemon: &Arc<Daemon>, row: &VmRow, written: Option<VmStatus>) -> VmStatus {
    let remains = Remains {
        desired: row.desired,
        recorded: row.last.clone(),
        written,
        created_at_ms: row.created_at_ms,
    };
    let status = settle(remains, clock::now_ms());
    if row.desired == Desired::Running {
        let (id, record) = (row.id.clone(), status.clone());
        let recorded = async {
            daemon.gate.pass(step::DAEMON_SETTLE).await?;
            daemon.store(move |store| store.record_end(&id, &record)).await
        };
        // It is found out again by the next daemon. A full disk, say, must not keep this one from
        // serving: removing things is the cure.
        if let Err(problem) = recorded.await {
            tracing::error!(vm = %row.name, "how it ended cannot be recorded: {problem}");
        }
    }
    status
}

/// Lets the name of a VM that will be removed be used again at once: nobody sees that VM any more,
/// and its processes may take a moment to end.
async fn free_name(daemon: &Arc<Daemon>, row: &VmRow) {
    let id = row.id.clone();
    let marked = async {
        daemon.gate.pass(step::REMOVE_MARK).await?;
        daemon.store(move |store| store.mark_deleting(&id)).await
    };
    // The removal does it again.
    if let Err(problem) = marked.await {
        tracing::error!(vm = %row.name, "cannot be marked as being removed: {problem}");
    }
}
