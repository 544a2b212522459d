//! A running machine until it ends: orders, the VMM's events, the clock.
//!
//! ```text
//!            ┌──────────────── HostDiskFull ───────────────▶ paused
//!   running ─┤◀─────────────── space again ────────────────────┘
//!            ├─ Stop, MainEnded, OwnerGone(stop) ─▶ stopping ─▶ ended
//!            ├─ Kill, OwnerGone(kill) ────────────────────────▶ ended
//!            ├─ guest powers off, panics; VMM dies ───────────▶ ended
//!            └─ guest reboots ────────────────────────────────▶ started again
//! ```

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use banger_api::agent::{Shutdown, ShutdownAction};
use banger_api::exec::ExecEnd;
use banger_api::shim::SHIM_LOG_FILE;
use banger_api::vm::{EndCause, OwnerPolicy, VmEnd, VmState};
use banger_host::qemu::qmp::Event;
use banger_host::{files, logs};
use serde_json::json;
use tokio::sync::mpsc;

use crate::clock_watch::{ClockWatch, Reading};
use crate::configure;
use crate::guest::Guest;
use crate::launch::Machine;
use crate::supervise::Vm;

/// How often the clock and the host's disk are looked at.
const TICK: Duration = Duration::from_secs(2);
/// A VM paused by a full disk goes on when there is this much space again.
const RESUME_FREE_BYTES: u64 = 64 * 1024 * 1024;
/// What a guest gets on top of its grace period to answer that it is down.
const ANSWER_GRACE: Duration = Duration::from_secs(2);
/// Grace of a stop that nobody gave one.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// What a running machine can be told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    /// Stop cleanly within a grace period.
    Stop(Duration),
    /// End at once.
    Kill,
    /// The main process ended.
    MainEnded(ExecEnd),
    /// The owner's stream ended, after its command or without it.
    OwnerGone(Option<ExecEnd>),
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
    machine: Machine,
    orders: &mut mpsc::Receiver<Order>,
) -> Outcome {
    let mut watch =
        Watch { vm, clock: ClockWatch::new(Reading::now()), shutdown_reason: None, machine };
    let mut tick = tokio::time::interval(TICK);
    loop {
        let machine = &mut watch.machine;
        tokio::select! {
            Some(order) = orders.recv() => return watch.obey(order, orders).await,
            status = machine.vmm.wait() => return watch.judge(status).await,
            Some(event) = machine.events.recv() => watch.note(event),
            () = machine.guest.closed() => watch.regain_guest().await,
            _ = tick.tick() => watch.tick().await,
        }
    }
}

struct Watch<'a> {
    vm: &'a Vm,
    machine: Machine,
    /// What the VMM said about the guest's going down.
    shutdown_reason: Option<String>,
    clock: ClockWatch,
}

