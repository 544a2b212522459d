//! Named points between the steps of creating, starting and removing a VM.
//!
//! In the daemon they do nothing. Tests stop the world at each of them in turn, or make the step
//! fail, and look at what is left.

use banger_api::Problem;

/// Every step that leaves a trace on the disk or in the database, in the order in which a VM meets
/// them. A test takes each of them as the moment of a crash.
#[cfg(test)]
pub const STEPS: [&str; 13] = [
    "create.row",
    "create.directory",
    "create.disk",
    "start.prepare",
    "start.forget_last_run",
    "start.intend",
    "start.write_launch_file",
    "start.spawn",
    "create.finish",
    "remove.mark",
    "remove.rename",
    "remove.row",
    "remove.tree",
];

/// Lets steps through.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    #[cfg(test)]
    trap: Option<std::sync::Arc<trap::Trap>>,
}

impl Gate {
    /// To be awaited right before the step `step`.
    ///
    /// # Errors
    /// Only where a test wants the step to fail.
    #[cfg_attr(not(test), expect(clippy::unused_async, reason = "a test's trap may never return"))]
    pub async fn pass(&self, step: &'static str) -> Result<(), Problem> {
        tracing::trace!(step);
        #[cfg(test)]
        if let Some(trap) = &self.trap {
            return trap.spring(step).await;
        }
        Ok(())
    }
}

#[cfg(test)]
pub mod trap {
    //! Stopping at a step.

    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use banger_api::{ErrorCode, Problem};
    use tokio::sync::Notify;

    use super::{Gate, STEPS};

    /// What happens at the step.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Effect {
        /// The world ends right before it.
        Crash,
        /// It fails.
        Fail,
    }

    /// A trap at one step.
    #[derive(Debug)]
    pub struct Trap {
        step: &'static str,
        effect: Effect,
        sprung: AtomicBool,
        /// Told when the trap has sprung.
        pub reached: Notify,
    }

    impl Trap {
        pub fn at(step: &'static str, effect: Effect) -> Arc<Self> {
            assert!(STEPS.contains(&step), "{step} is in the list of steps");
            Arc::new(Self { step, effect, sprung: AtomicBool::new(false), reached: Notify::new() })
        }

        pub fn gate(self: &Arc<Self>) -> Gate {
            Gate { trap: Some(Arc::clone(self)) }
        }

        pub fn has_sprung(&self) -> bool {
            self.sprung.load(Ordering::SeqCst)
        }

        pub(super) async fn spring(&self, step: &'static str) -> Result<(), Problem> {
            assert!(STEPS.contains(&step), "{step} is in the list of steps");
            if step != self.step || self.sprung.swap(true, Ordering::SeqCst) {
                return Ok(());
            }
            self.reached.notify_one();
            match self.effect {
                Effect::Crash => std::future::pending().await,
                Effect::Fail => Err(Problem::new(ErrorCode::Internal, "a test made it fail")),
            }
        }
    }
}
