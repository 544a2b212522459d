//! The task that owns a VM.
//!
//! ```text
//!            Start             ready              nothing alive
//!  Ended ──────────▶ Launching ─────▶ Live ─────────────────────▶ Ending
//!    ▲                  │ failed       ▲                            │
//!    └──────────────────┘              │ (a daemon that starts)     │
//!    └──────────────────────────────────────────────────────────────┘
//!  Ended, Launching, Ending ──▶ Removing ──▶ (the task ends)
//! ```
//!
//! In every phase the task answers requests at once. What it must do in a phase is in that phase's
//! data; what shall happen after the end is in [`super::phase::Plans`].

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use banger_api::Problem;
use banger_api::event::EventType;
use banger_api::shim::STATUS_FILE;
use banger_api::vm::{StartVm, StopVm, VmState, VmStatus};
use banger_core::lifecycle::{Desired, Remains, fresh, last_word, settle};
use banger_host::clock;
use banger_host::trace::Trace;
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::answers::{judge, judge_removal, take};
use super::attach::{Eye, read_status};
use super::end::{How, end, is_locked, kill_until_unlocked, unlocked};
use super::launch::{Launch, Launched};
use super::marks::EndMarks;
use super::phase::{Life, Phase, Plans, Start};
use super::remove::remove_traces;
use super::restart::{self, Runs};
use super::{Ask, Outcome, Report, Saved, Verdict};
use crate::daemon::{Daemon, blocking};
use crate::events::News;
use crate::pool;
use crate::store::VmRow;

/// What a stop that this daemon did not begin may take; the shim knows its true grace period.
const OTHERS_STOP: StopVm = StopVm { grace_ms: 600_000 };
/// How long after the last word of a shim its processes may take to be gone.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// The task.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) daemon: Arc<Daemon>,
    pub(super) row: Arc<VmRow>,
    /// Tells everybody else of the row.
    pub(super) rows: watch::Sender<Arc<VmRow>>,
    pub(super) dir: PathBuf,
    pub(super) status: watch::Sender<VmStatus>,
    asks: mpsc::Receiver<Ask>,
    hidden: Arc<AtomicBool>,
    pub(super) runs: Runs,
    /// Shared by those who have its root disk; see [`super::lend`].
    pub(super) root: Arc<RwLock<()>>,
}

impl Actor {
    pub(super) fn new(
        daemon: Arc<Daemon>,
        rows: watch::Sender<Arc<VmRow>>,
        status: watch::Sender<VmStatus>,
        asks: mpsc::Receiver<Ask>,
        hidden: Arc<AtomicBool>,
    ) -> Self {
        let row = Arc::clone(&rows.borrow());
        let dir = daemon.vm_dir(&row.id);
        let runs = Runs::new(&row, &status.borrow());
        Self { daemon, row, rows, dir, status, asks, hidden, runs, root: Arc::default() }
    }

    /// Runs until the VM is removed, or the daemon ends.
    pub(super) async fn run(mut self, mut phase: Phase) {
        loop {
            let next = match phase {
                Phase::Ended(status) => self.ended(status).await,
                Phase::Launching(start) => self.launching(start).await,
                Phase::Live(life) => self.live(life).await,
                Phase::Ending(plans) => self.ending(plans).await,
                Phase::Removing(plans) => self.removing(plans).await,
            };
            match next {
                Some(next) => phase = next,
                None => return,
            }
        }
    }

