//! A running machine until it ends: orders, the VMM's events, the clock.
//!
//! ```text
//!            ┌──────────────── pause, HostDiskFull ────────▶ paused
//!   running ─┤◀─────────────── resume, space again ────────────┘
//!            ├─ Stop, MainEnded, OwnerGone(stop) ─▶ stopping ─▶ ended
//!            ├─ Kill, OwnerGone(kill) ────────────────────────▶ ended
//!            ├─ guest powers off, panics; VMM dies ───────────▶ ended
//!            └─ guest reboots ────────────────────────────────▶ started again
//! ```
//!
//! What ends a running machine ends a paused one as well, which is woken first if its guest has to
//! be asked.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use banger_api::agent::{Shutdown, ShutdownAction, StopMain};
use banger_api::exec::ExecEnd;
use banger_api::shim::LaunchSpec;
use banger_api::vm::{EndCause, InitMode, NetworkPolicy, OwnerPolicy, VmEnd, VmState};
use banger_api::{step, trace};
use banger_core::signal;
use banger_core::standstill::{Act, Happening};
use banger_host::fault;
use banger_host::http::HttpError;
use banger_host::qemu::qmp::Event;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::clock_watch::{ClockWatch, Reading};
use crate::configure;
use crate::ends::{self, Gone, TOLD_TO_END, reason};
use crate::exec;
use crate::guest::Guest;
use crate::launch::{Host, Machine};
use crate::standstill::{self, Reply, Wish};
use crate::supervise::Vm;

/// How often the clock and the host's disk are looked at.
const TICK: Duration = Duration::from_secs(2);
/// What a guest gets on top of its grace period to answer that it is down.
const ANSWER_GRACE: Duration = Duration::from_secs(2);
/// Pause before an agent that hung up is greeted again; twice as long after each time that it did
/// not answer.
const REGAIN_PAUSE: Duration = Duration::from_secs(1);
/// Longest such pause: a guest that never answers costs the host next to nothing.
const MAX_REGAIN_PAUSE: Duration = Duration::from_secs(30);
/// How long it may take to answer then.
const REGAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a pause waits for a clock that is being set: what is under way then would come late.
const CLOCK_GRACE: Duration = Duration::from_secs(1);
/// How long it may take to hear the rest of what a VMM said that is gone.
const LAST_EVENTS: Duration = Duration::from_secs(1);
/// Grace of a stop that nobody gave one.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// How a VM ended whose guest could not be asked yet.
const KILLED_IN_BOOT: &str = "killed while it booted again";

/// What asks a program to end that nobody named a signal for.
const SIGTERM: i32 = 15;

/// What a running machine can be told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    /// Stop cleanly within a grace period.
    Stop(Duration),
    /// The same, because the shim was told to end.
    Terminate(Duration),
    /// End at once.
    Kill,
    /// The main process ended.
    MainEnded(ExecEnd),
    /// The owner's stream ended, after its command or without it.
    OwnerGone(Option<ExecEnd>),
}

impl Order {
    /// The end that comes of it.
    fn end(self) -> VmEnd {
        let (cause, main) = match self {
            Self::Kill => (EndCause::Killed, None),
            Self::Stop(_) => (EndCause::Stopped, None),
            Self::Terminate(_) => (EndCause::Terminated, None),
            Self::MainEnded(end) | Self::OwnerGone(Some(end)) => (EndCause::MainExited, Some(end)),
            Self::OwnerGone(None) => (EndCause::OwnerGone, None),
        };
        VmEnd { cause, reason: reason(cause, main), main, console_tail: Vec::new() }
    }

    /// The end that comes of it while the guest boots again, and cannot be asked to go down.
    pub(crate) fn end_in_boot(self) -> VmEnd {
        let mut end = self.end();
        match self {
            Self::Stop(_) => {
                end.cause = EndCause::Killed;
                end.reason = KILLED_IN_BOOT.to_owned();
            }
            // The cause stays: it was nobody's wish, so a restart policy goes on.
            Self::Terminate(_) => end.reason = format!("{TOLD_TO_END}; {KILLED_IN_BOOT}"),
            Self::Kill | Self::MainEnded(_) | Self::OwnerGone(_) => {}
        }
        end
    }

