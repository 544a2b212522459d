//! A guest that is booted only to be saved: a template.
//!
//! It gets as far as an agent that waits for its identity, and never gets one. What it is made of then,
//! memory, devices and disk, is left in the shim's directory for whoever publishes it.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use banger_api::shim::DEVICES_FILE;
use banger_api::step;

use super::boot::{Then, boot};
use super::{Machine, check_disk, make_host, start_vmm};
use crate::failure::{LaunchError, host};
use crate::supervise::{Reporter, Vm};

/// Boots a guest, saves it and ends it.
///
/// # Errors
/// [`LaunchError`]. Nothing runs then either, once this process is gone.
pub(crate) async fn save(vm: &Vm, reporter: &mut Reporter) -> Result<(), LaunchError> {
    reporter.step(step::VM_DISK, "checking the disk").await?;
    check_disk(vm)?;
    reporter.step(step::VM_NETWORK, "making the network").await?;
    // Without an uplink: nobody in there has anything to say to anybody.
    let mut machines_host = make_host(vm).await?;
    machines_host.network.await_rules()?;
    reporter.step(step::VM_VMM, "starting the VMM").await?;
    let booting = start_vmm(&vm.spec, vm, &machines_host)?;
    reporter.step(step::VM_BOOT, "booting a guest for the template").await?;
    let machine = boot(vm, &machines_host, booting, Then::Park).await?;
    reporter.step(step::VM_SAVE, "saving the template").await?;
    write_down(vm, machine).await
}

async fn write_down(vm: &Vm, machine: Machine) -> Result<(), LaunchError> {
    let Machine { mut vmm, mut qmp, guest, .. } = machine;
    // Whoever goes on from here finds a port that nobody is connected to.
    drop(guest);
    let devices = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(vm.dir.join(DEVICES_FILE))
        .map_err(host("create the file for the saved devices"))?;
    qmp.save(devices.as_fd()).await.map_err(LaunchError::Migration)?;
    vmm.kill().map_err(host("end the VMM"))?;
    vmm.wait().await.map_err(host("wait for the VMM"))?;
    Ok(())
}
