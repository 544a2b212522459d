//! What must come of operations, one after the other.

use std::collections::BTreeMap;

use banger_api::ErrorCode;
use banger_api::vm::{EndCause, VmState};

use super::{Act, Boot, NAMES, is_live};

/// What a person is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// It was so already.
    AlreadySo,
    /// It is under way, and stays so until something else is done.
    UnderWay,
    /// It cannot be.
    Refused(Refusal),
    /// It was tried and failed.
    Failed(ErrorCode),
}

/// Why something cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The stable code.
    pub code: ErrorCode,
    /// The state that does not allow it, where that is why.
    pub state: Option<VmState>,
    /// What to type next.
    pub hint: String,
}

/// A VM as a person knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    state: VmState,
    cause: Option<EndCause>,
    /// It is removed when it ends.
    goes: bool,
    /// The `run` that makes it is under way.
    is_being_made: bool,
    /// A daemon that did not start it watches it.
    is_adopted: bool,
}

/// The VMs that there must be.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    vms: BTreeMap<usize, Known>,
}

impl Reference {
    /// Names, states and, where that is certain, causes of the last end, by name.
    #[must_use]
    pub fn shown(&self) -> Vec<(&'static str, VmState, Option<EndCause>)> {
        self.vms.iter().map(|(vm, known)| (NAMES[*vm], known.state, known.cause)).collect()
    }

    /// The state of a VM, if there is one.
    #[must_use]
    pub fn state(&self, vm: usize) -> Option<VmState> {
        self.vms.get(&vm).map(|known| known.state)
    }

    /// Whether a VM is removed when it ends.
    #[must_use]
    pub fn goes(&self, vm: usize) -> bool {
        self.vms.get(&vm).is_some_and(|known| known.goes)
    }

    /// How many VMs something is alive of.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.vms.values().filter(|known| is_live(known.state)).count()
    }

    /// What is done to a VM.
    pub fn act(&mut self, vm: usize, act: Act) -> Answer {
        if let Act::Create { boot, goes } = act {
            return self.create(vm, boot, goes);
        }
        let Some(known) = self.vms.get_mut(&vm) else {
            return if let Act::Ends(_) = act { Answer::AlreadySo } else { not_found() };
        };
        let (state, is_adopted) = (known.state, known.is_adopted);
        match act {
            Act::Create { .. } => unreachable!("handled above"),
            Act::Start(boot) => match state {
                VmState::Starting | VmState::Running => Answer::AlreadySo,
                VmState::Paused | VmState::Stopping => wrong_state(vm, state, act),
                _ => self.start(vm, boot),
            },
            Act::Stop { .. } | Act::Kill if !is_live(state) => Answer::AlreadySo,
            Act::Stop { .. } if state == VmState::Stopping => Answer::AlreadySo,
            // Nobody waits for a guest that is not there yet.
            Act::Stop { ignored: true } if state == VmState::Running => {
                known.state = VmState::Stopping;
                Answer::UnderWay
            }
            Act::Stop { .. } => self.end(vm, stopped_by(state, is_adopted)),
            Act::Kill => self.end(vm, EndCause::Killed),
            Act::Restart => match state {
                VmState::Starting | VmState::Stopping => wrong_state(vm, state, act),
                _ => self.start(vm, Boot::Good),
            },
            Act::Pause | Act::Resume => turn(vm, known, act),
            Act::Remove { force: false } if is_live(state) => wrong_state(vm, state, act),
            Act::Remove { .. } => {
                self.vms.remove(&vm);
                Answer::Done
            }
            Act::Ends(_) if !is_live(state) => Answer::AlreadySo,
            Act::Ends(cause) => self.end(vm, cause),
            Act::Exec if matches!(state, VmState::Running) => Answer::Done,
            Act::Exec => wrong_state(vm, state, act),
        }
    }

    /// The daemon is killed and another one begins.
    pub fn daemon_killed(&mut self) {
        // Whoever waited for a VM to be made was told nothing, so there is none.
        self.vms.retain(|_, known| !known.is_being_made);
        for known in self.vms.values_mut() {
            known.is_adopted = is_live(known.state);
        }
    }

    /// What was found of several operations at the same time: from here on it is so.
    pub fn learn(&mut self, vm: usize, found: Option<(VmState, Option<EndCause>, bool)>) {
        self.vms.remove(&vm);
        if let Some((state, cause, goes)) = found {
            let known = Known { cause, ..known(state, goes) };
            self.vms.insert(vm, known);
        }
    }

    fn create(&mut self, vm: usize, boot: Option<Boot>, goes: bool) -> Answer {
        if self.vms.contains_key(&vm) {
            let hint = format!("banger rm {}, or choose another --name", NAMES[vm]);
            return Answer::Refused(Refusal { code: ErrorCode::VmNameTaken, state: None, hint });
        }
        match boot {
            None => {
                self.vms.insert(vm, known(VmState::Created, goes));
                Answer::Done
            }
            Some(Boot::Good) => {
                self.vms.insert(vm, known(VmState::Running, goes));
                Answer::Done
            }
            Some(Boot::Hangs) => {
                let making = Known { is_being_made: true, ..known(VmState::Starting, goes) };
                self.vms.insert(vm, making);
                Answer::UnderWay
            }
            // Nothing half-made stays.
            Some(Boot::Fails) => Answer::Failed(ErrorCode::GuestPanic),
            Some(Boot::Dies) => Answer::Failed(ErrorCode::BootFailed),
        }
    }

    fn start(&mut self, vm: usize, boot: Boot) -> Answer {
        let known = self.vms.get_mut(&vm).expect("it exists");
        known.is_adopted = false;
        known.cause = None;
        match boot {
            Boot::Good => {
                known.state = VmState::Running;
                Answer::Done
            }
            Boot::Hangs => {
                known.state = VmState::Starting;
                Answer::UnderWay
            }
            Boot::Fails => {
                self.end(vm, EndCause::GuestPanic);
                Answer::Failed(ErrorCode::GuestPanic)
            }
            Boot::Dies => {
                self.end(vm, EndCause::LaunchFailed);
                Answer::Failed(ErrorCode::BootFailed)
            }
        }
    }

    fn end(&mut self, vm: usize, cause: EndCause) -> Answer {
        let known = self.vms.get_mut(&vm).expect("it exists");
        if known.goes || known.is_being_made {
            self.vms.remove(&vm);
            return Answer::Done;
        }
        // A supervisor that dies before it could say why ends a start.
        let cause = match (known.state, cause) {
            (VmState::Starting, EndCause::ShimGone) if !known.is_adopted => EndCause::LaunchFailed,
            _ => cause,
        };
        known.state = cause.state();
        known.cause = Some(cause);
        Answer::Done
    }
}

