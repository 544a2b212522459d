//! One VM: its handle, and what can be asked of the task that owns it.
//!
//! Every VM has one task ([`actor`]) that alone changes its files, its row and its status. Others
//! ask it, and it always answers at once: accepted, already so, or denied. What was accepted goes on
//! and reports to whoever asked.

mod actor;
mod answers;
mod attach;
mod back;
mod begin;
mod capture;
mod change;
mod claim;
pub mod create;
mod disks;
mod end;
#[cfg(test)]
mod exhaustive_tests;
pub mod expiry;
pub mod fork;
#[cfg(test)]
mod fork_tests;
mod launch;
mod lend;
pub mod logs;
mod marks;
#[cfg(test)]
mod model_tests;
mod pause;
#[cfg(test)]
mod pause_tests;
mod phase;
mod remove;
mod restart;
#[cfg(test)]
mod restart_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod trouble_tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use banger_api::change::Change;
use banger_api::operation::OperationEvent;
use banger_api::shim::Was;
use banger_api::vm::{StartVm, StopVm, Vm, VmState, VmStatus};
use banger_api::{ErrorCode, Problem};
use banger_core::change::pending;
use banger_core::id::Id;
use banger_core::lifecycle::Request;
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::daemon::Daemon;
use crate::operations::Handle;
use crate::store::VmRow;

pub use attach::read_status;
pub(crate) use back::Back;
pub(crate) use begin::copy_disk;
pub(crate) use capture::{SavedVm, capture};
pub use change::Wanted;
pub(crate) use end::is_locked;
pub(crate) use launch::{Needs, launch_spec};
pub use launch::{last_environment, read_launch_file, write_launch_file};
pub use lend::LentRoot;
pub use phase::Phase;
pub use remove::{clear_leftovers, remove_traces};

/// How many requests may wait for a VM's task; it takes them at once.
const MAILBOX: usize = 64;

/// The rest of the daemon's side of a VM.
#[derive(Debug)]
pub struct VmHandle {
    /// Its identity.
    pub id: Id,
    /// Its name, which never changes.
    pub name: String,
    rows: watch::Receiver<Arc<VmRow>>,
    dir: String,
    status: watch::Receiver<VmStatus>,
    mailbox: mpsc::Sender<Ask>,
    hidden: Arc<AtomicBool>,
    /// Held by whoever makes, uses or removes its snapshots.
    snapshots: Mutex<()>,
}

impl VmHandle {
    /// Starts the task of a VM.
    pub(crate) fn spawn(daemon: &Arc<Daemon>, row: VmRow, phase: Phase) -> Arc<Self> {
        let row = Arc::new(row);
        let (mailbox, asks) = mpsc::channel(MAILBOX);
        let (publish, status) = watch::channel(phase.first_status(&row));
        let hidden = Arc::new(AtomicBool::new(row.deleting || phase.is_removal()));
        let (rows, row_now) = watch::channel(Arc::clone(&row));
        let handle = Arc::new(Self {
            id: row.id.clone(),
            name: row.name.clone(),
            dir: daemon.vm_dir(&row.id).display().to_string(),
            rows: row_now,
            status,
            mailbox,
            hidden: Arc::clone(&hidden),
            snapshots: Mutex::default(),
        });
        let actor = actor::Actor::new(Arc::clone(daemon), rows, publish, asks, hidden);
        tokio::spawn(actor.run(phase));
        handle
    }

    /// What it is, as the database has it. The columns that say what shall happen to it (`desired`,
    /// `unfinished`, `deleting`, `last`) are as they were when the task began.
    #[must_use]
    pub fn row(&self) -> Arc<VmRow> {
        Arc::clone(&self.rows.borrow())
    }

    /// The VM as the API shows it.
    #[must_use]
    pub fn snapshot(&self) -> Vm {
        let row = self.row();
        let status = self.status.borrow().clone();
        let running = status.resources.filter(|_| status.state.is_live());
        let pending = running.map(|has| pending(has, &row.settings())).unwrap_or_default();
        Vm {
            id: row.id.to_string(),
            name: row.name.clone(),
            spec: row.spec.clone(),
            image_digest: row.image_digest.clone(),
            kernel_digest: row.kernel_digest.clone(),
            disk_bytes: row.disk_bytes,
            created_at_ms: row.created_at_ms,
            expires_at_ms: row.expires_at_ms,
            status,
            pending,
            dir: self.dir.clone(),
        }
    }

    /// Its state now.
    #[must_use]
    pub fn state(&self) -> VmState {
        self.status.borrow().state
    }

