//! Bringing a VM up: a list of named steps.
//!
//! ```text
//!                                  ┌─ vm.boot ────┐
//! vm.disk ─ vm.network ─ vm.vmm ─┬─┤              ├─ vm.configure ─ ready
//!                                │ └─ vm.restore ─┘
//!                                └─ vm.uplink (meanwhile)
//! ```
//!
//! Once the guest is configured it may write to its disks: what comes after that is waited for by
//! [`await_up`], beside which orders are obeyed.

mod boot;
mod restore;
mod save;
mod uplink;

use std::os::fd::{AsFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_api::shim::{Begin, CONSOLE_FILE, LaunchSpec, VMM_LOG_FILE, WORK_FILE};
use banger_api::vm::{Accelerator, InitMode};
use banger_api::{step, trace};
use banger_host::cow::{self, Header};
use banger_host::network::{self, Network};
use banger_host::process::Watched;
use banger_host::qemu::qmp::{Event, Qmp};
use banger_host::{fault, qemu};
use tokio::sync::{mpsc, oneshot};

use self::boot::{Then, boot, booted};
use self::uplink::await_uplink;
use crate::configure::await_system;
use crate::console::{self, Log, Recording, new_log};
use crate::dns;
use crate::ends;
use crate::failure::{LaunchError, host};
use crate::guest::Guest;
use crate::supervise::{Reporter, Vm};

pub(crate) use self::boot::{deadline, identify, until};
pub(crate) use self::save::save;
pub(crate) use self::uplink::{connected, start_uplink};

/// The uplink that is being made.
pub(crate) type Uplink = oneshot::Receiver<Result<std::process::Child, network::NetworkError>>;

/// Longest wait for an image's own init with hardware virtualisation. What takes longer waits for
/// something that does not come.
const SYSTEM_LIMIT: Duration = Duration::from_secs(30);
/// What outlives a reboot of the guest.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) network: Network,
    console_log: Log,
    vmm_log: Log,
}

/// A VM whose guest answers.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The VMM's process.
    pub(crate) vmm: Watched,
    /// The VMM's control connection.
    pub(crate) qmp: Qmp,
    /// What the VMM tells.
    pub(crate) events: mpsc::Receiver<Event>,
    /// The guest's console.
    pub(crate) console: Recording,
    /// What the VMM itself says.
    pub(crate) words: Recording,
    /// The guest's agent.
    pub(crate) guest: Guest,
    /// When the time for its boot is over.
    pub(crate) boot_deadline: Instant,
}

/// A VMM that runs, with a guest that does not answer yet.
struct Booting {
    vmm: Watched,
    console: Recording,
    words: Recording,
    /// The descriptor that it inherited of the saved devices, if there are any.
    devices: Option<RawFd>,
}

impl Booting {
    /// Why the VMM ended before its guest was up.
    async fn early_end(self) -> LaunchError {
        let Self { mut vmm, console, words, .. } = self;
        let status = vmm.wait().await;
        let (tail, words) = (console.finish().await, words.finish().await);
        match tail.panic() {
            Some(line) => LaunchError::Panic { line: line.to_owned() },
            None if status.as_ref().is_ok_and(std::process::ExitStatus::success) => {
                LaunchError::PoweredOff
            }
            None => LaunchError::VmmEnded { reason: ends::describe_vmm_end(status, &words) },
        }
    }
}

impl Machine {
    /// Why the VMM ended before the VM was up.
    pub(crate) async fn early_end(self) -> LaunchError {
        let Self { vmm, console, words, .. } = self;
        Booting { vmm, console, words, devices: None }.early_end().await
    }
}

/// Starts the VM for the first time, and waits until its guest answers.
pub(crate) async fn launch(
    vm: &Vm,
    reporter: &mut Reporter,
) -> Result<(Host, Machine, Uplink), LaunchError> {
    reporter.step(step::VM_DISK, "checking the disk").await?;
    check_disk(vm)?;
    reporter.step(step::VM_NETWORK, "making the network").await?;
    let mut host = make_host(vm).await?;
    reporter.step(step::VM_VMM, "starting the VMM").await?;
    let restores = matches!(vm.spec.begin, Begin::Restore { .. });
    let booting = start_vmm(&vm.spec, vm, &host).map_err(|error| match restores {
        // What was saved may have gone just now.
        true => LaunchError::Restore(Box::new(error)),
        false => error,
    })?;
    let began = vm.trace.begin();
    host.network.await_rules()?;
    vm.trace.end(trace::SHIM_RULES, began);
    fault::reach(step::VM_UPLINK).await.map_err(crate::failure::host("start the uplink"))?;
    let uplink = start_uplink(&host, vm.trace.clone())?;
    let machine = if restores {
        reporter.step(step::VM_RESTORE, "restoring the guest").await?;
        restore::restore(vm, booting).await?
    } else {
        let message = match vm.spec.init {
            InitMode::Agent => "booting the guest",
            InitMode::System => "booting the guest and its services",
        };
        reporter.step(step::VM_BOOT, message).await?;
        boot(vm, &host, booting, Then::Identify).await?
    };
    Ok((host, machine, uplink))
}

