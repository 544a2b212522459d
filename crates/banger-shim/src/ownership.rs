//! VMs that belong to a foreground client.
//!
//! Such a VM ends with the client's exec stream, however that ends. Between the guest's being up and
//! the stream's opening the client may die, too, so it has a limited time to come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::order::Order;

/// How long the owner may take to come.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Whether the owner has come.
#[derive(Debug, Clone)]
pub(crate) struct Ownership {
    owned: bool,
    arrived: Arc<AtomicBool>,
}

impl Ownership {
    /// Of a VM that has an owner, or not.
    pub(crate) fn new(owned: bool) -> Self {
        Self { owned, arrived: Arc::default() }
    }

    /// The owner has come.
    pub(crate) fn arrive(&self) {
        self.arrived.store(true, Ordering::Relaxed);
    }

    /// From now on the owner's time runs.
    pub(crate) fn expect_soon(&self, orders: mpsc::Sender<Order>) {
        if !self.owned {
            return;
        }
        let arrived = Arc::clone(&self.arrived);
        tokio::spawn(async move {
            tokio::time::sleep(ARRIVAL_TIMEOUT).await;
            if !arrived.load(Ordering::Relaxed) {
                // A VM that does not take orders any more is ending.
                let _ = orders.send(Order::OwnerGone(None)).await;
            }
        });
    }

    /// Whether the VM has an owner at all.
    pub(crate) fn owned(&self) -> bool {
        self.owned
    }
}
