//! What happens, for whoever listens: a bounded memory of events, and subscriptions that read it.
//!
//! Telling never waits. A subscription reads at its own pace from where it is; what was forgotten
//! before it came there is counted and told to it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_api::change::Change;
use banger_api::event::{Event, EventType};
use banger_api::operation::OperationResult;
use banger_api::vm::{VmState, VmStatus};
use banger_host::clock;
use tokio::sync::watch;

use crate::host::Job;
use crate::store::VmRow;

/// How many events are remembered. One takes about 200 bytes.
const REMEMBERED: usize = 4096;
/// Longest reason, in characters: some come from a guest.
const MAX_REASON: usize = 500;

/// Something that happened, before it has a number.
#[derive(Debug, Clone)]
pub struct News(Event);

impl News {
    fn new(kind: EventType) -> Self {
        Self(Event {
            number: 0,
            time_ms: 0,
            kind,
            id: None,
            name: None,
            cause: None,
            reason: None,
            exit_code: None,
            origin: None,
            next_start_ms: None,
            missed: None,
        })
    }

    /// Of a VM.
    #[must_use]
    pub fn vm(kind: EventType, row: &VmRow) -> Self {
        Self::named(kind, row.id.as_str(), &row.name)
    }

    /// Of an image or a kernel.
    #[must_use]
    pub fn named(kind: EventType, id: &str, name: &str) -> Self {
        let mut news = Self::new(kind);
        news.0.id = Some(id.to_owned());
        news.0.name = Some(name.to_owned());
        news
    }

    /// The same news with a reason.
    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        self.0.reason = Some(reason.chars().take(MAX_REASON).collect());
        self
    }

    /// That the daemon began.
    #[must_use]
    pub fn daemon_started() -> Self {
        Self::new(EventType::DaemonStarted)
    }

    /// What a change of a VM's status means; None if it is nothing that happened to it.
    #[must_use]
    pub fn of_change(row: &VmRow, before: &VmStatus, after: &VmStatus) -> Option<Self> {
        if before.state == after.state {
            return None;
        }
        let kind = match (before.state, after.state) {
            (_, VmState::Created) => return None,
            (_, VmState::Starting) => EventType::VmStarting,
            (VmState::Paused, VmState::Running) => EventType::VmResumed,
            (_, VmState::Running) => EventType::VmRunning,
            (_, VmState::Paused) => EventType::VmPaused,
            (_, VmState::Stopping) => EventType::VmStopping,
            (_, VmState::Stopped) => EventType::VmStopped,
            (_, VmState::Failed) => EventType::VmFailed,
        };
        let mut news = Self::vm(kind, row);
        news.0.origin = after.origin.filter(|_| kind == EventType::VmRunning);
        if !after.state.is_live() && after.since_ms < before.since_ms {
            // A start that came to nothing leaves the VM as it was.
            news.0.reason = Some("it did not start".to_owned());
        } else if let Some(end) = &after.end {
            news.0.cause = Some(end.cause);
            news.0.reason = Some(end.reason.chars().take(MAX_REASON).collect());
            news.0.exit_code = end.main.map(banger_api::exec::ExecEnd::exit_code);
            news.0.next_start_ms = after.next_start_ms;
        } else if !after.paused.is_empty() {
            let reasons: Vec<&str> = after.paused.iter().map(|reason| reason.as_str()).collect();
            news.0.reason = Some(reasons.join(", "));
        }
        Some(news)
    }

    /// What of a VM was set to something else.
    #[must_use]
    pub fn of_settings(row: &VmRow, changes: &[Change]) -> Self {
        let mut news = Self::vm(EventType::VmChanged, row);
        let settings: Vec<&str> = changes.iter().map(|change| change.setting.as_str()).collect();
        news.0.reason = Some(settings.join(", ").chars().take(MAX_REASON).collect());
        news
    }

    /// What long work has brought.
    #[must_use]
    pub fn of_job(job: &Job, result: &OperationResult) -> Option<Self> {
        let kind = match (job, result) {
            (Job::PullImage(_), _) => EventType::ImagePulled,
            (Job::RegisterImage(_) | Job::PromoteVm(_), _) => EventType::ImageRegistered,
            (Job::PushImage(_), _) => EventType::ImagePushed,
            (Job::PullKernel(_), _) => EventType::KernelPulled,
            (Job::ImportKernel(_), _) => EventType::KernelRegistered,
        };
        match (job, result) {
            (_, OperationResult::Image(image)) => {
                Some(Self::named(kind, &image.digest, &image.name))
            }
            (_, OperationResult::Kernel(kernel)) => {
                Some(Self::named(kind, &kernel.digest, &kernel.name))
            }
            (Job::PushImage(request), _) => {
                let mut news = Self::new(kind);
                news.0.name = Some(request.name.clone());
                Some(news)
            }
            _ => None,
        }
    }
}

/// The events of this daemon.
#[derive(Debug, Default)]
pub struct Events {
    memory: Mutex<VecDeque<Event>>,
    newest: watch::Sender<u64>,
}

impl Events {
    /// Adds one, and forgets the oldest if there are too many.
    pub fn tell(&self, news: News) {
        let mut memory = self.memory();
        let number = self.newest.borrow().saturating_add(1);
        memory.push_back(Event { number, time_ms: clock::now_ms(), ..news.0 });
        if memory.len() > REMEMBERED {
            memory.pop_front();
        }
        self.newest.send_replace(number);
    }

