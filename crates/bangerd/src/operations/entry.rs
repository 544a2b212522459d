//! One operation: its history, its end, its leases.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_api::operation::{Operation, OperationEvent, OperationResult, OperationState, Progress};
use banger_api::{ErrorCode, Problem};
use banger_core::id::Id;
use banger_host::clock;
use banger_host::trace::Trace;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How many events are kept. Counts of one stage, and of one thing of it, replace each
/// other, so this is stages, their things and warnings.
const HISTORY: usize = 256;

/// One operation.
#[derive(Debug)]
pub(super) struct Entry {
    id: Id,
    description: String,
    listed: bool,
    started_at_ms: u64,
    cancel: CancellationToken,
    /// The number of the newest event; told to whoever waits for one.
    newest: watch::Sender<u64>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Numbered events, the numbers rising. The last one of an operation that has ended is its end.
    history: Vec<(u64, OperationEvent)>,
    leases: usize,
    finished_at_ms: Option<u64>,
}

impl Entry {
    pub(super) fn new(id: Id, description: String, listed: bool) -> Arc<Self> {
        let inner = Inner { history: Vec::new(), leases: 0, finished_at_ms: None };
        Arc::new(Self {
            id,
            description,
            listed,
            started_at_ms: clock::now_ms(),
            cancel: CancellationToken::new(),
            newest: watch::Sender::new(0),
            inner: Mutex::new(inner),
        })
    }

    pub(super) fn operation(&self) -> Operation {
        Operation {
            id: self.id.to_string(),
            description: self.description.clone(),
            state: self.inner().state(),
        }
    }

    pub(super) fn is_listed(&self) -> bool {
        self.listed
    }

    pub(super) fn started_at_ms(&self) -> u64 {
        self.started_at_ms
    }

    pub(super) fn finished_at_ms(&self) -> Option<u64> {
        self.inner().finished_at_ms
    }

    pub(super) fn is_running(&self) -> bool {
        self.finished_at_ms().is_none()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    pub(super) fn cancel(&self) {
        if self.is_running() {
            self.cancel.cancel();
        }
    }

    fn add(&self, event: OperationEvent) {
        let mut inner = self.inner();
        if inner.finished_at_ms.is_none() {
            self.append(&mut inner, event);
        }
    }

    fn append(&self, inner: &mut Inner, event: OperationEvent) {
        let number = self.newest.borrow().wrapping_add(1);
        if let Some(at) = replaced(&inner.history, &event) {
            inner.history.remove(at);
        }
        if inner.history.len() >= HISTORY {
            inner.history.remove(0);
        }
        inner.history.push((number, event));
        self.newest.send_replace(number);
    }

    fn finish(&self, outcome: Result<OperationResult, Problem>) {
        let mut inner = self.inner();
        if inner.finished_at_ms.is_some() {
            return;
        }
        let event = match outcome {
            Ok(result) => OperationEvent::Succeeded { result },
            Err(problem) => {
                tracing::info!(operation = %self.id, what = %self.description, "failed: {problem}");
                OperationEvent::Failed { problem }
            }
        };
        inner.finished_at_ms = Some(clock::now_ms());
        self.append(&mut inner, event);
        // It may be remembered for a while.
        inner.history.shrink_to_fit();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn state(&self) -> OperationState {
        match self.history.last() {
            Some((_, OperationEvent::Succeeded { result })) => {
                OperationState::Succeeded { result: result.clone() }
            }
            Some((_, OperationEvent::Failed { problem })) => {
                OperationState::Failed { problem: problem.clone() }
            }
            _ => OperationState::Running,
        }
    }
}

/// The event that says no more than the newer one: how far the same thing, or the same stage as a
/// whole, was before. Of every thing the last word stays, so that a listener who is slow, or comes
/// late, hears of each that is done.
fn replaced(history: &[(u64, OperationEvent)], newer: &OperationEvent) -> Option<usize> {
    let OperationEvent::Progress(newer) = newer else { return None };
    if newer.item.is_some() {
        return history.iter().rposition(|(_, event)| {
            of_stage(event, &newer.stage).is_some_and(|older| older.item == newer.item)
        });
    }
    // A stage that took turns with another has begun anew, which is worth telling.
    for (at, (_, event)) in history.iter().enumerate().rev() {
        let older = of_stage(event, &newer.stage)?;
        if older.item.is_none() {
            return (older.message == newer.message).then_some(at);
        }
    }
    None
}

fn of_stage<'a>(event: &'a OperationEvent, stage: &str) -> Option<&'a Progress> {
    match event {
        OperationEvent::Progress(progress) if progress.stage == stage => Some(progress),
        _ => None,
    }
}

