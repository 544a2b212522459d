//! A guest that goes on from where one like it was saved, instead of booting.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::time::Instant;

use banger_api::trace;
use banger_host::qemu::MigrationError;
use banger_host::qemu::qmp::{Qmp, QmpError};
use serde_json::json;

use super::boot::{Reached, bring_up, control, deadline, greet, identify, until};
use super::{Booting, Machine};
use crate::failure::{Awaited, LaunchError};
use crate::supervise::Vm;

/// Loads the saved guest and makes it this VM.
///
/// # Errors
/// [`LaunchError::Restore`] where a boot might work.
pub(super) async fn restore(vm: &Vm, booting: Booting) -> Result<Machine, LaunchError> {
    let deadline = deadline(vm);
    // Until it greets it is a template's guest that did not come up; afterwards it is this VM's.
    let has_greeted = Cell::new(false);
    let devices = booting.devices;
    let reach = reach_saved(vm, deadline, devices, &has_greeted);
    let brought_up = bring_up(booting, deadline, reach).await;
    brought_up.map_err(|error| match has_greeted.get() {
        true => error,
        false => LaunchError::Restore(Box::new(error)),
    })
}

async fn reach_saved(
    vm: &Vm,
    deadline: Instant,
    devices: Option<RawFd>,
    has_greeted: &Cell<bool>,
) -> Result<Reached, LaunchError> {
    let began = vm.trace.begin();
    let (mut qmp, events) = until(deadline, vm, Awaited::Vmm, control(vm)).await?;
    vm.trace.end(trace::VMM_BEGIN, began);
    let restored = async { take_up(vm, &mut qmp, devices).await.map_err(LaunchError::Migration) };
    until(deadline, vm, Awaited::Restored, restored).await?;
    let began = vm.trace.begin();
    // Only now: a guest that stands still does not notice that somebody has come.
    let guest = until(deadline, vm, Awaited::Agent, greet(vm)).await?;
    vm.trace.end(trace::GUEST_GREET, began);
    has_greeted.set(true);
    until(deadline, vm, Awaited::Configured, identify(vm, &guest)).await?;
    Ok((qmp, events, guest))
}

/// Loads the saved guest and lets it go on.
async fn take_up(vm: &Vm, qmp: &mut Qmp, devices: Option<RawFd>) -> Result<(), MigrationError> {
    let missing = || QmpError::Protocol("nothing was saved".to_owned());
    let began = vm.trace.begin();
    qmp.restore(devices.ok_or_else(missing)?).await?;
    vm.trace.end(trace::VMM_LOAD, began);
    let began = vm.trace.begin();
    if let Some(bytes) = vm.spec.work_disk_bytes {
        // The guest knows an empty disk in its place: this tells it to look again.
        qmp.execute("block_resize", json!({ "device": "work", "size": bytes })).await?;
    }
    qmp.execute("cont", json!({})).await?;
    vm.trace.end(trace::VMM_RESUME, began);
    Ok(())
}
