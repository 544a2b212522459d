//! What a running machine can be told, and what comes of it.

use std::time::Duration;

use banger_api::exec::ExecEnd;
use banger_api::vm::{EndCause, OwnerPolicy, VmEnd};

use crate::ends::{TOLD_TO_END, reason};

/// Grace of a stop that nobody gave one.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// How a VM ended whose guest could not be asked yet.
const KILLED_IN_BOOT: &str = "killed while it booted again";

/// What a running machine can be told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    /// Stop cleanly within a grace period.
    Stop(Duration),
    /// The same, because the shim was told to end.
    Terminate(Duration),
    /// End at once.
    Kill,
    /// The main process ended.
    MainEnded(ExecEnd),
    /// The owner's stream ended, after its command or without it.
    OwnerGone(Option<ExecEnd>),
}

impl Order {
    /// The end that comes of it.
    pub(crate) fn end(self) -> VmEnd {
        let (cause, main) = match self {
            Self::Kill => (EndCause::Killed, None),
            Self::Stop(_) => (EndCause::Stopped, None),
            Self::Terminate(_) => (EndCause::Terminated, None),
            Self::MainEnded(end) | Self::OwnerGone(Some(end)) => (EndCause::MainExited, Some(end)),
            Self::OwnerGone(None) => (EndCause::OwnerGone, None),
        };
        VmEnd { cause, reason: reason(cause, main), main, console_tail: Vec::new() }
    }

    /// The end that comes of it while the guest boots again, and cannot be asked to go down.
    pub(crate) fn end_in_boot(self) -> VmEnd {
        let mut end = self.end();
        match self {
            Self::Stop(_) => {
                end.cause = EndCause::Killed;
                end.reason = KILLED_IN_BOOT.to_owned();
            }
            // The cause stays: it was nobody's wish, so a restart policy goes on.
            Self::Terminate(_) => end.reason = format!("{TOLD_TO_END}; {KILLED_IN_BOOT}"),
            Self::Kill | Self::MainEnded(_) | Self::OwnerGone(_) => {}
        }
        end
    }

    /// How long the guest may take to go down; None if nobody waits for it.
    pub(crate) fn grace(self, owner: Option<OwnerPolicy>) -> Option<Duration> {
        match self {
            Self::Kill => None,
            Self::OwnerGone(_) if owner != Some(OwnerPolicy::Stop) => None,
            Self::Stop(grace) | Self::Terminate(grace) => Some(grace),
            Self::MainEnded(_) | Self::OwnerGone(_) => Some(DEFAULT_GRACE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_without_a_guest_that_could_be_asked_is_not_called_clean() {
        let grace = Duration::from_secs(10);
        // Order, cause, part of the reason.
        let table = [
            (Order::Stop(grace), EndCause::Killed, "killed while it booted again"),
            (Order::Terminate(grace), EndCause::Terminated, "killed while it booted again"),
            (Order::Kill, EndCause::Killed, "killed by request"),
            (Order::OwnerGone(None), EndCause::OwnerGone, "is gone"),
            (Order::MainEnded(ExecEnd::Exited(3)), EndCause::MainExited, "exited with 3"),
        ];
        for (order, cause, part) in table {
            let end = order.end_in_boot();
            assert_eq!(end.cause, cause, "{order:?}");
            assert!(end.reason.contains(part), "{}", end.reason);
            assert!(!end.reason.contains("cleanly"), "{}", end.reason);
        }
    }
}
