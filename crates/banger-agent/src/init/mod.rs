//! The image's own init as the guest's first process, with the agent beside it.
//!
//! | module | what |
//! |---|---|
//! | [`first`] | the first process, until the image's init takes its place |
//! | [`program`] | which program of the image that is |
//! | [`notify`] | how it says that it has started everything |
//! | [`down`] | how it is asked to power off or to reboot |
//!
//! ```text
//!            split                        handed over
//!   pid 1 ─────┬──── waits ────────────────────┬──── /sbin/init ───▶
//!              └──── agent: boot, configure ───┴──── agent: serves ─▶
//! ```
//!
//! The two share root and working directory until the hand-over, so that the agent's switch of the
//! root is the first process's too.

pub mod down;
pub mod first;
pub mod program;

mod notify;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use banger_api::agent::SystemState;
use tokio::sync::watch;

use notify::Notifications;
use program::Program;

/// Why the image's init is not the first process.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The image has none.
    #[error("the image has no /sbin/init")]
    NoProgram,
    /// The kernel does not run it.
    #[error("{program} cannot become the first process")]
    NotRun {
        /// The program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The first process does not listen any more: it took an earlier try for the last.
    #[error("the first process has given up waiting for its program")]
    GivenUp,
}

/// What the agent knows of the guest's first process.
#[derive(Debug)]
pub struct Init {
    first: Mutex<First>,
    state: watch::Sender<SystemState>,
}

/// Who the first process is.
#[derive(Debug)]
enum First {
    /// The agent itself.
    Agent,
    /// One that waits at the other end for its program.
    Waiting(UnixStream),
    /// The image's init.
    Image,
    /// One that could not become the image's init.
    Stuck,
}

impl Init {
    /// The agent is the first process itself.
    pub fn agent() -> Self {
        Self::new(First::Agent, SystemState::None)
    }

    /// The first process waits at the other end of `waiting`.
    pub fn beside(waiting: UnixStream) -> Self {
        Self::new(First::Waiting(waiting), SystemState::Starting)
    }

    fn new(first: First, state: SystemState) -> Self {
        Self { first: Mutex::new(first), state: watch::Sender::new(state) }
    }

    /// Whether another process than the agent is the first.
    pub fn is_separate(&self) -> bool {
        !matches!(*self.lock(), First::Agent)
    }

    /// Whether there is a program of the image that can be asked to go down.
    pub fn is_handed_over(&self) -> bool {
        matches!(*self.lock(), First::Image)
    }

    /// Makes the image's init the first process, unless it is or the agent is to be. Blocks until
    /// the kernel runs it.
    pub fn hand_over(&self) -> Result<(), HandOverError> {
        let program = Program::find();
        if self.is_separate() && program.is_some_and(|program| !program.is_systemd) {
            down::spare_agent();
        }
        self.hand_over_to(program)
    }

    fn hand_over_to(&self, program: Option<Program>) -> Result<(), HandOverError> {
        let mut first = self.lock();
        let waiting = match &mut *first {
            First::Agent | First::Image => return Ok(()),
            First::Stuck => return Err(HandOverError::GivenUp),
            First::Waiting(waiting) => waiting,
        };
        let program = program.ok_or(HandOverError::NoProgram)?;
        let notifications = program.is_systemd.then(Notifications::bind).and_then(Result::ok);
        let state = match notifications {
            Some(_) => SystemState::Starting,
            None => SystemState::Silent,
        };
        let ran =
            first::tell(waiting, program.path, notifications.as_ref().map(|_| notify::SOCKET));
        if let Err(source) = ran {
            *first = First::Stuck;
            return Err(HandOverError::NotRun { program: program.path, source });
        }
        *first = First::Image;
        self.state.send_replace(state);
        if let Some(notifications) = notifications {
            let state = self.state.clone();
            // Its end is that of the boot; until then it only waits.
            tokio::spawn(async move {
                notifications.up().await;
                state.send_replace(SystemState::Up);
            });
        }
        Ok(())
    }

    /// Waits until the image's init has started everything, or tells nothing of that, for at most
    /// `limit`. Says how far it is.
    pub async fn await_up(&self, limit: Duration) -> SystemState {
        let mut state = self.state.subscribe();
        let up = state.wait_for(|state| *state != SystemState::Starting);
        match tokio::time::timeout(limit, up).await {
            Ok(Ok(state)) => *state,
            _ => SystemState::Starting,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, First> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    const PROGRAM: Program = Program { path: "/sbin/init", is_systemd: false };

    /// An agent's side, and a first process that answers with `answer`.
    fn beside(answer: &'static [u8]) -> Init {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        std::thread::spawn(move || {
            theirs.read_to_end(&mut Vec::new()).expect("a program's name");
            theirs.write_all(answer).expect("answered");
        });
        Init::beside(ours)
    }

    #[tokio::test]
    async fn an_agent_that_is_the_first_process_stays_it() {
        let init = Init::agent();
        init.hand_over_to(None).expect("nothing to do");
        assert!(!init.is_separate() && !init.is_handed_over());
        assert_eq!(init.await_up(Duration::from_secs(60)).await, SystemState::None);
    }

    #[tokio::test]
    async fn a_hand_over_happens_once() {
        let init = beside(b"");
        assert_eq!(init.await_up(Duration::ZERO).await, SystemState::Starting);
        let error = init.hand_over_to(None).expect_err("there is no program");
        assert!(matches!(error, HandOverError::NoProgram));
        assert!(init.is_separate() && !init.is_handed_over());
        init.hand_over_to(Some(PROGRAM)).expect("it runs");
        init.hand_over_to(None).expect("it runs already");
        assert!(init.is_handed_over());
        assert_eq!(init.await_up(Duration::from_secs(60)).await, SystemState::Silent);
    }

    #[tokio::test]
    async fn a_program_that_the_kernel_refuses_is_told_with_its_reason() {
        const ENOENT: [u8; 4] = libc::ENOENT.to_ne_bytes();
        let init = beside(&ENOENT);
        match init.hand_over_to(Some(PROGRAM)).expect_err("it does not run") {
            HandOverError::NotRun { program: "/sbin/init", source } => {
                assert_eq!(source.kind(), io::ErrorKind::NotFound);
            }
            other => panic!("{other}"),
        }
        assert!(!init.is_handed_over());
        let error = init.hand_over_to(Some(PROGRAM)).expect_err("there is no second try");
        assert!(matches!(error, HandOverError::GivenUp));
    }
}
