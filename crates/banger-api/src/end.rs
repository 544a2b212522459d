//! How a VM ended, and why.

use serde::{Deserialize, Serialize};

use crate::exec::ExecEnd;
use crate::vm::VmState;

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmEnd {
    /// The kind of end.
    pub cause: EndCause,
    /// The reason for people, one line: `guest kernel panic: …`.
    pub reason: String,
    /// How the main process ended, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<ExecEnd>,
    /// Last lines of the guest's console, control characters removed, for ends that nobody wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console_tail: Vec<String>,
}

/// The kinds of end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// `stop`: synced, unmounted, powered off.
    Stopped,
    /// `stop` ran out of its grace period, so the VM was killed.
    StopTimedOut,
    /// `kill`, or `rm --force`.
    Killed,
    /// The main process ended.
    MainExited,
    /// The client that owned the VM hung up.
    OwnerGone,
    /// The shim was told to end by a signal, as by a host that shuts down; it stopped the VM cleanly,
    /// unless the reason says that the guest could not be asked.
    Terminated,
    /// The guest powered itself off.
    GuestPowerOff,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The VMM ended by itself.
    VmmExited,
    /// The VM never came up.
    LaunchFailed,
    /// The shim vanished, mostly because it was killed.
    ShimGone,
    /// The kernel killed the shim or the VMM for want of memory; a cgroup's counter shows it.
    OutOfMemory,
    /// The host was started anew: a power cut, or a restart that left the VM no time.
    HostRestarted,
    /// A kind that only newer releases know; the reason says it.
    #[serde(other)]
    Other,
}

impl EndCause {
    /// The state of a VM that ended so.
    #[must_use]
    pub fn state(self) -> VmState {
        match self {
            Self::Stopped
            | Self::StopTimedOut
            | Self::Killed
            | Self::MainExited
            | Self::OwnerGone
            | Self::Terminated
            | Self::GuestPowerOff => VmState::Stopped,
            Self::GuestPanic
            | Self::VmmExited
            | Self::LaunchFailed
            | Self::ShimGone
            | Self::OutOfMemory
            | Self::HostRestarted
            | Self::Other => VmState::Failed,
        }
    }
}
