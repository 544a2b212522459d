//! Work that several operations want at once and that is done once.
//!
//! Each waiter holds a lease on the one internal operation that does the work; it is cancelled when
//! the last of them has been.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use banger_api::Problem;
use banger_api::operation::{OperationEvent, OperationResult};
use tokio_util::sync::CancellationToken;

use super::entry::Entry;
use super::{Handle, Operations, Subscription, Visibility, cancelled};

/// What the work is for: two requests with the same key want the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharedKey {
    /// What is done, for people: `pull image alpine`.
    pub description: String,
    /// All that was asked, in a text that is the same for the same.
    pub request: String,
}

/// Who waits for shared work.
#[derive(Clone, Copy)]
pub struct Waiter<'a> {
    /// Set when it does not want it any more.
    pub cancel: &'a CancellationToken,
    /// Told how far it is.
    pub tell: &'a (dyn Fn(OperationEvent) + Send + Sync),
}

impl std::fmt::Debug for Waiter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiter").finish_non_exhaustive()
    }
}

/// Work under way that others may join.
#[derive(Debug, Default)]
pub struct Shared {
    running: Mutex<BTreeMap<SharedKey, Weak<Entry>>>,
}

impl Shared {
    /// Does the work, or waits for the same work that is under way, passing on its progress.
    ///
    /// # Errors
    /// Those of the work; `cancelled` if `waiter` was.
    pub async fn join<W, F>(
        &self,
        operations: &Operations,
        key: SharedKey,
        waiter: &Handle,
        work: W,
    ) -> Result<OperationResult, Problem>
    where
        W: FnOnce(Handle) -> F,
        F: Future<Output = Result<OperationResult, Problem>> + Send + 'static,
    {
        let waiter = Waiter { cancel: waiter.cancel_token(), tell: &|event| waiter.forward(event) };
        self.join_as(operations, key, waiter, work).await
    }

    /// The same for a waiter that is no operation.
    ///
    /// # Errors
    /// As [`Shared::join`].
    pub async fn join_as<W, F>(
        &self,
        operations: &Operations,
        key: SharedKey,
        waiter: Waiter<'_>,
        work: W,
    ) -> Result<OperationResult, Problem>
    where
        W: FnOnce(Handle) -> F,
        F: Future<Output = Result<OperationResult, Problem>> + Send + 'static,
    {
        let mut work = Some(work);
        loop {
            let mut subscription = match self.enter(operations, &key, &mut work) {
                Entered::Joined(subscription) => subscription,
                // Somebody gave it up; it must clean up before it can be done again.
                Entered::Dying(mut ending) => {
                    while ending.next().await.is_some() {}
                    continue;
                }
            };
            return follow(&mut subscription, waiter).await;
        }
    }

    fn enter<W, F>(&self, operations: &Operations, key: &SharedKey, work: &mut Option<W>) -> Entered
    where
        W: FnOnce(Handle) -> F,
        F: Future<Output = Result<OperationResult, Problem>> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, entry| entry.upgrade().is_some_and(|entry| entry.is_running()));
        if let Some(entry) = running.get(key).and_then(Weak::upgrade) {
            return if entry.is_cancelled() {
                Entered::Dying(Subscription::new(entry, false))
            } else {
                Entered::Joined(Subscription::new(entry, true))
            };
        }
        let work = work.take().expect("the loop ends once the work has begun");
        let entry = operations.begin(key.description.clone(), Visibility::Internal, work);
        running.insert(key.clone(), Arc::downgrade(&entry));
        Entered::Joined(Subscription::new(entry, true))
    }
}

enum Entered {
    Joined(Subscription),
    Dying(Subscription),
}

/// Passes events on until the end. A waiter that is cancelled leaves; if it was the last one it
/// stays until the work has cleaned up.
async fn follow(
    subscription: &mut Subscription,
    waiter: Waiter<'_>,
) -> Result<OperationResult, Problem> {
    let mut leaving = false;
    loop {
        let event = tokio::select! {
            event = subscription.next() => event,
            () = waiter.cancel.cancelled(), if !leaving => {
                leaving = true;
                if subscription.release() {
                    continue;
                }
                return Err(cancelled());
            }
        };
        match event {
            Some(OperationEvent::Succeeded { result }) => return Ok(result),
            Some(OperationEvent::Failed { problem }) => return Err(problem),
            Some(other) => (waiter.tell)(other),
            None => return Err(cancelled()),
        }
    }
}
