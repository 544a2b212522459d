//! The way down of a machine whose guest answers.

use std::process::ExitStatus;
use std::time::Duration;

use banger_api::agent::{Shutdown, ShutdownAction, StopMain};
use banger_api::shim::LaunchSpec;
use banger_api::vm::{EndCause, InitMode, VmEnd, VmState};
use banger_api::{step, trace};
use banger_core::signal;
use banger_host::fault;
use banger_host::http::HttpError;
use banger_host::qemu::qmp::Event;
use tokio::sync::mpsc;

use crate::configure;
use crate::ends::{self, Gone, reason};
use crate::exec;
use crate::launch::Machine;
use crate::order::Order;
use crate::standstill;
use crate::supervise::Vm;

/// What a guest gets on top of its grace period to answer that it is down.
const ANSWER_GRACE: Duration = Duration::from_secs(2);
/// How long it may take to hear the rest of what a VMM said that is gone.
const LAST_EVENTS: Duration = Duration::from_secs(1);
/// What asks a program to end that nobody named a signal for.
const SIGTERM: i32 = 15;

/// How a guest took being asked to go down.
enum Farewell {
    /// It has synced and unmounted.
    Clean,
    /// It answered with a problem: its data is synced, something could not be unmounted.
    Incomplete(String),
    /// It did not manage in time, or somebody lost patience.
    TimedOut,
    /// Its VMM is gone: it has powered itself off, or did not come to that.
    Gone(std::io::Result<ExitStatus>),
}

/// Ends a machine whose guest answers, as it was told to.
pub(crate) async fn obey(
    vm: &Vm,
    mut machine: Machine,
    order: Order,
    orders: &mut mpsc::Receiver<Order>,
) -> VmEnd {
    let mut end = order.end();
    if let Some(grace) = order.grace(vm.spec.owner) {
        match shut_down(vm, &mut machine, grace, orders).await {
            Farewell::Clean => {}
            Farewell::Incomplete(problem) => vm.board.warn(problem),
            Farewell::TimedOut => {
                end.cause = EndCause::StopTimedOut;
                end.reason = reason(EndCause::StopTimedOut, None);
            }
            Farewell::Gone(status) => {
                if end.main.is_none() {
                    end.main = vm.main_pid.last_word().await;
                }
                let (gone, console_tail) = look_back(vm, machine, status, None).await;
                return match gone {
                    Gone::PoweredOff | Gone::Reset => end,
                    Gone::Failed(cause, reason) => VmEnd { cause, reason, console_tail, ..end },
                };
            }
        }
        if end.main.is_none() {
            end.main = vm.main_pid.last_word().await;
        }
    }
    if let Err(error) = fault::reach(step::SHIM_POWER_OFF).await {
        tracing::error!(%error, "the VMM may not be killed");
    }
    let began = vm.trace.begin();
    // Nothing is lost: either the guest has synced and unmounted, or that was not wanted.
    if let Err(error) = machine.vmm.kill() {
        tracing::error!(%error, "cannot kill the VMM");
    }
    let _ = machine.vmm.wait().await;
    vm.trace.end(trace::SHIM_KILL, began);
    end
}

/// Asks the guest to go down.
async fn shut_down(
    vm: &Vm,
    machine: &mut Machine,
    grace: Duration,
    orders: &mut mpsc::Receiver<Order>,
) -> Farewell {
    let stood_still = vm.board.stands_still();
    vm.board.enter(VmState::Stopping);
    // Processes that ignore SIGTERM must leave time for the sync.
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) / 4 * 3;
    let main = vm.main_pid.get().and_then(|pid| stop_main(&vm.spec, pid));
    let request = Shutdown { action: ShutdownAction::PowerOff, grace_ms, main };
    let limit = grace.saturating_add(ANSWER_GRACE);
    let Machine { vmm, qmp, guest, .. } = machine;
    let told = async {
        if stood_still {
            standstill::wake(qmp, guest).await;
        }
        fault::reach(step::SHIM_SHUT_DOWN)
            .await
            .map_err(|error| HttpError::Body(error.to_string()))?;
        configure::tell(guest, "/v1/shutdown", &request, limit).await
    };
    let deadline = tokio::time::sleep(limit);
    tokio::pin!(deadline);
    let answered = tokio::select! {
        told = told => told,
        () = &mut deadline => return Farewell::TimedOut,
        status = vmm.wait() => return Farewell::Gone(status),
        () = told_to_kill(orders) => return Farewell::TimedOut,
    };
    match answered {
        Ok(()) => Farewell::Clean,
        Err(HttpError::Problem(problem)) => Farewell::Incomplete(exec::plain(problem).to_string()),
        // An agent that hung up may be on its way down already.
        Err(_) => tokio::select! {
            status = vmm.wait() => Farewell::Gone(status),
            () = &mut deadline => Farewell::TimedOut,
            () = told_to_kill(orders) => Farewell::TimedOut,
        },
    }
}

/// How the main process is asked to end. None if it gets SIGTERM along with all others.
fn stop_main(spec: &LaunchSpec, pid: u32) -> Option<StopMain> {
    let named = spec.stop_signal.as_deref().and_then(|name| match signal::parse(name) {
        Ok(number) => Some(number),
        Err(error) => {
            // The daemon takes no such specification; one of another release may have.
            tracing::warn!(%error, "the main process gets SIGTERM");
            None
        }
    });
    match (named, spec.init) {
        (Some(signal), _) => Some(StopMain { pid, signal }),
        // Before the services that it may use.
        (None, InitMode::System) => Some(StopMain { pid, signal: SIGTERM }),
        (None, InitMode::Agent) => None,
    }
}

async fn told_to_kill(orders: &mut mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        if matches!(order, Order::Kill) {
            return;
        }
    }
    std::future::pending::<()>().await;
}

pub(crate) fn shutdown(event: Event) -> Option<String> {
    match event {
        Event::Shutdown { reason, .. } => Some(reason),
        _ => None,
    }
}

/// What the end of a VMM says of its guest, and the last lines of the console.
pub(crate) async fn look_back(
    vm: &Vm,
    machine: Machine,
    status: std::io::Result<ExitStatus>,
    mut reason: Option<String>,
) -> (Gone, Vec<String>) {
    let Machine { mut events, console, words, .. } = machine;
    let (console, words) = (console.finish().await, words.finish().await);
    // The connection ended with the VMM, and what it had said is on its way.
    while let Ok(Some(event)) = tokio::time::timeout(LAST_EVENTS, events.recv()).await {
        reason = shutdown(event).or(reason);
    }
    let gone = ends::judge(status, reason.as_deref(), (&console, &words), vm.oom.has_killed());
    (gone, console.lines())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::launch_spec;

    #[test]
    fn a_main_process_ends_in_the_way_that_its_image_names() {
        let cases = [
            ("agent", "SIGQUIT", Some(3)),
            ("agent", "SIGRTMIN+3", Some(37)),
            ("agent", "nonsense", None),
            ("system", "10", Some(10)),
            ("system", "nonsense", Some(SIGTERM)),
        ];
        for (init, name, signal) in cases {
            let want = signal.map(|signal| StopMain { pid: 7, signal });
            assert_eq!(stop_main(&launch_spec(init, name), 7), want, "{init} {name}");
        }
        let unnamed = LaunchSpec { stop_signal: None, ..launch_spec("agent", "") };
        assert_eq!(stop_main(&unnamed, 7), None);
    }
}
