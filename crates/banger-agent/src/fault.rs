//! Fail points of the agent's steps: see `banger_host::fault`, which does the same on the host.
//!
//! A guest cannot see the host's files. What shall happen comes with the kernel's command line
//! (`banger.fault.<step>=<effect>`), once per boot; the console says what happened. Without the
//! feature `faults` none of this is here.

use std::io;

use banger_api::step::Step;

/// Announces a step in code that may block.
///
/// # Errors
/// Only in test builds, and only what a test wants.
pub fn pass(step: Step) -> io::Result<()> {
    #[cfg(feature = "faults")]
    return armed::pass(step);
    #[cfg(not(feature = "faults"))]
    {
        let _ = step;
        Ok(())
    }
}

/// Announces a step in code that must not block its thread.
///
/// # Errors
/// Only in test builds, and only what a test wants.
#[cfg_attr(not(feature = "faults"), expect(clippy::unused_async, reason = "a fault may wait"))]
pub async fn reach(step: Step) -> io::Result<()> {
    #[cfg(feature = "faults")]
    return armed::reach(step).await;
    #[cfg(not(feature = "faults"))]
    {
        let _ = step;
        Ok(())
    }
}

#[cfg(feature = "faults")]
mod armed {
    //! The machinery, in test builds only.

    use std::collections::BTreeSet;
    use std::io;
    use std::sync::{Mutex, PoisonError};

    use banger_api::agent::{FAULT_ARG, FAULT_SAID};
    use banger_api::step::{Effect, Step};

    use crate::{boot, console};

    /// Steps whose faults have happened.
    static SPRUNG: Mutex<BTreeSet<Step>> = Mutex::new(BTreeSet::new());

    pub(super) fn pass(step: Step) -> io::Result<()> {
        match sprung(step)? {
            None => Ok(()),
            Some(Effect::Fail(error)) => Err(io::Error::from_raw_os_error(error.errno())),
            Some(Effect::Crash) => die(),
            Some(Effect::Stall | Effect::Hold) => loop {
                std::thread::park();
            },
        }
    }

    pub(super) async fn reach(step: Step) -> io::Result<()> {
        match sprung(step)? {
            None => Ok(()),
            Some(Effect::Fail(error)) => Err(io::Error::from_raw_os_error(error.errno())),
            Some(Effect::Crash) => die(),
            // Nobody can release a step of a guest.
            Some(Effect::Stall | Effect::Hold) => std::future::pending().await,
        }
    }

    fn sprung(step: Step) -> io::Result<Option<Effect>> {
        let Some(wanted) = boot::arguments::value(&format!("{FAULT_ARG}{step}")) else {
            return Ok(None);
        };
        if !SPRUNG.lock().unwrap_or_else(PoisonError::into_inner).insert(step) {
            return Ok(None);
        }
        match wanted.replace('-', " ").parse() {
            Ok(effect) => {
                console::say(&format!("{FAULT_SAID}{step}: {effect}"));
                Ok(Some(effect))
            }
            Err(error) => {
                console::say(&format!("{FAULT_SAID}{step}: {error}"));
                Err(io::Error::new(io::ErrorKind::InvalidInput, error))
            }
        }
    }

    /// Ends the agent at once. It is process 1, which no signal of its own ends.
    fn die() -> ! {
        // SAFETY: ends the process without running anything of it.
        unsafe { libc::_exit(137) }
    }
}
