//! Why a VM stands still, and when it goes on.
//!
//! Somebody may have paused it, and the host's disk may be full. Neither knows of the other: a VM
//! goes on when there is no reason left, and not before.

use banger_api::vm::PauseReason;

/// What happens to a VM that is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// Somebody has it paused.
    Paused,
    /// Somebody has it resumed.
    Resumed {
        /// Whether the host's disk has space.
        has_space: bool,
    },
    /// Its VMM has halted it because the host's disk is full.
    DiskFull,
    /// The host's disk has space.
    DiskHasSpace,
}

/// What is to be done to its virtual CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// They are halted.
    Halt,
    /// They go on.
    GoOn,
}

/// What comes of something that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What is to be done, before anything is said of it.
    pub act: Act,
    /// Why the VM stands still then; none if it runs.
    pub reasons: Vec<PauseReason>,
}

/// What comes of something that happens to a VM that stands still for these reasons, or runs.
#[must_use]
pub fn plan(reasons: &[PauseReason], happening: Happening) -> Plan {
    let had = |reason| reasons.contains(&reason);
    let (requested, full) = (had(PauseReason::Requested), had(PauseReason::HostDiskFull));
    let (requests, fills) = match happening {
        Happening::Paused => (true, full),
        Happening::Resumed { has_space } => (false, full && !has_space),
        Happening::DiskFull => (requested, true),
        Happening::DiskHasSpace => (requested, false),
    };
    let act = match (requested, requests || fills) {
        // Also one that the VMM has halted: it might have been told to go on just now.
        (false, true) if requests => Act::Halt,
        (_, false) if requested || full => Act::GoOn,
        _ => Act::Nothing,
    };
    let one = |reason, holds: bool| holds.then_some(reason);
    let reasons = [one(PauseReason::Requested, requests), one(PauseReason::HostDiskFull, fills)];
    Plan { act, reasons: reasons.into_iter().flatten().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_goes_on_when_no_reason_is_left() {
        use Act::{GoOn, Halt, Nothing};
        use Happening::{DiskFull, DiskHasSpace, Paused};
        const SPACE: Happening = Happening::Resumed { has_space: true };
        const FULL: Happening = Happening::Resumed { has_space: false };
        // Reasons before and after: r for requested, f for a full disk.
        let table = [
            ("", Paused, Halt, "r"),
            ("", SPACE, Nothing, ""),
            ("", FULL, Nothing, ""),
            ("", DiskFull, Nothing, "f"),
            ("", DiskHasSpace, Nothing, ""),
            ("r", Paused, Nothing, "r"),
            ("r", SPACE, GoOn, ""),
            ("r", FULL, GoOn, ""),
            ("r", DiskFull, Nothing, "rf"),
            ("r", DiskHasSpace, Nothing, "r"),
            ("f", Paused, Halt, "rf"),
            ("f", SPACE, GoOn, ""),
            ("f", FULL, Nothing, "f"),
            ("f", DiskFull, Nothing, "f"),
            ("f", DiskHasSpace, GoOn, ""),
            ("rf", Paused, Nothing, "rf"),
            ("rf", SPACE, GoOn, ""),
            ("rf", FULL, Nothing, "f"),
            ("rf", DiskFull, Nothing, "rf"),
            ("rf", DiskHasSpace, Nothing, "r"),
        ];
        let reasons = |letters: &str| -> Vec<PauseReason> {
            let reason = |letter| match letter {
                'r' => PauseReason::Requested,
                _ => PauseReason::HostDiskFull,
            };
            letters.chars().map(reason).collect()
        };
        for (before, happening, act, after) in table {
            let want = Plan { act, reasons: reasons(after) };
            assert_eq!(plan(&reasons(before), happening), want, "{before:?} {happening:?}");
        }
    }
}
