//! The token by which long work is called off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A switch that one side turns and the other looks at. Clones share the switch.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    cancelled: Arc<AtomicBool>,
}

impl Cancel {
    /// A switch that nobody has turned yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Call the work off. Turning it twice is the same as once.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Whether the work has been called off.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}