    /// Whether it is being removed.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.hidden.load(Ordering::Relaxed)
    }

    /// Waits until no shim is alive and none is to be started again, and says how it ended.
    pub async fn ended(&self) -> Vm {
        let mut status = self.status.clone();
        let is_over = |status: &VmStatus| !status.state.is_live() && status.next_start_ms.is_none();
        // An error means that the task is gone, and the VM with it.
        let _ = status.wait_for(is_over).await;
        self.snapshot()
    }

    /// The same of an end that was asked for then: also over if somebody has started the VM again since,
    /// whose end is another.
    pub async fn ended_since(&self, asked_ms: u64) -> Vm {
        let mut status = self.status.clone();
        let is_over = |status: &VmStatus| {
            let is_later = matches!(status.state, VmState::Starting | VmState::Running)
                && status.since_ms >= asked_ms;
            is_later || (!status.state.is_live() && status.next_start_ms.is_none())
        };
        let _ = status.wait_for(is_over).await;
        self.snapshot()
    }

    /// Has its task look whether what it takes for true still is. Does not wait for that.
    pub fn look(&self) {
        // A task with a full mailbox is busy and will be asked again.
        let _ = self.mailbox.try_send(Ask::Look);
    }

    /// Waits until it is no longer starting.
    ///
    /// # Errors
    /// `boot_failed` if it did not come up.
    pub async fn started(&self) -> Result<(), Problem> {
        let mut status = self.status.clone();
        let _ = status.wait_for(|status| status.state != VmState::Starting).await;
        let status = self.status.borrow();
        match (&status.state, &status.end) {
            (VmState::Failed, Some(end)) => {
                Err(Problem::new(ErrorCode::BootFailed, format!("VM {} did not start", self.name))
                    .cause(end.reason.clone())
                    .hint(format!("banger logs --console {}", self.name)))
            }
            _ => Ok(()),
        }
    }

    /// Asks for a start.
    ///
    /// # Errors
    /// `vm_wrong_state`, or `vm_not_found` if it went meanwhile.
    pub async fn start(&self, request: StartVm) -> Result<Outcome, Problem> {
        self.ask(|reply| Ask::Start { request, saved: None, reply }).await
    }

    /// Asks for a start from a guest that was saved, whose disks it has. It never boots instead.
    ///
    /// # Errors
    /// As for [`VmHandle::start`].
    async fn go_on(&self, request: StartVm, saved: Saved) -> Result<Outcome, Problem> {
        self.ask(|reply| Ask::Start { request, saved: Some(saved), reply }).await
    }

    /// Asks that it be what it was.
    ///
    /// # Errors
    /// As for [`VmHandle::start`]; also if it has run since.
    pub(crate) async fn go_back(&self, back: Back) -> Result<Outcome, Problem> {
        self.ask(|reply| Ask::GoBack { back: Box::new(back), reply }).await
    }

    /// Waits until nobody else makes, uses or removes snapshots of it.
    pub(crate) async fn snapshots_alone(&self) -> MutexGuard<'_, ()> {
        self.snapshots.lock().await
    }

    /// Asks for an end: [`Request::Stop`], [`Request::Kill`] or the first half of a
    /// [`Request::Restart`].
    ///
    /// # Errors
    /// As for [`VmHandle::start`].
    pub async fn end(&self, request: Request, grace: StopVm) -> Result<Outcome, Problem> {
        self.ask(|reply| Ask::End { request, grace, reply }).await
    }

    /// Asks that it stand still, [`Request::Pause`], or go on, [`Request::Resume`].
    ///
    /// # Errors
    /// As for [`VmHandle::start`].
    pub async fn turn(&self, request: Request) -> Result<Outcome, Problem> {
        self.ask(|reply| Ask::Turn { request, reply }).await
    }

    /// Asks for the removal.
    ///
    /// # Errors
    /// As for [`VmHandle::start`].
    pub async fn remove(&self, force: bool) -> Result<Outcome, Problem> {
        let removal = Removal::Asked { force };
        self.ask(|reply| Ask::Remove { removal, reply }).await
    }

    /// Asks to end it cleanly and to remove it, if its time to live is still the one that ended at
    /// that moment.
    ///
    /// # Errors
    /// As for [`VmHandle::start`].
    pub(crate) async fn expire(&self, at_ms: u64) -> Result<Outcome, Problem> {
        let removal = Removal::Expired { at_ms };
        self.ask(|reply| Ask::Remove { removal, reply }).await
    }

    /// Asks to make it what is wanted. What is then different comes back.
    ///
    /// # Errors
    /// `invalid_argument` if it cannot be that, else as for [`VmHandle::start`].
    pub async fn change(&self, wanted: Wanted) -> Result<Vec<Change>, Problem> {
        self.ask(|reply| Ask::Change { wanted: Box::new(wanted), reply }).await
    }

    /// Asks for its root disk, to make an image of it.
    ///
    /// # Errors
    /// As for [`VmHandle::start`].
    pub async fn lend_root(&self) -> Result<LentRoot, Problem> {
        self.ask(|reply| Ask::LendRoot { reply }).await
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, Problem>>) -> Ask,
    ) -> Result<T, Problem> {
        let (reply, verdict) = oneshot::channel();
        // Either error means that the task has ended: there is no such VM any more.
        let gone = || {
            Problem::new(ErrorCode::VmNotFound, format!("VM {} was removed", self.name))
                .hint("banger ls")
        };
        self.mailbox.send(make(reply)).await.map_err(|_| gone())?;
        verdict.await.map_err(|_| gone())?
    }
}