    async fn ended(&mut self, mut status: VmStatus) -> Option<Phase> {
        let state = status.state;
        self.publish(status.clone());
        loop {
            let ask = tokio::select! {
                ask = self.asks.recv() => ask?,
                () = restart::due(&self.daemon, status.next_start_ms) => {
                    return Some(self.start_again(status).await);
                }
            };
            let Some(ask) = self.answer_change(ask, false).await else {
                self.heed_policy(&mut status).await;
                continue;
            };
            match ask {
                Ask::Start { reply, .. } | Ask::GoBack { reply, .. }
                    if self.runs.removal_failed =>
                {
                    let _ = reply.send(Err(self.is_going()));
                }
                Ask::Start { request, saved, reply } => {
                    return Some(self.begin(request, saved, status, reply).await);
                }
                Ask::GoBack { back, reply } => {
                    if let Some(next) = self.go_back(*back, &mut status, reply).await {
                        return Some(next);
                    }
                }
                Ask::End { reply, .. } => {
                    let called_off = self.call_off(&mut status).await;
                    let _ = reply.send(called_off.map(|()| Outcome::AlreadySo));
                }
                Ask::Look => {
                    self.record_again().await;
                    if let Some(next) = self.look_at_ended(&mut status) {
                        return Some(next);
                    }
                }
                Ask::Remove { removal, reply } => {
                    let (verdict, report) = judge_removal(&self.row, state, removal);
                    let _ = reply.send(verdict);
                    if let Some(report) = report {
                        let plans = Plans { waiting_for_removal: vec![report], ..Plans::default() };
                        return Some(Phase::Removing(plans));
                    }
                }
                Ask::LendRoot { reply } => drop(reply.send(self.lend_root().await)),
                Ask::Turn { request, reply } => {
                    let _ = reply.send(judge(&self.row.name, state, request).0);
                }
                Ask::Change { .. } => {}
            }
        }
    }

    /// Accepts a start.
    pub(super) async fn begin(
        &mut self,
        request: StartVm,
        saved: Option<Saved>,
        mut status: VmStatus,
        reply: oneshot::Sender<Verdict>,
    ) -> Phase {
        let (report, work) = Report::new();
        // Whatever comes of recording it: the start says the same.
        let called_off = self.call_off(&mut status).await;
        self.note(called_off);
        let _ = reply.send(Ok(Outcome::Accepted(work)));
        Phase::Launching(Start {
            request,
            saved,
            ready: None,
            report,
            former: status,
            again: false,
        })
    }

    async fn launching(&mut self, start: Start) -> Option<Phase> {
        let Start { request, saved, ready, report, former, again } = start;
        self.runs.begin();
        self.publish(fresh(VmState::Starting, clock::now_ms()));
        let launch = Launch {
            trace: Trace::new(request.trace),
            daemon: Arc::clone(&self.daemon),
            row: Arc::clone(&self.row),
            request,
            saved,
            ready,
            events: report.events.clone(),
            cancel: report.cancel.clone(),
        };
        let launching = launch.run();
        tokio::pin!(launching);
        let mut plans = Plans::default();
        let outcome = loop {
            let ask = tokio::select! {
                outcome = &mut launching => break outcome,
                ask = self.asks.recv() => ask?,
            };
            let Some(ask) = self.answer_change(ask, plans.remove).await else { continue };
            take(&self.row, ask, VmState::Starting, &mut plans);
            if plans.ending {
                report.cancel.cancel();
            }
        };
        match outcome {
            Ok(Launched { status, line }) => {
                pool::note_start(&self.daemon, &self.row, status.origin);
                self.publish(status.clone());
                report.finish(Ok(()));
                plans.marks = EndMarks::new(line);
                Some(Phase::Live(Life { eye: Eye::default(), plans, assumed: Some(status) }))
            }
            Err(failure) => {
                let status = match again {
                    true => self.after_failed_restart(&failure, plans.ending).await,
                    false => self.after_failure(former, &failure, plans.ending).await,
                };
                self.publish(status.clone());
                report.finish(Err(self.as_told(failure.problem, plans.ending)));
                Some(self.after_end(status, plans, failure.spawned))
            }
        }
    }

