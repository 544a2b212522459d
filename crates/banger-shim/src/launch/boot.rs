//! Waiting for a guest that boots: its VMM, its agent, and what the agent shall do then.

use std::future::Future;
use std::time::{Duration, Instant};

use banger_api::shim::{Begin, LaunchSpec, RUN_DIR};
use banger_api::{step, trace};
use banger_host::qemu::qmp::{Event, Qmp};
use banger_host::{connect, fault, qemu};
use tokio::sync::mpsc;

use super::{Booting, Host, Machine, start_vmm};
use crate::configure::{configure, park};
use crate::failure::{Awaited, LaunchError, host};
use crate::guest::Guest;
use crate::supervise::Vm;

/// How often a guest is booted whose kernel finds no timer.
const BOOTS: u32 = 4;
/// How long a VMM may take to end after a connection to it broke, to be taken for the reason.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What becomes of a guest whose agent answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// This VM.
    Identify,
    /// Something that can be saved.
    Park,
}

/// What is spoken with a guest that has been reached, and with its VMM.
pub(super) type Reached = (Qmp, mpsc::Receiver<Event>, Guest);

/// Waits for the guest, and boots it again if its kernel found no timer: it would hang.
///
/// An emulated kernel compares its timer with its clock for a tenth of a second. If the host lets its
/// processor wait right then and as long, the timer seems to stand still, and it has no other.
pub(super) async fn boot(
    vm: &Vm,
    host: &Host,
    mut booting: Booting,
    then: Then,
) -> Result<Machine, LaunchError> {
    let deadline = deadline(vm);
    for _ in 1..BOOTS {
        match bring_up(booting, deadline, reach_guest(vm, deadline, then)).await {
            Err(LaunchError::NoTimer) => tracing::warn!("{}; booting again", LaunchError::NoTimer),
            other => return other,
        }
        booting = start_vmm(&booted(vm), vm, host)?;
    }
    bring_up(booting, deadline, reach_guest(vm, deadline, then)).await
}

/// What boots: also a guest that once went on from a saved one.
pub(super) fn booted(vm: &Vm) -> LaunchSpec {
    let begin = match vm.spec.begin {
        Begin::Save => Begin::Save,
        Begin::Boot | Begin::Receive | Begin::Restore { .. } => Begin::Boot,
    };
    LaunchSpec { begin, ..vm.spec.clone() }
}

/// When the time for the guest is over.
pub(crate) fn deadline(vm: &Vm) -> Instant {
    Instant::now() + Duration::from_millis(vm.spec.boot_timeout_ms)
}

/// Waits until the guest is reached, but no longer than for anything that ends the waiting.
pub(super) async fn bring_up(
    mut booting: Booting,
    deadline: Instant,
    reach: impl Future<Output = Result<Reached, LaunchError>>,
) -> Result<Machine, LaunchError> {
    let reached = tokio::select! {
        result = reach => Some(result),
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
    let Booting { vmm, console, words, .. } = booting;
    Ok(Machine { vmm, qmp, events, console, words, guest, boot_deadline: deadline })
}

/// Connects to the VMM and the guest, and makes the guest what it shall be. All of it until the deadline.
async fn reach_guest(vm: &Vm, deadline: Instant, then: Then) -> Result<Reached, LaunchError> {
    let began = vm.trace.begin();
    let (mut qmp, events) = until(deadline, vm, Awaited::Vmm, control(vm)).await?;
    vm.trace.end(trace::VMM_BEGIN, began);
    let began = vm.trace.begin();
    let guest = match until(deadline, vm, Awaited::Agent, greet(vm)).await {
        Err(LaunchError::Silent { awaited, timeout_ms, .. }) => {
            let processors = where_processors_stand(&mut qmp).await;
            return Err(LaunchError::Silent { awaited, timeout_ms, processors });
        }
        other => other?,
    };
    vm.trace.end(trace::GUEST_BOOT, began);
    tracing::debug!("the guest answers");
    match then {
        Then::Identify => until(deadline, vm, Awaited::Configured, identify(vm, &guest)).await?,
        Then::Park => until(deadline, vm, Awaited::Parked, get_ready(vm, &guest)).await?,
    }
    Ok((qmp, events, guest))
}

/// What a part of the boot comes to, or that it was still awaited when the time was over.
pub(crate) async fn until<T>(
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
pub(super) async fn control(vm: &Vm) -> Result<(Qmp, mpsc::Receiver<Event>), LaunchError> {
    // Both sockets listen since before the VMM was started, so connecting does not wait for it.
    let stream = connect::unix(&vm.dir.join(RUN_DIR), qemu::QMP_SOCKET).await;
    Ok(Qmp::connect(stream.map_err(host("connect to the VMM"))?).await?)
}

/// Connects to the guest's agent.
pub(super) async fn greet(vm: &Vm) -> Result<Guest, LaunchError> {
    let stream = connect::unix(&vm.dir.join(RUN_DIR), qemu::AGENT_SOCKET).await;
    Guest::greet(stream.map_err(host("reach the guest"))?).await.map_err(LaunchError::Greeting)
}

/// Makes the guest this VM.
pub(crate) async fn identify(vm: &Vm, guest: &Guest) -> Result<(), LaunchError> {
    let began = vm.trace.begin();
    fault::reach(step::VM_CONFIGURE).await.map_err(host("configure the guest"))?;
    for warning in configure(guest, &vm.spec).await? {
        vm.board.warn(warning);
    }
    vm.trace.end(trace::GUEST_CONFIGURE, began);
    Ok(())
}

/// Makes the guest ready to be saved.
async fn get_ready(vm: &Vm, guest: &Guest) -> Result<(), LaunchError> {
    fault::reach(step::VM_PARK).await.map_err(host("have the guest get ready to be saved"))?;
    park(guest, &vm.spec).await?;
    // It hangs up when it is ready; so whoever goes on from there waits for a host, not for an answer.
    guest.closed().await;
    Ok(())
}
