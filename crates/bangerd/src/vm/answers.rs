//! What a VM's task answers at once, and what follows from it for the VM's end.

use banger_api::vm::{StopVm, VmState};
use banger_core::lifecycle::{Decision, Request, decide};

use super::end::How;
use super::lend::not_ended;
use super::phase::Plans;
use super::{Ask, Outcome, Removal, Report, Verdict};
use crate::store::VmRow;

pub(super) fn judge(name: &str, state: VmState, request: Request) -> (Verdict, Option<Report>) {
    match decide(name, state, request) {
        Decision::AlreadySo => (Ok(Outcome::AlreadySo), None),
        Decision::Deny(denial) => (Err(denial.into()), None),
        Decision::Accept => {
            let (report, work) = Report::new();
            (Ok(Outcome::Accepted(work)), Some(report))
        }
    }
}

/// The same for a removal. One whose time to live has been changed since does not go.
pub(super) fn judge_removal(
    row: &VmRow,
    state: VmState,
    removal: Removal,
) -> (Verdict, Option<Report>) {
    match removal {
        Removal::Expired { at_ms } if row.expires_at_ms != Some(at_ms) => {
            (Ok(Outcome::AlreadySo), None)
        }
        Removal::Expired { .. } => judge(&row.name, state, Request::Remove { force: true }),
        Removal::Asked { force } => judge(&row.name, state, Request::Remove { force }),
    }
}

/// Answers a request while something is alive. Some if an end has to begin now.
pub(super) fn take(row: &VmRow, ask: Ask, state: VmState, plans: &mut Plans) -> Option<How> {
    match ask {
        // A change is answered before.
        Ask::Look | Ask::Change { .. } => None,
        Ask::Start { reply, .. } => {
            let (verdict, _) = judge(&row.name, state, Request::Start);
            let _ = reply.send(verdict);
            None
        }
        Ask::End { request, grace, reply } => {
            let (verdict, report) = judge(&row.name, state, request);
            // One that somebody else is stopping now has the time that this request gives.
            let is_others = state == VmState::Stopping && !plans.ending && verdict.is_ok();
            // Also of one that is ending by itself: it shall stay so.
            plans.ending |= verdict.is_ok();
            let _ = reply.send(verdict);
            if report.is_none() && !is_others {
                return None;
            }
            plans.waiting_for_end.extend(report);
            plans.keep |= matches!(request, Request::Restart | Request::GoBack);
            let at_once = matches!(request, Request::Kill | Request::GoBack);
            Some(if at_once { How::Kill } else { How::Stop(grace) })
        }
        // Nobody can be asked yet, or any more.
        Ask::Turn { request, reply } => {
            let (verdict, _) = judge(&row.name, state, request);
            let _ = reply.send(verdict);
            None
        }
        Ask::GoBack { back, reply } => {
            let _ = reply.send(Err(back.came_too_late(row)));
            None
        }
        Ask::LendRoot { reply } => {
            let _ = reply.send(Err(not_ended(row, state)));
            None
        }
        Ask::Remove { removal, reply } => {
            let (verdict, report) = judge_removal(row, state, removal);
            let _ = reply.send(verdict);
            plans.waiting_for_removal.push(report?);
            plans.remove = true;
            let begun = std::mem::replace(&mut plans.ending, true);
            match removal {
                // It may take its time, as whoever set that time expects.
                Removal::Expired { .. } => (!begun).then(|| How::Stop(StopVm::default())),
                // A stop under way would take its time.
                Removal::Asked { .. } => {
                    (!begun || state == VmState::Stopping).then_some(How::Kill)
                }
            }
        }
    }
}
