//! A VM that goes back to what it was: other disks in the place of its own, and a start from the memory that
//! belongs to them.
//!
//! The VM's task does it in one go, so nothing can run on those disks before their memory does. The copies
//! of the disks are made before, elsewhere. They come into the directory under names that no row wants; the
//! row that wants them is the decision; then they take the place of the old ones, by this or by the next
//! start (see [`super::disks`]).

use std::path::PathBuf;
use std::sync::Arc;

use banger_api::vm::{StartVm, VmStatus};
use banger_api::{ErrorCode, Problem, step};
use banger_core::change::Settings;
use banger_core::snapshot::SavedSettings;
use banger_host::random;
use tokio::sync::oneshot;

use super::actor::Actor;
use super::phase::Phase;
use super::{Outcome, Saved, Verdict, disks};
use crate::store::VmRow;

/// What a VM shall go back to.
#[derive(Debug)]
pub(crate) struct Back {
    /// Where copies of its disks are, which are used up.
    pub disks: PathBuf,
    /// What it was.
    pub settings: SavedSettings,
    /// What it is, so that nothing is lost that nobody has kept.
    pub from: Settings,
    /// Since when it does not run, likewise.
    pub ended_ms: u64,
    /// How it goes on: a VM that did not run then does not.
    pub start: Option<(StartVm, Saved)>,
}

impl Back {
    /// Why a VM that is alive does not go back.
    pub(super) fn came_too_late(&self, row: &VmRow) -> Problem {
        let name = &row.name;
        Problem::new(ErrorCode::VmWrongState, format!("VM {name} did not go back"))
            .cause("it was started or changed meanwhile")
            .hint(format!("banger snapshot ls {name}"))
    }
}

impl Actor {
    /// Makes the VM what it was. Some if it goes on from there.
    pub(super) async fn go_back(
        &mut self,
        mut back: Back,
        status: &mut VmStatus,
        reply: oneshot::Sender<Verdict>,
    ) -> Option<Phase> {
        let start = back.start.take();
        match self.take_disks(back, status).await {
            Err(problem) => drop(reply.send(Err(problem))),
            Ok(()) => match start {
                Some((request, saved)) => {
                    return Some(self.begin(request, Some(saved), status.clone(), reply).await);
                }
                None => {
                    let called_off = self.call_off(status).await;
                    let _ = reply.send(called_off.map(|()| Outcome::AlreadySo));
                }
            },
        }
        None
    }

    async fn take_disks(&mut self, back: Back, status: &VmStatus) -> Result<(), Problem> {
        if status.since_ms != back.ended_ms || self.row.settings() != back.from {
            return Err(back.came_too_late(&self.row));
        }
        self.check_not_lent()?;
        let gate = self.daemon.gate.clone();
        let name = random::hex::<8>();
        gate.pass(step::RESTORE_PLACE).await?;
        disks::bring(&self.daemon, &self.row, back.disks, name.clone()).await?;
        gate.pass(step::RESTORE_ROW).await?;
        self.write_down(back.settings.restored(&back.from, name)).await?;
        let placed = match gate.pass(step::RESTORE_SETTLE).await {
            Ok(()) => disks::place_new_root(&self.daemon, &Arc::clone(&self.row)).await,
            Err(problem) => Err(problem),
        };
        placed.map_err(|problem| {
            let title = "its disks are what they were, and its memory is not used";
            Problem::new(problem.code, title).because(&problem)
        })
    }
}
