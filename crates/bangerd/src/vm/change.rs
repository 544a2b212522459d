//! Changing what a VM is: one row in the database, which is the change. Files follow when the VM
//! starts (see [`super::disks`]). Two are dealt with at once: a work disk that is removed goes after
//! the row; a new root disk is made before the row and put in place of the old one after it.

use std::sync::Arc;

use banger_api::change::{Change, SetVm};
use banger_api::event::EventType;
use banger_api::image::Image;
use banger_api::{ErrorCode, Problem, step};
use banger_core::change::{Circumstances, Images, Settings, plan};
use banger_host::clock;

use super::actor::Actor;
use super::disks;
use super::{Ask, Removal};
use crate::daemon::blocking;
use crate::events::News;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// What the client says.
    pub set: SetVm,
    /// The image that it names, which the caller keeps from being removed meanwhile.
    pub image: Option<Image>,
}

impl Actor {
    /// Answers a request to change the VM; gives back any other, and announces it if it is news. Not
    /// to be cut off: the row and what is told of it would part.
    pub(super) async fn answer_change(&mut self, ask: Ask, going: bool) -> Option<Ask> {
        let Ask::Change { wanted, reply } = ask else {
            self.announce(&ask);
            return Some(ask);
        };
        let outcome = if going { Err(self.is_going()) } else { self.change(*wanted).await };
        // Nobody may be listening any more.
        let _ = reply.send(outcome);
        None
    }

    /// Tells that the VM's time to live is over, before anything comes of that.
    fn announce(&self, ask: &Ask) {
        let Ask::Remove { removal: Removal::Expired { at_ms }, .. } = ask else { return };
        if self.row.expires_at_ms == Some(*at_ms) {
            tracing::info!(vm = %self.row.name, "its time to live is over");
            self.daemon.events.tell(News::vm(EventType::VmExpired, &self.row));
        }
    }

    /// Why one that is being removed takes no more requests.
    pub(super) fn is_going(&self) -> Problem {
        let name = &self.row.name;
        Problem::new(ErrorCode::VmWrongState, format!("VM {name} is being removed"))
            .hint("banger ls")
    }

    async fn change(&mut self, wanted: Wanted) -> Result<Vec<Change>, Problem> {
        let Wanted { set: wanted, image } = wanted;
        let machine = Arc::clone(&self.daemon.host.machine);
        let host = blocking(move || Ok(machine.capacity())).await?;
        let state = self.status.borrow().state;
        let circumstances = Circumstances { state, now_ms: clock::now_ms(), host };
        let before = self.row.settings();
        let former = match &image {
            Some(_) => Some(self.image().await?),
            None => None,
        };
        let images = former.as_ref().zip(image.as_ref()).map(|(from, to)| Images { from, to });
        let plan = plan(&before, &wanted, circumstances, images)
            .map_err(|error| error.problem(&self.row.name))?;
        let (had, will) = (before.spec.work_disk_bytes, plan.after.spec.work_disk_bytes);
        if had.is_none() && will.is_some() {
            // One whose removal was cut off must not come back with what was on it.
            disks::remove_work_disk(&self.daemon, &self.row.id).await?;
        }
        if image.is_some() {
            self.check_not_lent()?;
            // What an earlier change has left is dealt with first, or it could be taken for this one's.
            disks::settle_root(&self.daemon, &self.row).await?;
            self.daemon.gate.pass(step::SET_NEW_ROOT).await?;
            disks::make_new_root(&self.daemon, &self.row.id, &plan.after).await?;
        }
        if !plan.changes.is_empty()
            && let Err(problem) = self.set_row(plan.after).await
        {
            if let Some(image) = &image {
                disks::forget_new_root(&self.daemon, &self.row.id, &image.digest).await?;
            }
            return Err(problem);
        }
        // It is so, whatever comes of the files.
        if !plan.changes.is_empty() {
            self.daemon.events.tell(News::of_settings(&self.row, &plan.changes));
            self.daemon.expiries.notify_one();
        }
        if image.is_some() {
            self.daemon.gate.pass(step::SET_ROOT).await?;
            disks::place_new_root(&self.daemon, &self.row).await?;
        }
        // Also if the row says so already: its removal may have failed before.
        if wanted.work_disk_bytes == Some(0) && !state.is_live() {
            self.daemon.gate.pass(step::SET_WORK_DISK).await?;
            disks::remove_work_disk(&self.daemon, &self.row.id).await?;
        }
        tracing::info!(vm = %self.row.name, changes = plan.changes.len(), "set");
        Ok(plan.changes)
    }

    /// The image that its root disk begins with. It cannot be removed while there is the VM.
    async fn image(&self) -> Result<Image, Problem> {
        let (artifacts, row) = (Arc::clone(&self.daemon.host.artifacts), Arc::clone(&self.row));
        blocking(move || {
            let found = artifacts.find_image(&row.image_digest)?;
            let missing = || {
                let title = format!("the image {} of the VM is no longer here", row.spec.image);
                Problem::new(ErrorCode::ImageCorrupt, title).hint("banger image ls")
            };
            Ok(found.ok_or_else(missing)?.image)
        })
        .await
    }

    async fn set_row(&mut self, settings: Settings) -> Result<(), Problem> {
        self.daemon.gate.pass(step::SET_ROW).await?;
        self.write_down(settings).await
    }

    /// Writes down what the VM is from now on.
    pub(super) async fn write_down(&mut self, settings: Settings) -> Result<(), Problem> {
        let (id, record) = (self.row.id.clone(), settings.clone());
        self.daemon.store(move |store| store.change_settings(&id, &record)).await?;
        self.row = Arc::new(self.row.as_ref().clone().with(settings));
        self.rows.send_replace(Arc::clone(&self.row));
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