    /// Begins to read: with the first that is remembered from `since_ms` on, or with the next one.
    /// Without `follow` it ends with the last that is remembered now.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, since_ms: Option<u64>, follow: bool) -> Subscription {
        let memory = self.memory();
        let newest = *self.newest.borrow();
        let seen = match since_ms {
            Some(since_ms) => memory
                .iter()
                .find(|event| event.time_ms >= since_ms)
                .map_or(newest, |event| event.number - 1),
            None => newest,
        };
        let last = (!follow).then_some(newest);
        let changes = self.newest.subscribe();
        drop(memory);
        Subscription { events: Arc::clone(self), changes, seen, last }
    }

    fn memory(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader.
#[derive(Debug)]
pub struct Subscription {
    events: Arc<Events>,
    changes: watch::Receiver<u64>,
    seen: u64,
    last: Option<u64>,
}

impl Subscription {
    /// The next event; None after the last. May be cancelled without losing anything.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if self.last.is_some_and(|last| self.seen >= last) {
                return None;
            }
            // Marked as seen first: an event that comes in between wakes the wait below.
            self.changes.borrow_and_update();
            if let Some(event) = self.take() {
                return Some(event);
            }
            self.changes.changed().await.ok()?;
        }
    }

    fn take(&mut self) -> Option<Event> {
        let memory = self.events.memory();
        let oldest = memory.front()?.number;
        let missed = oldest.saturating_sub(self.seen.saturating_add(1));
        if missed > 0 {
            self.seen = oldest - 1;
            let News(event) = News::new(EventType::EventsMissed);
            let time_ms = clock::now_ms();
            return Some(Event { number: self.seen, time_ms, missed: Some(missed), ..event });
        }
        let index = usize::try_from(self.seen.saturating_add(1) - oldest).ok()?;
        let event = memory.get(index)?.clone();
        self.seen = event.number;
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use banger_api::vm::PauseReason;
    use banger_core::lifecycle::{fresh, plain_end};

    use super::*;
    use crate::store::tests_support::any_row;

    fn tell(events: &Events, count: usize) {
        let row = any_row("aaaaaaaaaaaa", "web");
        (0..count).for_each(|_| events.tell(News::vm(EventType::VmChanged, &row)));
    }

    async fn numbers(mut subscription: Subscription) -> Vec<(u64, Option<u64>)> {
        let mut found = Vec::new();
        while let Some(event) = subscription.next().await {
            found.push((event.number, event.missed));
        }
        found
    }

    #[tokio::test]
    async fn a_reader_gets_what_is_remembered_or_what_comes() {
        let events = Arc::new(Events::default());
        tell(&events, 2);
        assert_eq!(numbers(events.subscribe(Some(0), false)).await, [(1, None), (2, None)]);
        assert_eq!(numbers(events.subscribe(None, false)).await, []);
        assert_eq!(numbers(events.subscribe(Some(u64::MAX), false)).await, []);
        let mut following = events.subscribe(None, true);
        tell(&events, 1);
        assert_eq!(following.next().await.map(|event| event.number), Some(3));
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_missed_and_nobody_waits() {
        let events = Arc::new(Events::default());
        tell(&events, 1);
        let mut slow = events.subscribe(Some(0), true);
        assert_eq!(slow.next().await.map(|event| event.number), Some(1));
        tell(&events, REMEMBERED + 10);
        let missed = slow.next().await.expect("told");
        assert_eq!((missed.kind, missed.missed), (EventType::EventsMissed, Some(10)));
        assert_eq!(slow.next().await.map(|event| event.number), Some(12), "and goes on");
    }

    #[test]
    fn changes_of_state_are_events_and_others_are_not() {
        use VmState::{Created, Failed, Paused, Running, Starting, Stopped, Stopping};
        let row = any_row("aaaaaaaaaaaa", "web");
        let table = [
            (Created, Starting, Some(EventType::VmStarting)),
            (Starting, Running, Some(EventType::VmRunning)),
            (Running, Running, None),
            (Running, Paused, Some(EventType::VmPaused)),
            (Paused, Running, Some(EventType::VmResumed)),
            (Running, Stopping, Some(EventType::VmStopping)),
            (Stopping, Stopped, Some(EventType::VmStopped)),
            (Running, Failed, Some(EventType::VmFailed)),
            (Starting, Created, None),
        ];
        for (before, after, kind) in table {
            let news = News::of_change(&row, &fresh(before, 1), &fresh(after, 2));
            assert_eq!(news.map(|news| news.0.kind), kind, "{before} {after}");
        }
        let paused = vec![PauseReason::Requested, PauseReason::HostDiskFull];
        let paused = VmStatus { paused, ..fresh(Paused, 2) };
        let news = News::of_change(&row, &fresh(Running, 1), &paused).expect("news");
        assert_eq!(news.0.reason.as_deref(), Some("requested, host-disk-full"));
        let end = plain_end(banger_api::vm::EndCause::GuestPanic, &"x".repeat(5_000));
        let failed = VmStatus { end: Some(end), ..fresh(Failed, 2) };
        let news = News::of_change(&row, &fresh(Running, 1), &failed).expect("news");
        assert_eq!(news.0.reason.map(|reason| reason.len()), Some(MAX_REASON));
    }
}
