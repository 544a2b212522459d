//! The way from one named step of a VM's life to the next.
//!
//! The steps are in [`banger_api::step`]. In the daemon passing one does nothing. Tests stop the
//! world at each of them in turn, or make the step fail, and look at what is left: those of this
//! crate with a trap, those with real machines through [`banger_host::fault`].

use banger_api::Problem;
use banger_api::step::Step;
use banger_host::fault;

use crate::daemon::failed;

/// Lets steps through.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    #[cfg(test)]
    trap: Option<std::sync::Arc<trap::Trap>>,
}

impl Gate {
    /// To be awaited right before the effect of `step`.
    ///
    /// # Errors
    /// Only where a test wants the step to fail.
    pub async fn pass(&self, step: Step) -> Result<(), Problem> {
        tracing::trace!(%step);
        #[cfg(test)]
        if let Some(trap) = &self.trap {
            return trap.spring(step).await;
        }
        fault::reach(step).await.map_err(|error| failed(format!("the step {step} failed"), &error))
    }
}

#[cfg(test)]
pub mod trap {
    //! Stopping at a step.

    use std::collections::BTreeSet;
    use std::fmt;
    use std::sync::{Arc, Mutex};

    use banger_api::Problem;
    use banger_api::step::{Failing, Step};
    use tokio::sync::Notify;

    use super::Gate;
    use crate::daemon::failed;

    /// What happens at the step.
    pub enum Effect {
        /// The world ends right before it.
        Crash,
        /// It fails.
        Fail(Failing),
        /// It waits until it is told to go on.
        Hold(Arc<Notify>),
        /// It goes on, but right before something happens to the world.
        Strike(Box<dyn Fn() + Send + Sync>),
    }

    impl fmt::Debug for Effect {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(match self {
                Self::Crash => "Crash",
                Self::Fail(_) => "Fail",
                Self::Hold(_) => "Hold",
                Self::Strike(_) => "Strike",
            })
        }
    }

    /// A trap at each of some steps, that springs once.
    #[derive(Debug)]
    pub struct Trap {
        armed: Mutex<BTreeSet<Step>>,
        effect: Effect,
        passed: Mutex<BTreeSet<Step>>,
        /// Told when the trap has sprung.
        pub reached: Notify,
    }

    impl Trap {
        pub fn at(step: Step, effect: Effect) -> Arc<Self> {
            Self::at_each(&[step], effect)
        }

        pub fn at_each(steps: &[Step], effect: Effect) -> Arc<Self> {
            let armed = Mutex::new(steps.iter().copied().collect());
            Arc::new(Self { armed, effect, passed: Mutex::default(), reached: Notify::new() })
        }

        pub fn gate(self: &Arc<Self>) -> Gate {
            Gate { trap: Some(Arc::clone(self)) }
        }

        pub fn has_sprung(&self) -> bool {
            self.armed.lock().unwrap().is_empty()
        }

        /// Every step that was passed.
        pub fn passed(&self) -> BTreeSet<Step> {
            self.passed.lock().unwrap().clone()
        }

        pub(super) async fn spring(&self, step: Step) -> Result<(), Problem> {
            self.passed.lock().unwrap().insert(step);
            if !self.armed.lock().unwrap().remove(&step) {
                return Ok(());
            }
            self.reached.notify_one();
            match &self.effect {
                Effect::Crash => std::future::pending().await,
                Effect::Fail(error) => {
                    let error = std::io::Error::from_raw_os_error(error.errno());
                    Err(failed(format!("the step {step} failed"), &error))
                }
                Effect::Hold(go_on) => {
                    go_on.notified().await;
                    Ok(())
                }
                Effect::Strike(strike) => {
                    strike();
                    Ok(())
                }
            }
        }
    }
}
