//! Long work: a registry of operations, their progress, and who still wants them.
//!
//! An operation is cancelled by `DELETE /v1/operations/{id}`, or when the last client that holds a
//! lease on it hangs up. Cancelling asks; the operation ends when its work has cleaned up after
//! itself, so a client that saw the end may rely on it.
//!
//! Nothing here survives the daemon. What work must not lose is in the database before it acts.

mod entry;
mod shared;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_api::operation::{Operation, OperationResult};
use banger_api::{ErrorCode, Problem};
use banger_core::id::Id;
use banger_host::{clock, random};

use entry::{Entry, FinishOnDrop};
pub use entry::{Handle, Subscription};
pub use shared::{Shared, SharedKey, Waiter};

/// How long a finished operation can still be asked about.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);
/// How many finished operations are remembered at most: each may take some KiB.
pub const REMEMBERED_COUNT: usize = 256;
/// How often a waiting shutdown looks again.
const IDLE_POLL: Duration = Duration::from_millis(20);

/// Whether people see an operation in lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visibility {
    Listed,
    /// Part of others, which are listed.
    Internal,
}

/// All operations of this daemon.
#[derive(Debug, Clone, Default)]
pub struct Operations {
    entries: Arc<Mutex<BTreeMap<Id, Arc<Entry>>>>,
    /// Set when the daemon ends: what begins now is cancelled at once.
    closing: Arc<AtomicBool>,
}

impl Operations {
    /// Begins an operation: `work` is driven to its end, whoever listens.
    pub fn start<W, F>(&self, description: impl Into<String>, work: W) -> Operation
    where
        W: FnOnce(Handle) -> F,
        F: Future<Output = Result<OperationResult, Problem>> + Send + 'static,
    {
        self.begin(description.into(), Visibility::Listed, work).operation()
    }

    fn begin<W, F>(&self, description: String, visibility: Visibility, work: W) -> Arc<Entry>
    where
        W: FnOnce(Handle) -> F,
        F: Future<Output = Result<OperationResult, Problem>> + Send + 'static,
    {
        let id = Id::from_bytes(random::bytes());
        let entry = Entry::new(id.clone(), description, visibility == Visibility::Listed);
        self.with_entries(|entries| {
            forget_old(entries, clock::now_ms());
            entries.insert(id, Arc::clone(&entry));
        });
        if self.closing.load(Ordering::Relaxed) {
            entry.cancel();
        }
        let finish = FinishOnDrop::new(Arc::clone(&entry));
        let future = work(Handle::new(Arc::clone(&entry)));
        tokio::spawn(async move {
            let outcome = future.await;
            finish.with(outcome);
        });
        entry
    }

    /// Whether the daemon ends.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Every operation that people should see, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Operation> {
        let mut listed: Vec<_> = self.with_entries(|entries| {
            entries.values().filter(|entry| entry.is_listed()).cloned().collect()
        });
        listed.sort_by_key(|entry: &Arc<Entry>| entry.started_at_ms());
        listed.iter().map(|entry| entry.operation()).collect()
    }

    /// One operation.
    ///
    /// # Errors
    /// `operation_not_found`.
    pub fn get(&self, id: &str) -> Result<Operation, Problem> {
        self.entry(id).map(|entry| entry.operation())
    }

    /// Its events from the first on. A subscription with a lease keeps it going.
    ///
    /// # Errors
    /// `operation_not_found`.
    pub fn subscribe(&self, id: &str, lease: bool) -> Result<Subscription, Problem> {
        self.entry(id).map(|entry| Subscription::new(entry, lease))
    }

    /// Asks an operation to end. One that has ended stays as it is.
    ///
    /// # Errors
    /// `operation_not_found`.
    pub fn cancel(&self, id: &str) -> Result<Operation, Problem> {
        let entry = self.entry(id)?;
        entry.cancel();
        Ok(entry.operation())
    }

    /// Asks all operations to end, those that begin from now on too, and waits until they have, or
    /// the time is up.
    pub async fn cancel_all(&self, patience: Duration) {
        self.closing.store(true, Ordering::Relaxed);
        self.with_entries(|entries| entries.values().for_each(|entry| entry.cancel()));
        let idle = async {
            while self.with_entries(|entries| entries.values().any(|entry| entry.is_running())) {
                tokio::time::sleep(IDLE_POLL).await;
            }
        };
        if tokio::time::timeout(patience, idle).await.is_err() {
            tracing::warn!("operations are still under way; they end with the daemon");
        }
    }

    fn entry(&self, id: &str) -> Result<Arc<Entry>, Problem> {
        let known = Id::parse(id)
            .and_then(|id| self.with_entries(|entries| entries.get(&id).map(Arc::clone)));
        known.ok_or_else(|| {
            Problem::new(
                ErrorCode::OperationNotFound,
                format!("there is no operation {id:?}; ended ones are forgotten after ten minutes"),
            )
        })
    }

    fn with_entries<T>(&self, act: impl FnOnce(&mut BTreeMap<Id, Arc<Entry>>) -> T) -> T {
        act(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Drops what ended long ago, and of the rest the oldest beyond the bound.
fn forget_old(entries: &mut BTreeMap<Id, Arc<Entry>>, now_ms: u64) {
    let oldest_ms =
        now_ms.saturating_sub(u64::try_from(REMEMBERED.as_millis()).unwrap_or(u64::MAX));
    entries.retain(|_, entry| entry.finished_at_ms().is_none_or(|at| at >= oldest_ms));
    let mut finished: Vec<(u64, Id)> = entries
        .iter()
        .filter_map(|(id, entry)| entry.finished_at_ms().map(|at| (at, id.clone())))
        .collect();
    if finished.len() > REMEMBERED_COUNT {
        finished.sort();
        for (_, id) in finished.drain(..finished.len() - REMEMBERED_COUNT) {
            entries.remove(&id);
        }
    }
}

/// The problem of work that was cancelled.
#[must_use]
pub fn cancelled() -> Problem {
    Problem::new(ErrorCode::Cancelled, "cancelled")
}

#[cfg(test)]
mod tests;