    async fn live(&mut self, mut life: Life) -> Option<Phase> {
        if life.plans.remove || life.plans.ending {
            life.plans.ending = true;
            self.begin_end(How::Kill, &life.plans);
        }
        self.see_through(&mut life.plans);
        self.runs.note(&self.status.borrow());
        let shims = Arc::clone(&self.daemon.host.shims);
        let dir = self.dir.clone();
        let turns = self.take_turns();
        loop {
            tokio::select! {
                news = life.eye.next(shims.as_ref(), &dir) => match news {
                    // The last word is read from the file, once nothing is alive.
                    Some(status) if !status.state.is_live() => {
                        life.plans.last_word = Some(Box::new(status));
                    }
                    Some(mut status) => {
                        restart::mind_directory(&dir, restart::LOST_DIRECTORY, &mut status);
                        self.publish_live(status, life.plans.ending);
                        self.see_through(&mut life.plans);
                    }
                    None => return Some(Phase::Ending(life.plans)),
                },
                ask = self.asks.recv() => {
                    let Some(ask) = self.answer_change(ask?, life.plans.remove).await else {
                        continue;
                    };
                    if matches!(ask, Ask::Look) && !is_locked(shims.as_ref(), &dir) {
                        tracing::warn!(vm = %self.row.name, "it is gone and nobody said so");
                        return Some(Phase::Ending(life.plans));
                    }
                    let mut now = self.status.borrow().clone();
                    if matches!(ask, Ask::Look)
                        && restart::mind_directory(&dir, restart::LOST_DIRECTORY, &mut now)
                    {
                        self.publish(now.clone());
                    }
                    let Some(ask) = turns.take(&self.row.name, ask, now.state) else { continue };
                    if let Some(how) = take(&self.row, ask, now.state, &mut life.plans) {
                        self.begin_end(how, &life.plans);
                        self.publish_live(now, true);
                    }
                }
            }
        }
    }

    async fn ending(&mut self, mut plans: Plans) -> Option<Phase> {
        let began = plans.marks.begin();
        let shims = Arc::clone(&self.daemon.host.shims);
        let (dir, name) = (self.dir.clone(), self.row.name.clone());
        let gone = async {
            if timeout(LAST_BREATH, unlocked(shims.as_ref(), &dir)).await.is_err() {
                tracing::warn!(vm = %name, "its shim is gone and something of it lives");
                kill_until_unlocked(shims.as_ref(), &dir).await;
            }
        };
        tokio::pin!(gone);
        loop {
            tokio::select! {
                () = &mut gone => break,
                ask = self.asks.recv() => {
                    let Some(ask) = self.answer_change(ask?, plans.remove).await else { continue };
                    take(&self.row, ask, VmState::Stopping, &mut plans);
                }
            }
        }
        plans.marks.shim_gone(began).await;
        let heard = plans.last_word.take().map(|word| *word);
        let seen = self.status.borrow().clone();
        let written = last_word(self.written_status().await, heard, seen);
        let remains = Remains {
            desired: Desired::Running,
            recorded: None,
            traces: self.traces(&written).await,
            written: Some(written),
            created_at_ms: self.row.created_at_ms,
        };
        let status = plans.forced.correct(settle(remains, clock::now_ms()));
        let status = self.rest(status, plans.ending || plans.remove);
        // One that goes stays wanted until it is marked as going, so that the next daemon removes it.
        if !self.is_due(&plans) {
            self.record(&status).await;
        }
        if let Some(end) = &status.end {
            tracing::info!(vm = %self.row.name, cause = ?end.cause, "ended: {}", end.reason);
        }
        self.publish(status.clone());
        Some(self.after_end(status, plans, true))
    }

    /// What comes after an end: nothing, or the removal.
    fn after_end(&self, status: VmStatus, mut plans: Plans, ran: bool) -> Phase {
        plans.over.cancel();
        for report in plans.waiting_for_end.drain(..) {
            report.finish(Ok(()));
        }
        let due = ran && self.is_due(&plans);
        if plans.remove || due { Phase::Removing(plans) } else { Phase::Ended(status) }
    }

