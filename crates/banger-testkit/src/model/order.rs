//! Operations on one VM at the same time: is there an order of them that explains what came of each?
//!
//! A VM is taken for a small machine that moves by itself (a start comes up, an end comes about, a
//! removal is done) and that answers each operation at one moment. All orders of the answers and
//! the moves are tried until one fits.

use std::collections::HashSet;

use banger_api::ErrorCode;
use banger_api::vm::VmState;

use super::Act;

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// It was accepted and went well.
    Went,
    /// It was so already, or under way.
    WasSo,
    /// It came to nothing: it was cancelled, or overtaken; or there was no guest to end.
    Overtaken,
    /// It cannot be in that state, or at all.
    Refused(ErrorCode, Option<VmState>),
}

/// What there was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// The state; None without a VM.
    pub state: Option<VmState>,
    /// It is removed when it ends.
    pub goes: bool,
}

/// Where a VM is between two moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Absent,
    /// The name is taken, nothing is there yet.
    Making,
    Rest(VmState),
    Starting {
        former: VmState,
    },
    Running,
    Stopping,
    Removing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Vm {
    place: Place,
    goes: bool,
    /// A start under way was called off.
    is_called_off: bool,
    /// It is removed when it has ended.
    is_unwanted: bool,
    /// It stays when it has ended.
    is_kept: bool,
    /// The guest has ended; who watches it does not know yet.
    is_over: bool,
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    /// Not asked yet.
    Waiting,
    /// A restart whose first half was accepted, and whether the end that it waits for is to come.
    Half { waits: bool },
    /// It has brought a start under way.
    Booting,
    /// It makes a VM.
    Making,
    /// Answered.
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Point {
    vm: Vm,
    stages: Vec<Stage>,
}

/// Whether some order of the operations explains what came of each and what is there now.
#[must_use]
pub fn explain(begin: Begin, operations: &[(Act, Asked)], end: Option<VmState>) -> bool {
    let place = match begin.state {
        None => Place::Absent,
        Some(VmState::Running) => Place::Running,
        Some(VmState::Stopping) => Place::Stopping,
        Some(VmState::Starting) => Place::Starting { former: VmState::Created },
        Some(state) => Place::Rest(state),
    };
    let vm = Vm { place, goes: begin.goes, ..Vm::nothing() };
    let first = Point { vm, stages: vec![Stage::Waiting; operations.len()] };
    let (mut open, mut seen) = (vec![first], HashSet::new());
    while let Some(point) = open.pop() {
        if !seen.insert(point.clone()) {
            continue;
        }
        if point.is_end(end) {
            return true;
        }
        open.extend(point.moves(operations));
        for index in 0..operations.len() {
            open.extend(point.asks(index, operations));
        }
    }
    false
}

impl Point {
    fn is_end(&self, end: Option<VmState>) -> bool {
        let shown = match self.vm.place {
            Place::Absent => None,
            Place::Rest(state) => Some(state),
            Place::Running if !self.vm.is_over => Some(VmState::Running),
            _ => return false,
        };
        shown == end && self.stages.iter().all(|stage| *stage == Stage::Over)
    }

    /// What the VM may do by itself.
    fn moves(&self, operations: &[(Act, Asked)]) -> Vec<Self> {
        let mut next = Vec::new();
        match self.vm.place {
            Place::Making => {
                // Its maker has it from here on, and is told so.
                let mut made = self.at(Place::Rest(VmState::Created));
                if made.close(Stage::Making, &Asked::Went, operations) {
                    next.push(made);
                }
            }
            Place::Starting { former } => {
                let mut up = self.at(Place::Running);
                if self.vm.is_called_off {
                    up.vm.place = Place::Stopping;
                }
                if up.close(Stage::Booting, &Asked::Went, operations) {
                    next.push(up);
                }
                if self.vm.is_called_off || self.vm.is_over {
                    for (state, ran) in [(VmState::Stopped, true), (former, false)] {
                        let mut off = self.clone();
                        if off.close(Stage::Booting, &Asked::Overtaken, operations) {
                            off.rest(state, ran);
                            next.push(off);
                        }
                    }
                }
            }
            Place::Running if self.vm.is_over => next.push(self.at(Place::Stopping)),
            Place::Stopping => {
                let mut rest = self.clone();
                rest.rest(VmState::Stopped, true);
                next.push(rest);
            }
            Place::Removing => next.push(self.at(Place::Absent)),
            Place::Absent | Place::Rest(_) | Place::Running => {}
        }
        next
    }

    fn at(&self, place: Place) -> Self {
        let mut next = self.clone();
        next.vm.place = place;
        next
    }

    /// The VM has ended.
    fn rest(&mut self, state: VmState, ran: bool) {
        for stage in &mut self.stages {
            if *stage == (Stage::Half { waits: true }) {
                *stage = Stage::Half { waits: false };
            }
        }
        let due = ran && self.vm.goes && !self.vm.is_kept;
        let place = if self.vm.is_unwanted || due { Place::Removing } else { Place::Rest(state) };
        let goes = self.vm.goes;
        self.vm = Vm { place, goes, ..Vm::nothing() };
    }

    /// Ends what is in that stage. Whether that is what came of it.
    fn close(&mut self, stage: Stage, came: &Asked, operations: &[(Act, Asked)]) -> bool {
        for (now, (_, asked)) in self.stages.iter_mut().zip(operations) {
            if *now == stage {
                *now = Stage::Over;
                if asked != came {
                    return false;
                }
            }
        }
        true
    }

    /// What may come of it if one operation is answered now.
    fn asks(&self, index: usize, operations: &[(Act, Asked)]) -> Vec<Self> {
        let (act, asked) = &operations[index];
        let mut next = self.clone();
        let (stage, answer) = match (self.stages[index], act) {
            (Stage::Waiting, Act::Create { goes, .. }) => next.vm.create(*goes),
            (Stage::Waiting, Act::Start(_)) => next.vm.start(),
            (Stage::Waiting, Act::Stop { .. }) => next.vm.end(false),
            (Stage::Waiting, Act::Kill) => next.vm.end(true),
            (Stage::Waiting, Act::Restart) => next.vm.restart(),
            (Stage::Waiting, Act::Remove { force }) => next.vm.remove(*force),
            (Stage::Waiting, Act::Ends(_)) => return self.guest_ends(index, asked),
            (Stage::Half { waits: false }, _) => next.vm.start(),
            _ => return Vec::new(),
        };
        next.stages[index] = stage;
        let fits = stage != Stage::Over || answer == *asked;
        Vec::from_iter(fits.then_some(next))
    }

    /// The guest ends by itself, if there is one yet: whoever ends it knows.
    fn guest_ends(&self, index: usize, asked: &Asked) -> Vec<Self> {
        let mut next = self.clone();
        next.stages[index] = Stage::Over;
        match (asked, self.vm.place) {
            (Asked::Went, Place::Starting { .. } | Place::Running) => next.vm.is_over = true,
            (Asked::Went, Place::Stopping) | (Asked::Overtaken, _) => {}
            _ => return Vec::new(),
        }
        vec![next]
    }
}

impl Vm {
    fn nothing() -> Self {
        Self {
            place: Place::Absent,
            goes: false,
            is_called_off: false,
            is_unwanted: false,
            is_kept: false,
            is_over: false,
        }
    }

    fn create(&mut self, goes: bool) -> (Stage, Asked) {
        match self.place {
            Place::Absent | Place::Removing => {
                *self = Self { place: Place::Making, goes, ..Self::nothing() };
                (Stage::Making, Asked::Went)
            }
            _ => (Stage::Over, Asked::Refused(ErrorCode::VmNameTaken, None)),
        }
    }

    fn start(&mut self) -> (Stage, Asked) {
        match self.place {
            Place::Absent | Place::Making | Place::Removing => (Stage::Over, not_found()),
            Place::Rest(former) => {
                self.place = Place::Starting { former };
                (Stage::Booting, Asked::Went)
            }
            Place::Starting { .. } | Place::Running => (Stage::Over, Asked::WasSo),
            Place::Stopping => (Stage::Over, wrong(VmState::Stopping)),
        }
    }

    fn end(&mut self, kill: bool) -> (Stage, Asked) {
        match self.place {
            Place::Absent | Place::Making => return (Stage::Over, not_found()),
            Place::Starting { .. } => self.is_called_off = true,
            Place::Running => self.place = Place::Stopping,
            Place::Stopping if kill => {}
            Place::Rest(_) | Place::Stopping | Place::Removing => {
                return (Stage::Over, Asked::WasSo);
            }
        }
        (Stage::Over, Asked::Went)
    }

    fn restart(&mut self) -> (Stage, Asked) {
        match self.place {
            Place::Absent | Place::Making => (Stage::Over, not_found()),
            Place::Starting { .. } => (Stage::Over, wrong(VmState::Starting)),
            Place::Stopping => (Stage::Over, wrong(VmState::Stopping)),
            Place::Running => {
                self.place = Place::Stopping;
                self.is_kept = true;
                (Stage::Half { waits: true }, Asked::Went)
            }
            Place::Rest(_) | Place::Removing => (Stage::Half { waits: false }, Asked::Went),
        }
    }

    fn remove(&mut self, force: bool) -> (Stage, Asked) {
        match self.place {
            Place::Absent | Place::Making => return (Stage::Over, not_found()),
            Place::Rest(_) => self.place = Place::Removing,
            Place::Removing => {}
            Place::Starting { .. } if force => {
                self.is_called_off = true;
                self.is_unwanted = true;
            }
            Place::Running if force => {
                self.place = Place::Stopping;
                self.is_unwanted = true;
            }
            Place::Stopping if force => self.is_unwanted = true,
            Place::Starting { .. } => return (Stage::Over, wrong(VmState::Starting)),
            Place::Running => return (Stage::Over, wrong(VmState::Running)),
            Place::Stopping => return (Stage::Over, wrong(VmState::Stopping)),
        }
        (Stage::Over, Asked::Went)
    }
}

fn not_found() -> Asked {
    Asked::Refused(ErrorCode::VmNotFound, None)
}

fn wrong(state: VmState) -> Asked {
    Asked::Refused(ErrorCode::VmWrongState, Some(state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Boot;

    const RUNS: Begin = Begin { state: Some(VmState::Running), goes: false };

    #[test]
    fn two_starts_both_go_well() {
        let stopped = Begin { state: Some(VmState::Stopped), goes: false };
        let start = |asked| (Act::Start(Boot::Good), asked);
        let both = [start(Asked::Went), start(Asked::WasSo)];
        assert!(explain(stopped, &both, Some(VmState::Running)));
        assert!(!explain(stopped, &both, Some(VmState::Stopped)), "nobody ended it");
        let twice = [start(Asked::Went), start(Asked::Went)];
        assert!(!explain(stopped, &twice, Some(VmState::Running)), "it cannot start twice");
    }

    #[test]
    fn a_stop_and_a_start_end_in_either_state_but_not_with_any_answers() {
        let stop = || (Act::Stop { ignored: false }, Asked::Went);
        let start = |asked| (Act::Start(Boot::Good), asked);
        let denied = wrong(VmState::Stopping);
        for (asked, end, fits) in [
            (Asked::WasSo, VmState::Stopped, true),
            (Asked::WasSo, VmState::Running, false),
            (Asked::Went, VmState::Running, true),
            (denied.clone(), VmState::Stopped, true),
            (denied, VmState::Running, false),
            (wrong(VmState::Created), VmState::Stopped, false),
        ] {
            let operations = [stop(), start(asked.clone())];
            assert_eq!(explain(RUNS, &operations, Some(end)), fits, "{asked:?} {end}");
        }
    }

    #[test]
    fn of_two_that_want_a_name_one_gets_it() {
        let nothing = Begin { state: None, goes: false };
        let create = |asked| (Act::Create { boot: None, goes: false }, asked);
        let taken = Asked::Refused(ErrorCode::VmNameTaken, None);
        let created = Some(VmState::Created);
        assert!(explain(nothing, &[create(Asked::Went), create(taken.clone())], created));
        assert!(!explain(nothing, &[create(Asked::Went), create(Asked::Went)], created));
        assert!(!explain(nothing, &[create(taken.clone()), create(taken)], None));
    }

    #[test]
    fn a_removed_vm_is_gone() {
        let remove = |force, asked| (Act::Remove { force }, asked);
        assert!(explain(RUNS, &[remove(true, Asked::Went), remove(true, Asked::Went)], None));
        let denied = remove(false, wrong(VmState::Running));
        assert!(explain(RUNS, &[remove(true, Asked::Went), denied.clone()], None));
        assert!(!explain(RUNS, &[denied], None), "nobody removed it");
    }
}
