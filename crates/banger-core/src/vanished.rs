//! Why a VM ended whose shim left no last word.
//!
//! Only what shows is said. A process that was killed does not say by whom; that memory ran out is
//! said only where a cgroup's counter shows it, and that the host was restarted only where the
//! kernel's boot id differs.

use banger_api::vm::{EndCause, VmEnd};

use crate::lifecycle::plain_end;

/// How a shim's process ended, as its parent learned it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShimExit {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

/// What tells how a shim ended that left no last word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traces {
    /// The host was started anew since the VM was.
    pub rebooted: bool,
    /// The kernel killed something in the shim's cgroup for want of memory while it ran.
    pub out_of_memory: bool,
    /// How its process ended. None where this daemon is not its parent.
    pub exit: Option<ShimExit>,
}

impl Traces {
    /// The end of a VM that ran.
    #[must_use]
    pub fn end(self) -> VmEnd {
        let (cause, reason) = match self {
            Self { rebooted: true, .. } => {
                (EndCause::HostRestarted, "the host was restarted while it ran".to_owned())
            }
            Self { out_of_memory: true, .. } => (
                EndCause::OutOfMemory,
                "out of memory: the host's kernel killed it, as its cgroup shows".to_owned(),
            ),
            Self { exit: Some(ShimExit::Signaled(9)), .. } => (
                EndCause::ShimGone,
                "its supervisor was killed by signal 9, sender unknown".to_owned(),
            ),
            Self { exit: Some(ShimExit::Signaled(number)), .. } => {
                (EndCause::ShimGone, format!("its supervisor was ended by signal {number}"))
            }
            Self { exit: Some(ShimExit::Exited(code)), .. } => (
                EndCause::ShimGone,
                format!("its supervisor ended with exit code {code} and without a word"),
            ),
            Self { exit: None, .. } => (
                EndCause::ShimGone,
                "its supervisor vanished, and this daemon cannot tell how".to_owned(),
            ),
        };
        plain_end(cause, &reason)
    }

    /// The end of a VM whose start never came far enough to be written down.
    #[must_use]
    pub fn of_an_interrupted_start(self) -> VmEnd {
        match self.rebooted {
            true => plain_end(EndCause::HostRestarted, "the host was restarted while it started"),
            false => plain_end(EndCause::LaunchFailed, "its start was interrupted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_what_shows_and_no_more() {
        let killed = Some(ShimExit::Signaled(9));
        // Rebooted, out of memory, exit; cause, part of the reason.
        let table = [
            (true, true, killed, EndCause::HostRestarted, "host was restarted"),
            (false, true, killed, EndCause::OutOfMemory, "out of memory"),
            (false, true, None, EndCause::OutOfMemory, "out of memory"),
            (false, false, killed, EndCause::ShimGone, "killed by signal 9, sender unknown"),
            (false, false, Some(ShimExit::Signaled(6)), EndCause::ShimGone, "by signal 6"),
            (false, false, Some(ShimExit::Exited(1)), EndCause::ShimGone, "exit code 1"),
            (false, false, None, EndCause::ShimGone, "cannot tell how"),
        ];
        for (rebooted, out_of_memory, exit, cause, part) in table {
            let end = Traces { rebooted, out_of_memory, exit }.end();
            assert_eq!(end.cause, cause, "{end:?}");
            assert!(end.reason.contains(part), "{end:?}");
        }
    }
}