    /// Whether it goes by itself when it has ended.
    fn is_due(&self, plans: &Plans) -> bool {
        self.row.spec.remove_on_exit && !plans.keep
    }

    async fn removing(&mut self, mut plans: Plans) -> Option<Phase> {
        self.hidden.store(true, Ordering::Relaxed);
        let began = plans.marks.begin();
        let (daemon, row) = (Arc::clone(&self.daemon), Arc::clone(&self.row));
        let removal = remove_traces(&daemon, &row.id);
        tokio::pin!(removal);
        let outcome = loop {
            let ask = tokio::select! {
                outcome = &mut removal => break outcome,
                ask = self.asks.recv() => ask?,
            };
            match ask {
                Ask::Remove { reply, .. } => {
                    let (report, work) = Report::new();
                    plans.waiting_for_removal.push(report);
                    let _ = reply.send(Ok(Outcome::Accepted(work)));
                }
                // Whoever asks for the end gets more than that; the others find no VM.
                Ask::End { reply, .. } => drop(reply.send(Ok(Outcome::AlreadySo))),
                Ask::Look | Ask::Start { .. } | Ask::Turn { .. } => {}
                Ask::Change { .. } | Ask::LendRoot { .. } | Ask::GoBack { .. } => {}
            }
        };
        if outcome.is_ok() {
            self.daemon.forget(&self.row.id);
            self.daemon.events.tell(News::vm(EventType::VmRemoved, &self.row));
        }
        plans.marks.removed(began, &plans.waiting_for_removal);
        for report in plans.waiting_for_removal {
            report.finish(outcome.clone());
        }
        let problem = outcome.err()?;
        tracing::warn!(vm = %self.row.name, "cannot be removed: {problem}");
        self.hidden.store(false, Ordering::Relaxed);
        let mut status = self.status.borrow().clone();
        status.next_start_ms = None;
        status.warnings.push(format!("its removal failed and can be repeated: {problem}"));
        self.runs.removal_failed = true;
        Some(Phase::Ended(status))
    }

    /// An end that a former daemon began, or the shim by itself, is seen through: a shim may hang.
    fn see_through(&self, plans: &mut Plans) {
        let is_others = !plans.ending && !plans.seen_through;
        if is_others && self.status.borrow().state == VmState::Stopping {
            plans.seen_through = true;
            self.begin_end(How::Stop(OTHERS_STOP), plans);
        }
    }

    fn begin_end(&self, how: How, plans: &Plans) {
        let (daemon, dir) = (Arc::clone(&self.daemon), self.dir.clone());
        let (forced, over) = (plans.forced.clone(), plans.over.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = end(daemon, &dir, how, forced) => {}
                // The VM may be started again at once, and must not be taken for the one to end.
                () = over.cancelled() => {}
            }
        });
    }

    pub(super) async fn written_status(&self) -> Option<VmStatus> {
        let file = self.dir.join(STATUS_FILE);
        blocking(move || Ok(read_status(&file))).await.ok().flatten()
    }

    fn publish_live(&mut self, status: VmStatus, ending: bool) {
        let going = ending && matches!(status.state, VmState::Running | VmState::Paused);
        if going {
            let since_ms = clock::now_ms();
            let paused = Vec::new();
            self.publish(VmStatus { state: VmState::Stopping, since_ms, paused, ..status });
        } else {
            self.publish(status);
        }
    }

    pub(super) fn publish(&mut self, mut status: VmStatus) {
        self.runs.mark(&mut status);
        self.status.send_if_modified(|now| {
            let changed = *now != status;
            if let Some(news) = News::of_change(&self.row, now, &status) {
                self.daemon.events.tell(news);
            }
            *now = status;
            changed
        });
    }

    /// Says what could not be recorded: what it was is still so, or is recorded at the next look.
    pub(super) fn note(&self, outcome: Result<(), Problem>) {
        if let Err(problem) = outcome {
            tracing::error!(vm = %self.row.name, "{problem}");
        }
    }
}
