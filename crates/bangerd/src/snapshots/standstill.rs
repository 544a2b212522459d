//! A VM that stands still until it goes back: so that nothing happens to it any more that nobody keeps.
//!
//! Whoever has it stand still may be killed. A file in the VM's directory says that nobody else wanted it, and
//! the next daemon has it go on.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use banger_api::Problem;
use banger_api::vm::VmState;
use banger_core::id::Id;
use banger_core::lifecycle::Request;

use crate::daemon::{Daemon, blocking, failed};
use crate::vm::{Outcome, VmHandle};

/// Says that a VM stands still because it was to go back.
const GOING_BACK: &str = "going-back";

fn mark(daemon: &Daemon, vm: &Id) -> PathBuf {
    daemon.vm_dir(vm).join(GOING_BACK)
}

/// Has a VM stand still that runs. Whether it ran.
///
/// # Errors
/// If it cannot; it goes on then.
pub(super) async fn stand_still(daemon: &Arc<Daemon>, vm: &VmHandle) -> Result<bool, Problem> {
    if vm.state() != VmState::Running {
        return Ok(false);
    }
    let mark = mark(daemon, &vm.id);
    blocking(move || {
        File::create(&mark)
            .map(drop)
            .map_err(|error| failed("cannot have the VM stand still", &error))
    })
    .await?;
    let stands = turn(vm, Request::Pause).await;
    if stands.is_err() {
        forget(daemon, vm).await;
    }
    stands.map(|()| true)
}

/// Has a VM go on that stands still for this. What keeps it from that is only told.
pub(super) async fn go_on(daemon: &Arc<Daemon>, vm: &VmHandle) {
    if let Err(problem) = turn(vm, Request::Resume).await {
        tracing::warn!(vm = %vm.name, "it does not go on: {problem}");
    }
    forget(daemon, vm).await;
}

/// It is over: the VM has ended, or goes on.
pub(super) async fn forget(daemon: &Arc<Daemon>, vm: &VmHandle) {
    let mark = mark(daemon, &vm.id);
    let removed = blocking(move || match std::fs::remove_file(&mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("cannot forget that the VM stood still", &error))
        }
        _ => Ok(()),
    });
    if let Err(problem) = removed.await {
        tracing::warn!(vm = %vm.name, "{problem}");
    }
}

/// Has a VM go on that a daemon has left standing still. For a daemon that begins.
pub fn go_on_after(daemon: &Arc<Daemon>, vm: &Arc<VmHandle>) {
    if !mark(daemon, &vm.id).exists() {
        return;
    }
    let (daemon, vm) = (Arc::clone(daemon), Arc::clone(vm));
    tokio::spawn(async move {
        tracing::info!(vm = %vm.name, "it stood still to go back, and did not");
        match vm.state().is_live() {
            true => go_on(&daemon, &vm).await,
            false => forget(&daemon, &vm).await,
        }
    });
}

async fn turn(vm: &VmHandle, request: Request) -> Result<(), Problem> {
    match vm.turn(request).await? {
        Outcome::Accepted(work) => work.finished().await,
        Outcome::AlreadySo => Ok(()),
    }
}
