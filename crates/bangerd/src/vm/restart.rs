//! What comes after an end by itself: the VM's restart policy, and the record of a start that failed.
//!
//! Whether and when is decided in [`banger_core::restart`]. What was decided is part of the recorded
//! status before anybody hears of it, so a daemon that starts goes on with the same pause.

use std::path::Path;
use std::time::Duration;

use banger_api::event::EventType;
use banger_api::vm::{EndCause, VmState, VmStatus};
use banger_api::{ErrorCode, Problem, step};
use banger_core::lifecycle::{Desired, Traces, fresh, plain_end};
use banger_core::restart::{Run, after, wait_ms, wants};
use banger_host::clock;

use super::Report;
use super::actor::Actor;
use super::launch::{Failure, last_environment};
use super::phase::{Phase, Start};
use crate::daemon::Daemon;
use crate::events::News;
use crate::store::VmRow;

/// Said of a VM whose directory somebody removed.
const NO_DIRECTORY: &str = "its directory is missing, and its disk with it; it can only be removed";

/// The same of one that runs.
pub(super) const LOST_DIRECTORY: &str =
    "its directory is missing: it runs on and can only be ended, and its disk goes with it";

/// What is remembered of a VM's runs.
#[derive(Debug)]
pub(super) struct Runs {
    /// How often in a row the policy has started it.
    restarts: u32,
    /// Since when the guest is up.
    up_since_ms: Option<u64>,
    /// Its removal has failed and is due again.
    pub(super) removal_failed: bool,
    /// How it ended, which could not be recorded.
    unrecorded: Option<VmStatus>,
}

impl Runs {
    pub(super) fn new(row: &VmRow, status: &VmStatus) -> Self {
        let last = if status.state.is_live() { row.last.as_ref() } else { Some(status) };
        let restarts = last.map_or(0, |last| last.restarts);
        Self { restarts, up_since_ms: None, removal_failed: false, unrecorded: None }
    }

    /// A start begins.
    pub(super) fn begin(&mut self) {
        self.up_since_ms = None;
        self.unrecorded = None;
    }

    /// Notes since when the guest is up; one that stands still is.
    pub(super) fn note(&mut self, status: &VmStatus) {
        let is_up = matches!(status.state, VmState::Running | VmState::Paused);
        if is_up && self.up_since_ms.is_none() {
            self.up_since_ms = Some(status.since_ms);
        }
    }

    /// Completes the status of a VM that lives by what its shim does not know.
    pub(super) fn mark(&mut self, status: &mut VmStatus) {
        self.note(status);
        if status.state.is_live() {
            status.restarts = self.restarts;
            status.next_start_ms = None;
        }
    }
}

/// Comes when a start is due; never, if none is, or the daemon ends.
pub(super) async fn due(daemon: &Daemon, next_start_ms: Option<u64>) {
    let Some(next_start_ms) = next_start_ms else { return std::future::pending().await };
    let wait = Duration::from_millis(wait_ms(next_start_ms, clock::now_ms()));
    tokio::time::sleep(wait).await;
    if daemon.operations.is_closing() {
        std::future::pending::<()>().await;
    }
}

/// Warns of a directory that is missing, and no longer of one that is back. Whether anything changed.
pub(super) fn mind_directory(dir: &Path, warning: &str, status: &mut VmStatus) -> bool {
    let was_missing = status.warnings.iter().any(|it| it == warning);
    match (dir.is_dir(), was_missing) {
        (true, true) => status.warnings.retain(|it| it != warning),
        (false, false) => {
            tracing::warn!(dir = %dir.display(), "{warning}");
            status.warnings.push(warning.to_owned());
        }
        _ => return false,
    }
    true
}

impl Actor {
    /// What the restart policy makes of an end.
    pub(super) fn rest(&mut self, ended: VmStatus, asked: bool) -> VmStatus {
        let up_since_ms = self.runs.up_since_ms.unwrap_or(ended.since_ms);
        let run = Run {
            policy: self.row.spec.restart,
            asked,
            restarts: self.runs.restarts,
            ran_ms: Some(ended.since_ms.saturating_sub(up_since_ms)),
        };
        let status = after(run, ended, clock::now_ms());
        self.runs.restarts = status.restarts;
        status
    }

    /// Starts it again, as it was started last.
    pub(super) async fn start_again(&mut self, status: VmStatus) -> Phase {
        tracing::info!(vm = %self.row.name, restarts = status.restarts, "is started again");
        self.daemon.events.tell(News::vm(EventType::VmRestarting, &self.row));
        let request = last_environment(&self.daemon, &self.row.id).await;
        let (report, _nobody) = Report::new();
        Phase::Launching(Start {
            request,
            saved: None,
            ready: None,
            report,
            former: status,
            again: true,
        })
    }

