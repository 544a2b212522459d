//! What a VM's task is doing, and what shall happen when the VM has ended.

use banger_api::vm::{StartVm, VmState, VmStatus};
use banger_core::lifecycle::fresh;
use banger_host::clock;
use tokio_util::sync::CancellationToken;

use super::attach::Eye;
use super::end::Forced;
use super::marks::EndMarks;
use super::{Report, Saved};
use crate::pool::Guest;
use crate::store::VmRow;

/// What a VM's task is doing.
#[derive(Debug)]
pub enum Phase {
    /// Nothing of the VM is alive.
    Ended(VmStatus),
    /// A start is under way.
    Launching(Start),
    /// A shim is alive.
    Live(Life),
    /// The shim is gone, its last word is not read yet.
    Ending(Plans),
    /// The VM is on its way out.
    Removing(Plans),
}

/// A start that was accepted.
#[derive(Debug)]
pub struct Start {
    pub(super) request: StartVm,
    /// Where the guest was saved that it goes on from.
    pub(super) saved: Option<Saved>,
    /// A guest that stands ready to be it.
    pub(super) ready: Option<Box<Guest>>,
    pub(super) report: Report,
    pub(super) former: VmStatus,
    /// Nobody asked for it: its restart policy starts it again.
    pub(super) again: bool,
}

/// A VM with a live shim.
#[derive(Debug, Default)]
pub struct Life {
    pub(super) eye: Eye,
    pub(super) plans: Plans,
    /// What it is taken for until its shim says more.
    pub(super) assumed: Option<VmStatus>,
}

/// What shall happen when the VM has ended, and who waits for it.
#[derive(Debug, Default)]
pub struct Plans {
    /// An end was asked for.
    pub(super) ending: bool,
    /// An end that nobody asked this daemon for is watched over.
    pub(super) seen_through: bool,
    /// Keep the VM even if it is one that goes when it ends: it is being restarted.
    pub(super) keep: bool,
    /// Remove it.
    pub(super) remove: bool,
    /// Cancelled when the VM has ended: whoever still works on that can stop.
    pub(super) over: CancellationToken,
    /// What its shim said of the end; its file may be on a full disk.
    pub(super) last_word: Option<Box<VmStatus>>,
    pub(super) waiting_for_end: Vec<Report>,
    pub(super) waiting_for_removal: Vec<Report>,
    pub(super) forced: Forced,
    pub(super) marks: EndMarks,
}

impl Phase {
    /// A VM with a live shim that a former daemon started. Killed and removed if `remove` is set.
    #[must_use]
    pub fn found_alive(written: Option<VmStatus>, remove: bool) -> Self {
        let plans = Plans { remove, ..Plans::default() };
        match written {
            // It has said its last word, and is about to go.
            Some(status) if !status.state.is_live() => Self::Ending(plans),
            assumed => Self::Live(Life { assumed, plans, eye: Eye::default() }),
        }
    }

    /// A VM without a live shim whose removal had begun, or is due.
    #[must_use]
    pub fn found_to_remove() -> Self {
        Self::Removing(Plans { remove: true, ..Plans::default() })
    }

    pub(super) fn is_removal(&self) -> bool {
        match self {
            Self::Removing(_) => true,
            Self::Live(Life { plans, .. }) | Self::Ending(plans) => plans.remove,
            _ => false,
        }
    }

    /// What the VM is shown as at first.
    pub(super) fn first_status(&self, row: &VmRow) -> VmStatus {
        match self {
            Self::Ended(status) => status.clone(),
            Self::Live(Life { assumed: Some(status), .. }) => status.clone(),
            Self::Live(_) | Self::Launching(_) => fresh(VmState::Starting, clock::now_ms()),
            Self::Ending(_) => fresh(VmState::Stopping, clock::now_ms()),
            Self::Removing(_) => {
                row.last.clone().unwrap_or_else(|| fresh(VmState::Created, row.created_at_ms))
            }
        }
    }
}
