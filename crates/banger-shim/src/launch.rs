//! Bringing a VM up: a list of named steps.
//!
//! ```text
//! vm.disk ─ vm.network ─ vm.vmm ─┬─ vm.boot ─ vm.configure ─ ready
//!                                └─ vm.uplink (meanwhile)
//! ```
//!
//! Once the guest is configured it may write to its disks: what comes after that is waited for by
//! [`await_up`], beside which orders are obeyed.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_api::shim::{CONSOLE_FILE, RUN_DIR, VMM_LOG_FILE, WORK_FILE};
use banger_api::step;
use banger_api::vm::{Accelerator, InitMode};
use banger_host::cow::{self, Header};
use banger_host::network::{self, Network};
use banger_host::process::Watched;
use banger_host::qemu::qmp::{Event, Qmp};
use banger_host::{connect, fault, qemu};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use crate::configure::{await_system, configure};
use crate::console::{Log, Recording, new_log};
use crate::dns;
use crate::ends;
use crate::failure::{Awaited, LaunchError, host};
use crate::guest::Guest;
use crate::supervise::{Reporter, Vm, error_log};

/// Longest wait for an image's own init with hardware virtualisation. What takes longer waits for
/// something that does not come.
const SYSTEM_LIMIT: Duration = Duration::from_secs(30);
/// How often a guest is booted whose kernel finds no timer.
const BOOTS: u32 = 4;
/// How long a VMM may take to end after a connection to it broke, to be taken for the reason.
const LAST_WORDS: Duration = Duration::from_secs(2);

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
}