/// The working side of an operation.
#[derive(Debug, Clone)]
pub struct Handle {
    entry: Arc<Entry>,
}

impl Handle {
    pub(super) fn new(entry: Arc<Entry>) -> Self {
        Self { entry }
    }

    /// Tells how far the work is.
    pub fn progress(&self, progress: Progress) {
        self.entry.add(OperationEvent::Progress(progress));
    }

    /// Passes on an event of work that this operation includes. Ends are not passed on.
    pub fn forward(&self, event: OperationEvent) {
        match event {
            OperationEvent::Progress(_)
            | OperationEvent::Warning { .. }
            | OperationEvent::Mark(_) => self.entry.add(event),
            OperationEvent::Succeeded { .. } | OperationEvent::Failed { .. } => {}
        }
    }

    /// Tells where time went, as far as somebody asked.
    pub fn mark(&self, trace: &Trace) {
        for mark in trace.take() {
            self.entry.add(OperationEvent::Mark(mark));
        }
    }

    /// Tells something worth telling that is no failure.
    pub fn warn(&self, message: impl Into<String>) {
        self.entry.add(OperationEvent::Warning { message: message.into() });
    }

    /// Set when somebody wants the work to end.
    #[must_use]
    pub fn cancel_token(&self) -> &CancellationToken {
        &self.entry.cancel
    }

    /// Fails if somebody wants the work to end.
    ///
    /// # Errors
    /// `cancelled`.
    pub fn check_cancelled(&self) -> Result<(), Problem> {
        if self.entry.is_cancelled() { Err(super::cancelled()) } else { Ok(()) }
    }
}

/// Ends the operation even if its work panics.
#[derive(Debug)]
pub(super) struct FinishOnDrop {
    entry: Arc<Entry>,
}

impl FinishOnDrop {
    pub(super) fn new(entry: Arc<Entry>) -> Self {
        Self { entry }
    }

    pub(super) fn with(self, outcome: Result<OperationResult, Problem>) {
        self.entry.finish(outcome);
    }
}

impl Drop for FinishOnDrop {
    fn drop(&mut self) {
        // Has no effect after `with`.
        self.entry.finish(Err(Problem::new(
            ErrorCode::Internal,
            "the daemon gave the operation up; its log says more",
        )
        .hint("banger daemon logs")));
    }
}

/// The events of an operation, from the first on.
#[derive(Debug)]
pub struct Subscription {
    entry: Arc<Entry>,
    newest: watch::Receiver<u64>,
    seen: u64,
    lease: bool,
}

impl Subscription {
    pub(super) fn new(entry: Arc<Entry>, lease: bool) -> Self {
        if lease {
            entry.inner().leases += 1;
        }
        Self { newest: entry.newest.subscribe(), entry, seen: 0, lease }
    }

    /// The next event; None after the last one. May be cancelled without losing anything.
    pub async fn next(&mut self) -> Option<OperationEvent> {
        loop {
            // Marked as seen first: an event that comes in between wakes the wait below.
            self.newest.borrow_and_update();
            {
                let inner = self.entry.inner();
                let next = inner.history.iter().find(|(number, _)| *number > self.seen);
                if let Some((number, event)) = next {
                    self.seen = *number;
                    return Some(event.clone());
                }
                if inner.finished_at_ms.is_some() {
                    return None;
                }
            }
            self.newest.changed().await.ok()?;
        }
    }

    /// Gives the lease back and goes on listening. Whether that cancelled the operation.
    pub fn release(&mut self) -> bool {
        if std::mem::take(&mut self.lease) {
            let mut inner = self.entry.inner();
            inner.leases -= 1;
            if inner.leases == 0 && inner.finished_at_ms.is_none() {
                self.entry.cancel.cancel();
            }
        }
        self.entry.is_cancelled()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.release();
    }
}