/// Ends whatever runs in a VM's directory that no row knows.
pub async fn end_unknown(daemon: &Daemon, vm_dir: &Path) {
    let shims = daemon.host.shims.as_ref();
    if is_locked(shims, vm_dir) {
        end::kill_until_unlocked(shims, vm_dir).await;
    }
}

/// What the task answers at once.
type Verdict = Result<Outcome, Problem>;

/// What comes of a request that was not denied.
#[derive(Debug)]
pub enum Outcome {
    /// It is already so, or already under way.
    AlreadySo,
    /// It is being done.
    Accepted(Work),
}

/// A guest that was saved, from which a VM goes on instead of booting.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    /// The directory with its memory.
    pub dir: PathBuf,
    /// Who it was then.
    pub was: Was,
}

/// Why a VM shall be removed.
#[derive(Debug, Clone, Copy)]
enum Removal {
    /// Somebody wants it; by force also if it runs, which is then killed.
    Asked { force: bool },
    /// Its time to live was over at that moment.
    Expired { at_ms: u64 },
}

/// What can be asked of a VM's task.
#[derive(Debug)]
enum Ask {
    Start {
        request: StartVm,
        /// Where the guest was saved that it goes on from.
        saved: Option<Saved>,
        reply: oneshot::Sender<Verdict>,
    },
    GoBack {
        back: Box<Back>,
        reply: oneshot::Sender<Verdict>,
    },
    End {
        request: Request,
        grace: StopVm,
        reply: oneshot::Sender<Verdict>,
    },
    Turn {
        request: Request,
        reply: oneshot::Sender<Verdict>,
    },
    Remove {
        removal: Removal,
        reply: oneshot::Sender<Verdict>,
    },
    Change {
        wanted: Box<Wanted>,
        reply: oneshot::Sender<Result<Vec<Change>, Problem>>,
    },
    LendRoot {
        reply: oneshot::Sender<Result<LentRoot, Problem>>,
    },
    /// Compare what is observed with what is taken for true.
    Look,
}

/// Work that a VM's task has accepted, seen from outside.
#[derive(Debug)]
pub struct Work {
    events: mpsc::UnboundedReceiver<OperationEvent>,
    done: oneshot::Receiver<Result<(), Problem>>,
    cancel: CancellationToken,
}

/// The same seen from inside.
#[derive(Debug)]
struct Report {
    events: mpsc::UnboundedSender<OperationEvent>,
    done: oneshot::Sender<Result<(), Problem>>,
    cancel: CancellationToken,
}

impl Report {
    fn new() -> (Self, Work) {
        let (events, progress) = mpsc::unbounded_channel();
        let (done, outcome) = oneshot::channel();
        let cancel = CancellationToken::new();
        let work = Work { events: progress, done: outcome, cancel: cancel.clone() };
        (Self { events, done, cancel }, work)
    }

    /// Tells the end. Nobody may be listening any more, which is fine.
    fn finish(self, outcome: Result<(), Problem>) {
        let _ = self.done.send(outcome);
    }
}

impl Work {
    /// Passes its progress on to an operation, and the operation's cancelling to the work.
    ///
    /// # Errors
    /// Those of the work.
    pub async fn follow(mut self, operation: &Handle) -> Result<(), Problem> {
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                Some(event) = self.events.recv() => operation.forward(event),
                done = &mut self.done => return done.unwrap_or_else(|_| Err(interrupted())),
                () = operation.cancel_token().cancelled(), if !told => {
                    told = true;
                    self.cancel.cancel();
                }
            }
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Those of the work.
    pub async fn finished(self) -> Result<(), Problem> {
        self.done.await.unwrap_or_else(|_| Err(interrupted()))
    }
}

fn interrupted() -> Problem {
    Problem::new(ErrorCode::Internal, "the VM's task ended before its work")
        .hint("banger daemon logs")
}