    /// How long the guest may take to go down; None if nobody waits for it.
    fn grace(self, owner: Option<OwnerPolicy>) -> Option<Duration> {
        match self {
            Self::Kill => None,
            Self::OwnerGone(_) if owner != Some(OwnerPolicy::Stop) => None,
            Self::Stop(grace) | Self::Terminate(grace) => Some(grace),
            Self::MainEnded(_) | Self::OwnerGone(_) => Some(DEFAULT_GRACE),
        }
    }
}

/// What the end of a VMM says of its guest, and the last lines of the console.
async fn look_back(
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

/// What became of a machine.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It ended for good.
    Ended(VmEnd),
    /// The guest asked to be started again.
    Reboot,
}

/// Watches a machine until it ends.
pub(crate) async fn watch(
    vm: &Vm,
    host: &mut Host,
    machine: Machine,
    orders: &mut mpsc::Receiver<Order>,
) -> Outcome {
    let mut watch = Watch {
        vm,
        host,
        clock: ClockWatch::new(Reading::now()),
        setting_clock: None,
        shutdown_reason: None,
        regaining: None,
        regain_pause: REGAIN_PAUSE,
        machine,
    };
    let mut tick = tokio::time::interval(TICK);
    loop {
        let stands_still = vm.board.stands_still();
        let machine = &mut watch.machine;
        tokio::select! {
            Some(order) = orders.recv() => {
                return Outcome::Ended(obey(vm, watch.machine, order, orders).await);
            }
            status = machine.vmm.wait() => return watch.judge(status).await,
            Some(event) = machine.events.recv() => watch.note(event).await,
            wish = vm.switch.next() => watch.turn(wish).await,
            // A guest that stands still greets nobody.
            () = machine.guest.closed(), if watch.regaining.is_none() && !stands_still => {
                watch.regain_guest();
            }
            guest = attempt(&mut watch.regaining) => watch.regained(guest),
            _ = tick.tick() => watch.tick().await,
        }
    }
}

struct Watch<'a> {
    vm: &'a Vm,
    host: &'a mut Host,
    machine: Machine,
    /// An attempt to greet the agent again.
    regaining: Option<JoinHandle<Option<Guest>>>,
    /// How long to wait before the next one.
    regain_pause: Duration,
    /// What the VMM said about the guest's going down.
    shutdown_reason: Option<String>,
    clock: ClockWatch,
    /// The guest's clock is being set.
    setting_clock: Option<JoinHandle<()>>,
}

