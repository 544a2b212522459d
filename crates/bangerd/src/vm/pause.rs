//! Pausing a VM and having it go on: wishes that its shim is told of one after the other.
//!
//! What was wished first is done first, so whoever pauses a VM and then resumes it finds it running.
//! Whether anything is to be done is decided only when it is a wish's turn. The VM's task does not
//! wait for any of this: it can be killed meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_api::vm::{VmState, VmStatus};
use banger_api::{ErrorCode, Problem, step};
use banger_core::lifecycle::{Decision, Request, decide, decide_about};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::actor::Actor;
use super::{Ask, Outcome, Report};
use crate::daemon::Daemon;

/// How long a shim may take: longer than it waits for its VMM and for the guest's clock.
const ANSWER: Duration = Duration::from_secs(30);
/// How long what a shim has done may take to be seen here.
const SEEN: Duration = Duration::from_secs(5);

/// The wishes of those who pause and resume one VM, as long as its shim lives.
#[derive(Debug)]
pub(super) struct Turns {
    wishes: mpsc::UnboundedSender<(Request, Report)>,
}

impl Turns {
    /// Takes a wish, and denies one that cannot be. Gives back any other request.
    pub(super) fn take(&self, name: &str, ask: Ask, state: VmState) -> Option<Ask> {
        let Ask::Turn { request, reply } = ask else { return Some(ask) };
        let verdict = match decide(name, state, request) {
            Decision::Deny(denial) => Err(denial.into()),
            // Those that were here first may change what is so now.
            Decision::Accept | Decision::AlreadySo => {
                let (report, work) = Report::new();
                // Gone only with the VM's life, which ends the work as well.
                let _ = self.wishes.send((request, report));
                Ok(Outcome::Accepted(work))
            }
        };
        let _ = reply.send(verdict);
        None
    }
}

impl Actor {
    /// Begins to do what is wished, until the wishes end.
    pub(super) fn take_turns(&self) -> Turns {
        let (wishes, mut waiting) = mpsc::unbounded_channel::<(Request, Report)>();
        let mut turner = Turner {
            daemon: Arc::clone(&self.daemon),
            name: self.row.name.clone(),
            dir: self.dir.clone(),
            status: self.status.subscribe(),
        };
        tokio::spawn(async move {
            while let Some((request, report)) = waiting.recv().await {
                report.finish(turner.turn(request).await);
            }
        });
        Turns { wishes }
    }
}

struct Turner {
    daemon: Arc<Daemon>,
    name: String,
    dir: PathBuf,
    status: watch::Receiver<VmStatus>,
}

impl Turner {
    async fn turn(&mut self, request: Request) -> Result<(), Problem> {
        if self.is_so(request)? {
            return Ok(());
        }
        match timeout(ANSWER, ask(&self.daemon, &self.dir, request)).await {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => {
                // One that has ended meanwhile is told as such, whatever its shim came to say.
                self.is_so(request)?;
                return Err(self.told(request, problem));
            }
            Err(_) => {
                let cause = format!("its supervisor did not answer within {} s", ANSWER.as_secs());
                return Err(self.failed(request).cause(cause));
            }
        }
        // Whoever is told that it is done looks next, and so does the next wish.
        let (name, mut status) = (&self.name, self.status.clone());
        let is_seen = |now: &VmStatus| decide_about(name, now, request) != Decision::Accept;
        let _ = timeout(SEEN, status.wait_for(is_seen)).await;
        Ok(())
    }

    /// Whether it is so already.
    ///
    /// # Errors
    /// If it cannot be.
    fn is_so(&self, request: Request) -> Result<bool, Problem> {
        match decide_about(&self.name, &self.status.borrow(), request) {
            Decision::Accept => Ok(false),
            Decision::AlreadySo => Ok(true),
            Decision::Deny(denial) => Err(denial.into()),
        }
    }

    fn told(&self, request: Request, problem: Problem) -> Problem {
        let name = &self.name;
        match problem.code {
            ErrorCode::NotFound => {
                let title = format!("VM {name} can neither be paused nor resumed");
                Problem::new(ErrorCode::VmWrongState, title)
                    .cause("it was started by an older release of banger")
                    .hint(format!("banger restart {name}"))
            }
            // Its own words say more.
            code if code != ErrorCode::Internal || problem.hint.is_some() => problem,
            _ => self.failed(request).because(&problem),
        }
    }

    fn failed(&self, request: Request) -> Problem {
        let name = &self.name;
        let done = if request == Request::Pause { "paused" } else { "resumed" };
        Problem::new(ErrorCode::Internal, format!("VM {name} was not {done}"))
            .hint(format!("banger show {name}"))
    }
}

async fn ask(daemon: &Daemon, vm_dir: &Path, request: Request) -> Result<(), Problem> {
    daemon.gate.pass(step::PAUSE_ASK).await?;
    match request {
        Request::Pause => daemon.host.shims.pause(vm_dir).await,
        _ => daemon.host.shims.resume(vm_dir).await,
    }
}