    /// Somebody wants something else than the start that is due.
    ///
    /// # Errors
    /// If that cannot be recorded; the start stays due.
    pub(super) async fn call_off(&mut self, status: &mut VmStatus) -> Result<(), Problem> {
        if status.next_start_ms.is_none() && status.restarts == 0 {
            return Ok(());
        }
        let called_off = VmStatus { restarts: 0, next_start_ms: None, ..status.clone() };
        let (id, record) = (self.row.id.clone(), called_off.clone());
        self.daemon.gate.pass(step::STOP_RECORD).await?;
        self.daemon.store(move |store| store.record_end(&id, &record)).await?;
        *status = called_off;
        self.runs.restarts = 0;
        self.publish(status.clone());
        Ok(())
    }

    /// Calls off a start that was due when the policy was another.
    pub(super) async fn heed_policy(&mut self, status: &mut VmStatus) {
        let is_wanted = status.end.as_ref().is_some_and(|end| wants(self.row.spec.restart, end));
        if status.next_start_ms.is_some() && !is_wanted {
            let called_off = self.call_off(status).await;
            self.note(called_off);
        }
    }

    /// Looks whether an ended VM is what it is taken for.
    pub(super) fn look_at_ended(&mut self, status: &mut VmStatus) -> Option<Phase> {
        if std::mem::take(&mut self.runs.removal_failed) {
            return Some(Phase::found_to_remove());
        }
        if mind_directory(&self.dir, NO_DIRECTORY, status) {
            self.publish(status.clone());
        }
        None
    }

    /// What tells how a shim ended whose last word was `written`.
    pub(super) async fn traces(&self, written: &VmStatus) -> Traces {
        let shims = &self.daemon.host.shims;
        if written.state.is_live() {
            return shims.traces(&self.dir).await;
        }
        shims.forget(&self.dir);
        Traces::default()
    }

    /// What whoever waits for a start is told of its failure: why, if others have `ended` it.
    pub(super) fn as_told(&self, problem: Problem, ended: bool) -> Problem {
        if !ended || problem.code != ErrorCode::Cancelled {
            return problem;
        }
        let is_over = self.row.expires_at_ms.is_some_and(|at_ms| at_ms <= clock::now_ms());
        let (cause, hint) = match is_over {
            true => ("its time to live was over", "give it more time: --ttl"),
            false => ("it was stopped or removed meanwhile", "banger ls"),
        };
        Problem::new(ErrorCode::Cancelled, format!("VM {} did not start", self.row.name))
            .cause(cause)
            .hint(hint)
    }

    /// Writes down how the VM ended; at the next look, if that cannot be done now.
    pub(super) async fn record(&mut self, status: &VmStatus) {
        let (id, record) = (self.row.id.clone(), status.clone());
        let recorded = async {
            self.daemon.gate.pass(step::STOP_RECORD).await?;
            self.daemon.store(move |store| store.record_end(&id, &record)).await
        };
        let recorded = recorded.await;
        self.runs.unrecorded = recorded.is_err().then(|| status.clone());
        self.note(recorded);
    }

    /// Writes down what could not be before.
    pub(super) async fn record_again(&mut self) {
        if let Some(status) = self.runs.unrecorded.take() {
            self.record(&status).await;
        }
    }

    /// Records what a VM is that its policy could not start.
    pub(super) async fn after_failed_restart(
        &mut self,
        failure: &Failure,
        asked: bool,
    ) -> VmStatus {
        let ended = match failure.spawned {
            true => self.failed_run(failure, asked).await,
            false => ended(EndCause::LaunchFailed, &failure.problem.to_string()),
        };
        let status = self.rest(ended, asked);
        self.record(&status).await;
        status
    }

    /// Records what a VM is that did not come up. One that goes stays wanted until it is marked as
    /// going, so that the next daemon removes it.
    pub(super) async fn after_failure(
        &mut self,
        former: VmStatus,
        failure: &Failure,
        asked: bool,
    ) -> VmStatus {
        if !failure.spawned {
            // No run, so nothing about the last one changes.
            let id = self.row.id.clone();
            self.note(
                self.daemon.store(move |store| store.set_desired(&id, Desired::Stopped)).await,
            );
            return former;
        }
        let status = self.failed_run(failure, asked).await;
        if !self.row.spec.remove_on_exit {
            self.record(&status).await;
        }
        status
    }

    /// How a run ended that did not come up.
    async fn failed_run(&self, failure: &Failure, asked: bool) -> VmStatus {
        let was_cancelled = failure.problem.code == ErrorCode::Cancelled;
        match self.written_status().await {
            Some(status) if !status.state.is_live() && !was_cancelled => status,
            other => {
                let ended = if was_cancelled || asked {
                    ended(EndCause::Killed, "its start was cancelled")
                } else {
                    ended(EndCause::LaunchFailed, &failure.problem.to_string())
                };
                VmStatus { engine: other.and_then(|status| status.engine), ..ended }
            }
        }
    }
}

fn ended(cause: EndCause, reason: &str) -> VmStatus {
    VmStatus { end: Some(plain_end(cause, reason)), ..fresh(cause.state(), clock::now_ms()) }
}