/// A VM that is up stands still, or goes on. Nobody is told whether it did before.
fn turn(vm: usize, known: &mut Known, act: Act) -> Answer {
    if !matches!(known.state, VmState::Running | VmState::Paused) {
        return wrong_state(vm, known.state, act);
    }
    known.state = if act == Act::Pause { VmState::Paused } else { VmState::Running };
    Answer::Done
}

fn known(state: VmState, goes: bool) -> Known {
    Known { state, cause: None, goes, is_being_made: false, is_adopted: false }
}

/// A stop of what is not up yet is a kill; a daemon that did not start it asks its supervisor.
fn stopped_by(state: VmState, is_adopted: bool) -> EndCause {
    match state {
        VmState::Starting if !is_adopted => EndCause::Killed,
        _ => EndCause::Stopped,
    }
}

fn not_found() -> Answer {
    let hint = "banger ls".to_owned();
    Answer::Refused(Refusal { code: ErrorCode::VmNotFound, state: None, hint })
}

fn wrong_state(vm: usize, state: VmState, act: Act) -> Answer {
    let name = NAMES[vm];
    let hint = match (act, state) {
        (Act::Exec | Act::Start(_), VmState::Paused) => format!("banger resume {name}"),
        (Act::Exec, state) if is_live(state) => format!("banger show {name}"),
        (Act::Exec, _) => format!("banger start {name}"),
        (_, VmState::Stopping) => format!("banger wait {name}"),
        (Act::Pause | Act::Resume, _) => format!("banger start {name}"),
        (Act::Restart, _) => format!("banger logs --console {name}"),
        _ => format!("banger stop {name}, or banger rm --force {name}"),
    };
    Answer::Refused(Refusal { code: ErrorCode::VmWrongState, state: Some(state), hint })
}
