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

use banger_api::vm::{EndCause, NetworkPolicy, VmEnd};
use banger_core::standstill::{Act, Happening};
use banger_host::http::HttpError;
use banger_host::qemu::qmp::Event;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::capture;
use crate::clock_watch::{ClockWatch, Reading};
use crate::configure;
use crate::ends::Gone;
use crate::farewell::{look_back, obey, shutdown};
use crate::guest::Guest;
use crate::launch::{Host, Machine};
use crate::order::Order;
use crate::standstill::{self, Reply, Wish};
use crate::supervise::Vm;

/// How often the clock and the host's disk are looked at.
const TICK: Duration = Duration::from_secs(2);
/// Pause before an agent that hung up is greeted again; twice as long after each time that it did
/// not answer.
const REGAIN_PAUSE: Duration = Duration::from_secs(1);
/// Longest such pause: a guest that never answers costs the host next to nothing.
const MAX_REGAIN_PAUSE: Duration = Duration::from_secs(30);
/// How long it may take to answer then.
const REGAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a pause waits for a clock that is being set: what is under way then would come late.
const CLOCK_GRACE: Duration = Duration::from_secs(1);

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
            wish = vm.captures.next() => {
                let Watch { host, machine, .. } = &mut watch;
                let told = capture::grant(vm, host, machine, orders, wish).await;
                if let Some(order) = told {
                    return Outcome::Ended(obey(vm, watch.machine, order, orders).await);
                }
                if !vm.board.stands_still() {
                    watch.catch_up(None);
                }
            }
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

/// The result of an attempt to regain the guest; never, if there is none.
async fn attempt(regaining: &mut Option<JoinHandle<Option<Guest>>>) -> Option<Guest> {
    match regaining {
        Some(attempt) => attempt.await.ok().flatten(),
        None => std::future::pending().await,
    }
}
