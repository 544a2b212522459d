//! Fail points: places where a test can end a process, make a step fail, or hold it.
//!
//! Each named step ([`banger_api::step`]) is announced here right before its effect. Without the
//! feature `faults` that does nothing and costs nothing. With it, the directory `$BANGER_FAULTS`
//! says what happens:
//!
//! ```text
//! <step>            what shall happen there: crash, fail EIO|ENOSPC|ETIMEDOUT, stall, hold
//! <step>.sprung     the same, after it happened: it happens once, whoever is started again
//! <step>.given      the same, while a guest has it that has not come to that step
//! <step>.release    a step that holds goes on; without it, the step fails after three minutes
//! trace             every step that was passed: its name and the process's id, a line each
//! ```
//!
//! A step whose file says something else fails, and says so.
//!
//! The daemon, the shim and the CLI come here. The agent cannot see the host's files: the shim
//! hands its faults to it ([`for_the_guest`]), and hears on the guest's console what came of them
//! ([`guest_said`]).

use std::io;

use banger_api::step::Step;

/// Announces a step in code that may block.
///
/// # Errors
/// Only in test builds, and only what a test wants.
#[inline]
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
#[inline]
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

/// Words for the guest kernel's command line that make the agent's steps do what tests want.
#[must_use]
#[inline]
pub fn for_the_guest() -> Vec<String> {
    #[cfg(feature = "faults")]
    return armed::for_the_guest();
    #[cfg(not(feature = "faults"))]
    Vec::new()
}

/// Notes a line of the guest's console: it may say that a fault has sprung.
#[inline]
pub fn guest_said(line: &str) {
    #[cfg(feature = "faults")]
    armed::guest_said(line);
    #[cfg(not(feature = "faults"))]
    let _ = line;
}

/// The variables that a child must be given to have fail points too.
pub(crate) const INHERITED: &[&str] = {
    #[cfg(feature = "faults")]
    {
        &[armed::VARIABLE]
    }
    #[cfg(not(feature = "faults"))]
    {
        &[]
    }
};

#[cfg(feature = "faults")]
mod armed {
    //! The machinery, in test builds only.

    use std::fs::OpenOptions;
    use std::io::{self, Write};
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use banger_api::step::{ALL, Effect, Process, Step};

    /// The directory that says what happens.
    pub(super) const VARIABLE: &str = "BANGER_FAULTS";
    /// How often a step that holds looks whether it may go on.
    const LOOK: Duration = Duration::from_millis(5);
    /// How long it waits. A test that has not released it by then never will.
    const HOLD_LIMIT: Duration = Duration::from_secs(180);

    fn directory() -> Option<PathBuf> {
        crate::environment::get(VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from)
    }

    pub(super) fn pass(step: Step) -> io::Result<()> {
        let Some(dir) = directory() else { return Ok(()) };
        match sprung(&dir, step)? {
            None => Ok(()),
            Some(Effect::Crash) => die(),
            Some(Effect::Fail(error)) => Err(io::Error::from_raw_os_error(error.errno())),
            Some(Effect::Stall) => loop {
                std::thread::park();
            },
            Some(Effect::Hold) => {
                let hold = Hold::of(&dir, step, HOLD_LIMIT);
                while hold.lasts()? {
                    std::thread::sleep(LOOK);
                }
                Ok(())
            }
        }
    }

    pub(super) async fn reach(step: Step) -> io::Result<()> {
        let Some(dir) = directory() else { return Ok(()) };
        match sprung(&dir, step)? {
            None => Ok(()),
            Some(Effect::Crash) => die(),
            Some(Effect::Fail(error)) => Err(io::Error::from_raw_os_error(error.errno())),
            Some(Effect::Stall) => std::future::pending().await,
            Some(Effect::Hold) => {
                let hold = Hold::of(&dir, step, HOLD_LIMIT);
                while hold.lasts()? {
                    tokio::time::sleep(LOOK).await;
                }
                Ok(())
            }
        }
    }

    pub(super) fn for_the_guest() -> Vec<String> {
        let Some(dir) = directory() else { return Vec::new() };
        let of_the_agent = ALL.iter().filter(|(_, step)| step.process() == Process::Agent);
        of_the_agent
            .filter_map(|(_, step)| {
                let (_, text) = taken(&dir, *step, "given")?;
                // What makes no sense is the agent's to tell, on its console.
                let effect = text.split_whitespace().collect::<Vec<_>>().join("-");
                Some(format!("{}{}={effect}", banger_api::agent::FAULT_ARG, step.name()))
            })
            .collect()
    }

