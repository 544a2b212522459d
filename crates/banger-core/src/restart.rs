//! Whether and when a VM is started again that ended by itself.
//!
//! What somebody stopped or killed stays so. What fails again and again is tried less and less
//! often: after 1 s, 2 s, 4 s, … and at most 60 s; a run of a minute counts as a fresh beginning.

use banger_api::exec::ExecEnd;
use banger_api::vm::{EndCause, RestartPolicy, VmEnd, VmStatus};

/// Pause before the first start.
pub const FIRST_PAUSE_MS: u64 = 1_000;
/// Longest pause.
pub const LONGEST_PAUSE_MS: u64 = 60_000;
/// A VM that ran this long begins to count anew.
pub const LONG_RUN_MS: u64 = 60_000;

/// A run that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The VM's policy.
    pub policy: RestartPolicy,
    /// Somebody asked for the end.
    pub asked: bool,
    /// How often in a row the policy had started it.
    pub restarts: u32,
    /// How long it ran; None if that is not known, which counts as long.
    pub ran_ms: Option<u64>,
}

/// The status of an ended VM with what its policy makes of it.
#[must_use]
pub fn after(run: Run, ended: VmStatus, now_ms: u64) -> VmStatus {
    let wanted = !run.asked && ended.end.as_ref().is_some_and(|end| wants(run.policy, end));
    if !wanted {
        return VmStatus { restarts: 0, next_start_ms: None, ..ended };
    }
    let fresh = run.ran_ms.is_none_or(|ran_ms| ran_ms >= LONG_RUN_MS);
    let before = if fresh { 0 } else { run.restarts };
    VmStatus {
        restarts: before.saturating_add(1),
        next_start_ms: Some(now_ms.saturating_add(pause_ms(before))),
        ..ended
    }
}

/// Whether a policy wants a VM that ended so to run.
#[must_use]
pub fn wants(policy: RestartPolicy, end: &VmEnd) -> bool {
    let is_failure = match end.cause {
        // Somebody's wish.
        EndCause::Stopped | EndCause::StopTimedOut | EndCause::Killed | EndCause::OwnerGone => {
            return false;
        }
        EndCause::MainExited => end.main != Some(ExecEnd::Exited(0)),
        EndCause::GuestPowerOff => false,
        // The VM did not wish it either.
        EndCause::Terminated
        | EndCause::GuestPanic
        | EndCause::VmmExited
        | EndCause::LaunchFailed
        | EndCause::ShimGone
        | EndCause::OutOfMemory
        | EndCause::HostRestarted
        | EndCause::Other => true,
    };
    match policy {
        RestartPolicy::No => false,
        RestartPolicy::OnFailure => is_failure,
        RestartPolicy::Always => true,
    }
}

/// The pause before a start after so many in a row.
#[must_use]
pub fn pause_ms(before: u32) -> u64 {
    FIRST_PAUSE_MS.checked_shl(before.min(16)).unwrap_or(LONGEST_PAUSE_MS).min(LONGEST_PAUSE_MS)
}

/// How long to wait for a start that is due at `next_start_ms`. A clock that was set meanwhile
/// makes the wait no longer than the longest pause.
#[must_use]
pub fn wait_ms(next_start_ms: u64, now_ms: u64) -> u64 {
    next_start_ms.saturating_sub(now_ms).min(LONGEST_PAUSE_MS)
}

#[cfg(test)]
mod tests {
    use banger_api::vm::VmState;

    use super::*;
    use crate::lifecycle::{fresh, plain_end};

    fn end(cause: EndCause, main: Option<ExecEnd>) -> VmEnd {
        VmEnd { main, ..plain_end(cause, "x") }
    }

    #[test]
    fn what_each_policy_makes_of_each_end() {
        // Cause, main, on-failure, always.
        let table = [
            (EndCause::Stopped, None, false, false),
            (EndCause::StopTimedOut, None, false, false),
            (EndCause::Killed, None, false, false),
            (EndCause::OwnerGone, None, false, false),
            (EndCause::Stopped, Some(ExecEnd::Exited(3)), false, false),
            (EndCause::MainExited, Some(ExecEnd::Exited(0)), false, true),
            (EndCause::MainExited, Some(ExecEnd::Exited(3)), true, true),
            (EndCause::MainExited, Some(ExecEnd::Signaled(9)), true, true),
            (EndCause::MainExited, Some(ExecEnd::TimedOut), true, true),
            (EndCause::GuestPowerOff, None, false, true),
            (EndCause::Terminated, None, true, true),
            (EndCause::GuestPanic, None, true, true),
            (EndCause::VmmExited, None, true, true),
            (EndCause::LaunchFailed, None, true, true),
            (EndCause::ShimGone, None, true, true),
            (EndCause::OutOfMemory, None, true, true),
            (EndCause::HostRestarted, None, true, true),
        ];
        for (cause, main, on_failure, always) in table {
            let end = end(cause, main);
            assert!(!wants(RestartPolicy::No, &end), "{end:?}");
            assert_eq!(wants(RestartPolicy::OnFailure, &end), on_failure, "{end:?}");
            assert_eq!(wants(RestartPolicy::Always, &end), always, "{end:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let pauses: Vec<u64> = (0..8).map(pause_ms).collect();
        assert_eq!(pauses, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(pause_ms(u32::MAX), LONGEST_PAUSE_MS);
    }

    #[test]
    fn a_run_of_a_minute_begins_anew_and_a_wish_ends_it() {
        let failed = VmStatus {
            end: Some(end(EndCause::GuestPanic, None)),
            restarts: 7,
            next_start_ms: Some(1),
            ..fresh(VmState::Failed, 5)
        };
        let run = |asked, ran_ms| Run { policy: RestartPolicy::Always, asked, restarts: 3, ran_ms };
        // Asked, how long it ran; which start comes, and after how long.
        let table = [
            (false, Some(10), 4, Some(8_000)),
            (false, Some(LONG_RUN_MS), 1, Some(1_000)),
            (false, None, 1, Some(1_000)),
            (true, Some(10), 0, None),
        ];
        for (asked, ran_ms, restarts, pause) in table {
            let found = after(run(asked, ran_ms), failed.clone(), 100_000);
            assert_eq!(found.restarts, restarts, "{asked} {ran_ms:?}");
            assert_eq!(found.next_start_ms, pause.map(|pause: u64| 100_000 + pause));
            assert_eq!(found.end, failed.end, "how it ended stays known");
        }
    }

    #[test]
    fn a_clock_that_is_set_makes_no_long_wait() {
        assert_eq!(wait_ms(5_000, 3_000), 2_000);
        assert_eq!(wait_ms(5_000, 9_000), 0);
        assert_eq!(wait_ms(u64::MAX, 0), LONGEST_PAUSE_MS);
    }
}