impl Watch<'_> {
    /// Why the VMM ended by itself.
    async fn judge(self, status: std::io::Result<ExitStatus>) -> Outcome {
        let Self { vm, machine, shutdown_reason, .. } = self;
        let (gone, console_tail) = look_back(vm, machine, status, shutdown_reason).await;
        let (cause, reason, console_tail) = match gone {
            Gone::PoweredOff => {
                let reason = "the guest powered itself off".to_owned();
                (EndCause::GuestPowerOff, reason, Vec::new())
            }
            Gone::Reset => return Outcome::Reboot,
            Gone::Failed(cause, reason) => (cause, reason, console_tail),
        };
        Outcome::Ended(VmEnd { cause, reason, main: None, console_tail })
    }

    async fn note(&mut self, event: Event) {
        match event {
            Event::HostDiskFull => {
                self.vm.board.warn("host-disk-full: paused until there is space again".to_owned());
                self.happen(Happening::DiskFull).await;
            }
            event => {
                if let Some(reason) = shutdown(event) {
                    self.shutdown_reason = Some(reason);
                }
            }
        }
    }

    async fn tick(&mut self) {
        if !self.vm.board.stands_still() && self.clock.is_due(Reading::now()) {
            self.set_clock(|set| {
                if let Err(error) = set {
                    tracing::warn!(%error, "cannot set the guest's clock");
                }
            });
        }
        if self.vm.spec.network == NetworkPolicy::Default
            && let Err(error) = self.host.network.refresh_rules()
        {
            tracing::warn!(%error, "cannot bring the network rules up to date");
        }
        if standstill::waits_for_space(self.vm) && standstill::disk_has_space(self.vm) {
            self.happen(Happening::DiskHasSpace).await;
        }
    }

    /// Has the machine stand still or go on, as somebody wishes.
    async fn turn(&mut self, wish: Wish) {
        if let Some(setting) = self.setting_clock.take() {
            let _ = tokio::time::timeout(CLOCK_GRACE, setting).await;
        }
        if let Some(reply) = standstill::grant(self.vm, &mut self.machine.qmp, wish).await {
            self.catch_up(Some(reply));
        }
    }

    async fn happen(&mut self, happening: Happening) {
        match standstill::happen(self.vm, &mut self.machine.qmp, happening).await {
            Ok(Act::GoOn) => self.catch_up(None),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "{happening:?}"),
        }
    }

    /// The guest's clock stood still along with it. Whoever had it go on is told when it is right.
    fn catch_up(&mut self, reply: Option<Reply>) {
        self.clock = ClockWatch::new(Reading::now());
        let board = Arc::clone(&self.vm.board);
        self.set_clock(move |set| {
            if let Err(error) = set {
                tracing::warn!(%error, "cannot set the guest's clock");
                board.warn("the guest's clock could not be set after a pause".to_owned());
            }
            reply.map(|reply| reply.send(Ok(())));
        });
    }

    /// Sets the guest's clock, for which nothing else waits.
    fn set_clock(&mut self, then: impl FnOnce(Result<(), HttpError>) + Send + 'static) {
        let guest = self.machine.guest.clone();
        self.setting_clock = Some(tokio::spawn(async move {
            then(configure::set_clock(&guest).await);
        }));
    }

    /// The guest's agent hung up. Mostly the guest goes down, which the VMM will tell; an agent that
    /// only lost its connection is greeted again, meanwhile, and not too often.
    fn regain_guest(&mut self) {
        let run = self.vm.dir.join(banger_api::shim::RUN_DIR);
        let pause = self.regain_pause;
        self.regain_pause = pause.saturating_mul(2).min(MAX_REGAIN_PAUSE);
        self.regaining = Some(tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let greeted = async {
                let socket = banger_host::qemu::AGENT_SOCKET;
                let stream = banger_host::connect::unix(&run, socket).await?;
                Guest::greet(stream).await
            };
            tokio::time::timeout(REGAIN_TIMEOUT, greeted).await.ok()?.ok()
        }));
    }

    fn regained(&mut self, guest: Option<Guest>) {
        self.regaining = None;
        match guest {
            Some(guest) => {
                self.regain_pause = REGAIN_PAUSE;
                self.machine.guest = guest.clone();
                self.vm.guest.send_replace(Some(guest));
            }
            // It was halted while it was greeted.
            None if self.vm.board.stands_still() => {}
            None => self.vm.board.warn("the guest's agent does not answer any more".to_owned()),
        }
    }
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

/// The result of an attempt to regain the guest; never, if there is none.
async fn attempt(regaining: &mut Option<JoinHandle<Option<Guest>>>) -> Option<Guest> {
    match regaining {
        Some(attempt) => attempt.await.ok().flatten(),
        None => std::future::pending().await,
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

fn shutdown(event: Event) -> Option<String> {
    match event {
        Event::Shutdown { reason, .. } => Some(reason),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::launch_spec;

    #[test]
    fn an_end_without_a_guest_that_could_be_asked_is_not_called_clean() {
        let grace = Duration::from_secs(10);
        // Order, cause, part of the reason.
        let table = [
            (Order::Stop(grace), EndCause::Killed, "killed while it booted again"),
            (Order::Terminate(grace), EndCause::Terminated, "killed while it booted again"),
            (Order::Kill, EndCause::Killed, "killed by request"),
            (Order::OwnerGone(None), EndCause::OwnerGone, "is gone"),
            (Order::MainEnded(ExecEnd::Exited(3)), EndCause::MainExited, "exited with 3"),
        ];
        for (order, cause, part) in table {
            let end = order.end_in_boot();
            assert_eq!(end.cause, cause, "{order:?}");
            assert!(end.reason.contains(part), "{}", end.reason);
            assert!(!end.reason.contains("cleanly"), "{}", end.reason);
        }
    }

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