/// Starts the guest again that rebooted, and waits until it answers.
pub(crate) async fn relaunch(vm: &Vm, host: &Host) -> Result<Machine, LaunchError> {
    check_disk(vm)?;
    boot(vm, host, start_vmm(&booted(vm), vm, host)?, Then::Identify).await
}

fn check_disk(vm: &Vm) -> Result<(), LaunchError> {
    let store = vm.dir.join(banger_api::shim::COW_FILE);
    if cow::check_and_repair(&store, vm.spec.disk_bytes)? == Header::Repaired {
        vm.board.warn(
            "root.cow was marked invalid after an I/O error; repaired, the guest checks its journal"
                .to_owned(),
        );
    }
    if let Some(user) = vm.spec.jail_user {
        cow::give_to(&store, user)?;
        if vm.spec.work_disk_bytes.is_some() {
            cow::give_to(&vm.dir.join(WORK_FILE), user)?;
        }
    }
    Ok(())
}

async fn make_host(vm: &Vm) -> Result<Host, LaunchError> {
    let began = vm.trace.begin();
    let network = Network::create(&vm.dir, &vm.spec.vm_id, vm.spec.network)?;
    vm.trace.end(trace::SHIM_NETWORK, began);
    let udp = network.dns_udp.try_clone().map_err(host("share the name server's socket"))?;
    let tcp = network.dns_tcp.try_clone().map_err(host("share the name server's socket"))?;
    for set_nonblocking in [udp.set_nonblocking(true), tcp.set_nonblocking(true)] {
        set_nonblocking.map_err(host("serve names"))?;
    }
    let udp = tokio::net::UdpSocket::from_std(udp).map_err(host("serve names"))?;
    let tcp = tokio::net::TcpListener::from_std(tcp).map_err(host("serve names"))?;
    dns::serve(udp, tcp);
    let log = |name| new_log(&vm.dir, name, vm.spec.log_bytes).map_err(host("begin the VM's logs"));
    let console_log = log(CONSOLE_FILE)?;
    if let Begin::Restore { saved, .. } = &vm.spec.begin {
        // What the kernel said when it booted, which was not here.
        console::begin_with(&console_log, &Path::new(saved).join(CONSOLE_FILE));
    }
    Ok(Host { network, console_log, vmm_log: log(VMM_LOG_FILE)? })
}

fn start_vmm(spec: &LaunchSpec, vm: &Vm, machine: &Host) -> Result<Booting, LaunchError> {
    let began = vm.trace.begin();
    let started = qemu::spawn(spec, &vm.dir, machine.network.tap.as_fd())?;
    vm.trace.end(trace::SHIM_VMM, began);
    let record = |pipe, log: &Log| {
        Recording::start(pipe, Arc::clone(log)).map_err(host("record what the VM says"))
    };
    Ok(Booting {
        vmm: Watched::new(started.child).map_err(host("watch the VMM"))?,
        console: record(started.console, &machine.console_log)?,
        words: record(started.words, &machine.vmm_log)?,
        devices: started.devices,
    })
}

/// Waits until the VM is up, whose guest answers: until its services run, and at the first boot for the
/// uplink. Does not notice the VMM's end.
pub(crate) async fn await_up(
    vm: &Vm,
    guest: &Guest,
    deadline: Instant,
    uplink: Option<Uplink>,
) -> Result<(), LaunchError> {
    let began = vm.trace.begin();
    if vm.spec.init == InitMode::System {
        let left = deadline.saturating_duration_since(Instant::now());
        await_services(vm, guest, system_limit(vm.spec.engine.accelerator, left)).await;
    }
    if let Some(uplink) = uplink {
        await_uplink(vm, uplink).await;
        vm.trace.end(trace::SHIM_UP, began);
        fault::reach(step::VM_READY).await.map_err(host("tell that the VM runs"))?;
    }
    Ok(())
}

/// Waits until the image's own init has started everything. A guest whose services take longer, or
/// never come up, is a guest all the same.
async fn await_services(vm: &Vm, guest: &Guest, limit: Duration) {
    let up = tokio::time::timeout(limit, await_system(guest, limit)).await;
    if !matches!(up, Ok(Ok(true))) {
        vm.board.warn(format!(
            "the guest's services still start after {} s: banger exec {} -- systemctl list-jobs",
            limit.as_secs(),
            vm.spec.name
        ));
    }
}

/// How long the image's own init is waited for, of the time that is left for the boot.
fn system_limit(accelerator: Accelerator, left: Duration) -> Duration {
    match accelerator {
        Accelerator::Kvm => left.min(SYSTEM_LIMIT),
        Accelerator::Tcg => left,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_get_what_the_boot_leaves_them() {
        let seconds = Duration::from_secs;
        assert_eq!(system_limit(Accelerator::Tcg, seconds(80)), seconds(80));
        assert_eq!(system_limit(Accelerator::Kvm, seconds(80)), SYSTEM_LIMIT);
        assert_eq!(system_limit(Accelerator::Kvm, seconds(12)), seconds(12));
    }
}