impl Watch<'_> {
    async fn obey(mut self, order: Order, orders: &mut mpsc::Receiver<Order>) -> Outcome {
        let (cause, main) = match order {
            Order::Kill => (EndCause::Killed, None),
            Order::Stop(_) => (EndCause::Stopped, None),
            Order::MainEnded(end) | Order::OwnerGone(Some(end)) => {
                (EndCause::MainExited, Some(end))
            }
            Order::OwnerGone(None) => (EndCause::OwnerGone, None),
        };
        let grace = match order {
            Order::Kill => None,
            Order::OwnerGone(_) if self.vm.spec.owner != Some(OwnerPolicy::Stop) => None,
            Order::Stop(grace) => Some(grace),
            Order::MainEnded(_) | Order::OwnerGone(_) => Some(DEFAULT_GRACE),
        };
        let clean = match grace {
            Some(grace) => self.shut_down(grace, orders).await,
            None => true,
        };
        // Nothing is lost: either the guest has synced and unmounted, or that was not wanted.
        if let Err(error) = self.machine.vmm.kill() {
            tracing::error!(%error, "cannot kill the VMM");
        }
        let _ = self.machine.vmm.wait().await;
        let cause = if clean { cause } else { EndCause::StopTimedOut };
        Outcome::Ended(VmEnd { reason: reason(cause, main), cause, main, console_tail: Vec::new() })
    }

    /// Asks the guest to go down; false if it did not in time, or somebody lost patience.
    async fn shut_down(&mut self, grace: Duration, orders: &mut mpsc::Receiver<Order>) -> bool {
        self.vm.board.enter(VmState::Stopping);
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        // Processes that ignore SIGTERM must leave time for the sync.
        let request = Shutdown { action: ShutdownAction::PowerOff, grace_ms: grace_ms * 3 / 4 };
        let limit = grace + ANSWER_GRACE;
        let told = configure::tell(&self.machine.guest, "/v1/shutdown", &request, limit);
        tokio::select! {
            told = told => told.is_ok(),
            // Gone by itself: what it had to say is in the console.
            _ = self.machine.vmm.wait() => true,
            () = told_to_kill(orders) => false,
        }
    }

    /// Why the VMM ended by itself.
    async fn judge(self, status: std::io::Result<ExitStatus>) -> Outcome {
        let Self { vm, machine, shutdown_reason, .. } = self;
        let mut events = machine.events;
        let tail = machine.console.finish().await;
        let mut reason = shutdown_reason;
        while let Ok(event) = events.try_recv() {
            reason = shutdown(event).or(reason);
        }
        let ended = |cause, reason: String| {
            let console_tail =
                if matches!(cause, EndCause::GuestPowerOff) { Vec::new() } else { tail.lines() };
            Outcome::Ended(VmEnd { cause, reason, main: None, console_tail })
        };
        match (tail.panic(), reason.as_deref()) {
            (Some(line), _) => ended(EndCause::GuestPanic, format!("guest kernel panic: {line}")),
            (None, Some("guest-reset")) => Outcome::Reboot,
            (None, Some("guest-shutdown")) => {
                ended(EndCause::GuestPowerOff, "the guest powered itself off".to_owned())
            }
            _ => ended(EndCause::VmmExited, describe_vmm_end(&vm.dir, status)),
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::HostDiskFull => {
                self.vm.board.warn("host-disk-full: paused until there is space again".to_owned());
                self.vm.board.enter(VmState::Paused);
            }
            event => {
                if let Some(reason) = shutdown(event) {
                    self.shutdown_reason = Some(reason);
                }
            }
        }
    }

    async fn tick(&mut self) {
        if self.clock.is_due(Reading::now()) {
            let guest = self.machine.guest.clone();
            tokio::spawn(async move {
                if let Err(error) = configure::set_clock(&guest).await {
                    tracing::warn!(%error, "cannot set the guest's clock");
                }
            });
        }
        let paused = self.vm.board.now().state == VmState::Paused;
        if paused && files::free_bytes(&self.vm.dir).is_ok_and(|free| free > RESUME_FREE_BYTES) {
            match self.machine.qmp.execute("cont", json!({})).await {
                Ok(_) => self.vm.board.enter(VmState::Running),
                Err(error) => tracing::warn!(%error, "cannot resume the VM"),
            }
        }
    }

    /// The guest's agent hung up. Mostly the guest goes down, which the VMM will tell; an agent that
    /// only lost its connection is greeted again.
    async fn regain_guest(&mut self) {
        let run = self.vm.dir.join(banger_api::shim::RUN_DIR);
        let greeted = async {
            let socket = banger_host::qemu::AGENT_SOCKET;
            let stream = banger_host::connect::unix(&run, socket).await?;
            Guest::greet(stream).await
        };
        tokio::select! {
            // The loop sees the VMM's end again.
            _ = self.machine.vmm.wait() => {}
            greeted = tokio::time::timeout(DEFAULT_GRACE, greeted) => {
                if let Ok(Ok(guest)) = greeted {
                    self.machine.guest = guest.clone();
                    self.vm.guest.send_replace(Some(guest));
                } else {
                    self.vm.board.warn("the guest's agent does not answer any more".to_owned());
                }
            }
        }
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

/// An end in words.
pub(crate) fn reason(cause: EndCause, main: Option<ExecEnd>) -> String {
    match (cause, main) {
        (EndCause::MainExited, Some(ExecEnd::Exited(code))) => {
            format!("the command exited with {code}")
        }
        (EndCause::MainExited, Some(ExecEnd::Signaled(number))) => {
            format!("the command was killed by signal {number}")
        }
        (EndCause::MainExited, _) => "the command ran out of time".to_owned(),
        (EndCause::Killed, _) => "killed by request".to_owned(),
        (EndCause::StopTimedOut, _) => {
            "killed: the guest did not stop within its grace period".to_owned()
        }
        (EndCause::OwnerGone, _) => "the client that started it is gone".to_owned(),
        _ => "stopped by request".to_owned(),
    }
}

/// How the VMM ended, with the last thing that was said.
pub(crate) fn describe_vmm_end(vm_dir: &Path, status: std::io::Result<ExitStatus>) -> String {
    let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    let log = std::fs::read(vm_dir.join(SHIM_LOG_FILE)).unwrap_or_default();
    let last = logs::printable(
        log.rsplit(|byte| *byte == b'\n').find(|l| !l.is_empty()).unwrap_or_default(),
    );
    if last.is_empty() {
        return format!("the VMM ended with {how}");
    }
    format!("the VMM ended with {how}: {last}")
}