    pub(super) fn guest_said(line: &str) {
        let said = line.split_once(banger_api::agent::FAULT_SAID);
        let name = said.and_then(|(_, rest)| rest.split_once(':')).map(|(name, _)| name);
        let Some((dir, name)) = directory().zip(name) else { return };
        // A guest says what it likes: only a step's name is a file's.
        if let Some((_, step)) = ALL.iter().find(|(_, step)| step.name() == name) {
            let of = |state: &str| dir.join(format!("{step}.{state}"));
            // A guest that repeats itself has nothing new to say.
            let _ = std::fs::rename(of("given"), of("sprung"));
        }
    }

    /// Writes down that the step was passed, and takes what shall happen there, once.
    fn sprung(dir: &Path, step: Step) -> io::Result<Option<Effect>> {
        let line = format!("{step} {}\n", std::process::id());
        let trace = OpenOptions::new().append(true).create(true).open(dir.join("trace"));
        // A test that cannot see that a step was passed fails by itself.
        let _ = trace.and_then(|mut trace| trace.write_all(line.as_bytes()));
        let Some((file, text)) = taken(dir, step, "sprung") else { return Ok(None) };
        let effect = text.parse().map_err(|error| {
            let words = format!("the test's file {}: {error}", file.display());
            io::Error::new(io::ErrorKind::InvalidInput, words)
        })?;
        Ok(Some(effect))
    }

    /// What shall happen at the step, and the file that says so, if nobody took it before.
    fn taken(dir: &Path, step: Step, state: &str) -> Option<(PathBuf, String)> {
        let file = dir.join(format!("{step}.{state}"));
        // Of several processes that come here at once, one gets it.
        std::fs::rename(dir.join(step.name()), &file).ok()?;
        let text = std::fs::read_to_string(&file).ok()?;
        Some((file, text))
    }

    /// A step that waits until it is released.
    struct Hold {
        release: PathBuf,
        limit: Duration,
        deadline: Instant,
    }

    impl Hold {
        fn of(dir: &Path, step: Step, limit: Duration) -> Self {
            let release = dir.join(format!("{step}.release"));
            Self { release, limit, deadline: Instant::now() + limit }
        }

        /// Whether it has to wait on.
        fn lasts(&self) -> io::Result<bool> {
            if self.release.exists() {
                return Ok(false);
            }
            if Instant::now() < self.deadline {
                return Ok(true);
            }
            let release = self.release.display();
            let words = format!("the test did not make {release} within {:?}", self.limit);
            Err(io::Error::new(io::ErrorKind::TimedOut, words))
        }
    }

    /// Ends this process at once: nothing of it runs any more.
    fn die() -> ! {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL);
        // Process 1 of a namespace is spared by signals from inside. This ends it as abruptly.
        // SAFETY: ends the process without running anything of it.
        unsafe { libc::_exit(137) }
    }

    #[cfg(test)]
    mod tests {
        use banger_api::step;

        use super::*;

        #[test]
        fn a_fault_happens_once_and_every_step_is_traced() {
            let dir = tempfile::tempdir().expect("temporary directory");
            std::fs::write(dir.path().join("create.row"), "fail ENOSPC\n").expect("write");
            let at = |step| sprung(dir.path(), step).expect("what makes sense");
            assert_eq!(at(step::CREATE_DISK), None);
            let effect = at(step::CREATE_ROW).expect("the fault");
            assert_eq!(effect.to_string(), "fail ENOSPC");
            assert_eq!(at(step::CREATE_ROW), None, "it has happened");
            assert!(dir.path().join("create.row.sprung").exists());
            let trace = std::fs::read_to_string(dir.path().join("trace")).expect("a trace");
            let names: Vec<&str> =
                trace.lines().filter_map(|line| line.split(' ').next()).collect();
            assert_eq!(names, ["create.disk", "create.row", "create.row"]);
        }

        #[test]
        fn a_step_that_holds_goes_on_when_it_is_released() {
            let dir = tempfile::tempdir().expect("temporary directory");
            let hold = Hold::of(dir.path(), step::VM_BOOT, HOLD_LIMIT);
            assert!(hold.lasts().expect("there is time"));
            std::fs::write(dir.path().join("vm.boot.release"), "").expect("write");
            assert!(!hold.lasts().expect("it was released"));
        }

        #[test]
        fn a_step_that_nobody_releases_fails_and_says_so() {
            let dir = tempfile::tempdir().expect("temporary directory");
            let hold = Hold::of(dir.path(), step::VM_BOOT, Duration::ZERO);
            let error = hold.lasts().expect_err("time is up");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(error.to_string().contains("vm.boot.release"), "{error}");
        }

        #[test]
        fn a_file_that_makes_no_sense_fails_the_step() {
            let dir = tempfile::tempdir().expect("temporary directory");
            std::fs::write(dir.path().join("vm.boot"), "explode").expect("write");
            let error = sprung(dir.path(), step::VM_BOOT).expect_err("no effect");
            assert!(
                error.to_string().contains("vm.boot.sprung: \"explode\" is none of"),
                "{error}"
            );
        }
    }
}