impl Booting {
    /// Why the VMM ended before its guest was up.
    async fn early_end(self) -> LaunchError {
        let Self { mut vmm, console, words } = self;
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
        Booting { vmm, console, words }.early_end().await
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
    let host = make_host(vm).await?;
    reporter.step(step::VM_VMM, "starting the VMM").await?;
    let booting = start_vmm(vm, &host)?;
    fault::reach(step::VM_UPLINK).await.map_err(crate::failure::host("start the uplink"))?;
    let uplink = start_uplink(&host)?;
    let message = match vm.spec.init {
        InitMode::Agent => "booting the guest",
        InitMode::System => "booting the guest and its services",
    };
    reporter.step(step::VM_BOOT, message).await?;
    let machine = boot(vm, &host, booting).await?;
    Ok((host, machine, uplink))
}

/// Starts the guest again that rebooted, and waits until it answers.
pub(crate) async fn relaunch(vm: &Vm, host: &Host) -> Result<Machine, LaunchError> {
    check_disk(vm)?;
    boot(vm, host, start_vmm(vm, host)?).await
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
    let network = Network::create(&vm.dir, &vm.spec.vm_id, vm.spec.network)?;
    let udp = network.dns_udp.try_clone().map_err(host("share the name server's socket"))?;
    let tcp = network.dns_tcp.try_clone().map_err(host("share the name server's socket"))?;
    for set_nonblocking in [udp.set_nonblocking(true), tcp.set_nonblocking(true)] {
        set_nonblocking.map_err(host("serve names"))?;
    }
    let udp = tokio::net::UdpSocket::from_std(udp).map_err(host("serve names"))?;
    let tcp = tokio::net::TcpListener::from_std(tcp).map_err(host("serve names"))?;
    dns::serve(udp, tcp);
    let log = |name| new_log(&vm.dir, name, vm.spec.log_bytes).map_err(host("begin the VM's logs"));
    Ok(Host { network, console_log: log(CONSOLE_FILE)?, vmm_log: log(VMM_LOG_FILE)? })
}

fn start_vmm(vm: &Vm, machine: &Host) -> Result<Booting, LaunchError> {
    let started = qemu::spawn(&vm.spec, &vm.dir, machine.network.tap.as_fd())?;
    let record = |pipe, log: &Log| {
        Recording::start(pipe, Arc::clone(log)).map_err(host("record what the VM says"))
    };
    Ok(Booting {
        vmm: Watched::new(started.child).map_err(host("watch the VMM"))?,
        console: record(started.console, &machine.console_log)?,
        words: record(started.words, &machine.vmm_log)?,
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
    if vm.spec.init == InitMode::System {
        let left = deadline.saturating_duration_since(Instant::now());
        await_services(vm, guest, system_limit(vm.spec.engine.accelerator, left)).await;
    }
    if let Some(uplink) = uplink {
        await_uplink(vm, uplink).await;
        fault::reach(step::VM_READY).await.map_err(host("tell that the VM runs"))?;
    }
    Ok(())
}

/// Waits for the guest, and boots it again if its kernel found no timer: it would hang.
///
/// An emulated kernel compares its timer with its clock for a tenth of a second. If the host lets its
/// processor wait right then and as long, the timer seems to stand still, and it has no other.
async fn boot(vm: &Vm, host: &Host, mut booting: Booting) -> Result<Machine, LaunchError> {
    let deadline = Instant::now() + Duration::from_millis(vm.spec.boot_timeout_ms);
    for _ in 1..BOOTS {
        match bring_up(vm, booting, deadline).await {
            Err(LaunchError::NoTimer) => tracing::warn!("{}; booting again", LaunchError::NoTimer),
            other => return other,
        }
        booting = start_vmm(vm, host)?;
    }
    bring_up(vm, booting, deadline).await
}

/// Waits for the guest, but no longer than for anything that ends the waiting.
async fn bring_up(
    vm: &Vm,
    mut booting: Booting,
    deadline: Instant,
) -> Result<Machine, LaunchError> {
    let reached = tokio::select! {
        result = reach_guest(vm, deadline) => Some(result),
        _ = booting.vmm.wait() => None,
        () = booting.console.lost_its_timer() => {
            booting.vmm.kill().map_err(host("end the VMM"))?;
            booting.vmm.wait().await.map_err(host("wait for the VMM"))?;
            return Err(LaunchError::NoTimer);
        }
    };
    let (qmp, events, guest) = match reached {
        Some(Ok(reached)) => reached,
        Some(Err(silent @ LaunchError::Silent { .. })) => return Err(silent),
        Some(Err(error)) => {
            // What broke often broke because the VMM ended, which then says more.
            return match tokio::time::timeout(LAST_WORDS, booting.vmm.wait()).await {
                Ok(_) => Err(booting.early_end().await),
                Err(_) => Err(error),
            };
        }
        None => return Err(booting.early_end().await),
    };
    let Booting { vmm, console, words } = booting;
    Ok(Machine { vmm, qmp, events, console, words, guest, boot_deadline: deadline })
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

/// Connects to the VMM and the guest, and makes the guest this VM. All of it until the deadline.
async fn reach_guest(
    vm: &Vm,
    deadline: Instant,
) -> Result<(Qmp, mpsc::Receiver<Event>, Guest), LaunchError> {
    let (mut qmp, events) = until(deadline, vm, Awaited::Vmm, control(vm)).await?;
    let guest = match until(deadline, vm, Awaited::Agent, greet(vm)).await {
        Err(LaunchError::Silent { awaited, timeout_ms, .. }) => {
            let processors = where_processors_stand(&mut qmp).await;
            return Err(LaunchError::Silent { awaited, timeout_ms, processors });
        }
        other => other?,
    };
    tracing::debug!("the guest answers");
    until(deadline, vm, Awaited::Configured, identify(vm, &guest)).await?;
    tracing::debug!("the guest is configured");
    Ok((qmp, events, guest))
}

/// What a part of the boot comes to, or that it was still awaited when the time was over.
async fn until<T>(
    deadline: Instant,
    vm: &Vm,
    awaited: Awaited,
    part: impl Future<Output = Result<T, LaunchError>>,
) -> Result<T, LaunchError> {
    let timeout_ms = vm.spec.boot_timeout_ms;
    let ended = tokio::time::timeout_at(deadline.into(), part).await;
    let processors = String::new();
    ended.unwrap_or(Err(LaunchError::Silent { awaited, timeout_ms, processors }))
}

/// Where the guest's processors stand, if the VMM tells.
async fn where_processors_stand(qmp: &mut Qmp) -> String {
    let stand = qmp.processors().await.unwrap_or_default();
    stand.iter().map(|processor| format!("; {processor}")).collect()
}

/// Connects to the VMM.
async fn control(vm: &Vm) -> Result<(Qmp, mpsc::Receiver<Event>), LaunchError> {
    // Both sockets listen since before the VMM was started, so connecting does not wait for it.
    let stream = connect::unix(&vm.dir.join(RUN_DIR), qemu::QMP_SOCKET).await;
    Ok(Qmp::connect(stream.map_err(host("connect to the VMM"))?).await?)
}

/// Connects to the guest's agent.
async fn greet(vm: &Vm) -> Result<Guest, LaunchError> {
    let stream = connect::unix(&vm.dir.join(RUN_DIR), qemu::AGENT_SOCKET).await;
    Guest::greet(stream.map_err(host("reach the guest"))?).await.map_err(LaunchError::Greeting)
}

/// Makes the guest this VM.
async fn identify(vm: &Vm, guest: &Guest) -> Result<(), LaunchError> {
    fault::reach(step::VM_CONFIGURE).await.map_err(host("configure the guest"))?;
    for warning in configure(guest, &vm.spec).await? {
        vm.board.warn(warning);
    }
    Ok(())
}

/// The uplink that is being made.
pub(crate) type Uplink = oneshot::Receiver<Result<std::process::Child, network::NetworkError>>;

fn start_uplink(host: &Host) -> Result<Uplink, LaunchError> {
    let namespace = host.network.namespace.clone();
    let mut pasta = network::start_uplink(&namespace, pasta_words()?)?;
    let (done, uplink) = oneshot::channel();
    let wait = move || {
        // Nobody hears it if the boot failed meanwhile.
        let _ = done.send(network::wait_for_uplink(&namespace, &mut pasta).map(|()| pasta));
    };
    let thread = std::thread::Builder::new().name("uplink".to_owned()).spawn(wait);
    thread.map_err(crate::failure::host("start a thread that waits for the network"))?;
    Ok(uplink)
}

/// A VM without an uplink is a VM: the host may be offline.
async fn await_uplink(vm: &Vm, uplink: Uplink) {
    let pasta = match uplink.await {
        Ok(Ok(pasta)) => pasta,
        Ok(Err(error)) => return vm.board.warn(format!("the VM has no network: {error}")),
        Err(_) => return vm.board.warn("the VM has no network: waiting for it failed".to_owned()),
    };
    let board = Arc::clone(&vm.board);
    tokio::spawn(async move {
        if let Ok(mut pasta) = Watched::new(pasta) {
            let ended = pasta.wait().await.map(|status| status.to_string());
            let how = ended.unwrap_or_else(|error| error.to_string());
            board.warn(format!("the VM lost its network: pasta ended ({how})"));
        }
    });
}

/// Where pasta's words go: through a pipe to this process's own log, which stays small whatever a guest
/// makes pasta complain of.
fn pasta_words() -> Result<File, LaunchError> {
    let (reader, writer) = std::io::pipe().map_err(host("make a pipe for pasta's words"))?;
    let mut words =
        pipe::Receiver::from_owned_fd(reader.into()).map_err(host("listen to what pasta says"))?;
    tokio::spawn(async move {
        let (mut log, mut buffer) = (error_log(), vec![0; 4096]);
        while let Ok(count @ 1..) = words.read(&mut buffer).await {
            // What cannot be written is lost, and pasta must not wait for it.
            let _ = log.write_all(&buffer[..count]);
        }
    });
    Ok(File::from(OwnedFd::from(writer)))
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
