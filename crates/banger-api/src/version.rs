//! Protocol versions, and how two processes of different releases agree on one.
//!
//! VMs outlive the daemon that started them, so a new CLI and daemon meet old shims and agents.
//! Each side states the range it speaks; the highest common version is used.

use serde::{Deserialize, Serialize};

/// An inclusive range of protocol versions that one side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProtocolRange {
    /// The oldest version still spoken.
    pub min: u32,
    /// The newest version spoken.
    pub max: u32,
}

/// What the CLI and the daemon speak.
pub const DAEMON_PROTOCOL: ProtocolRange = ProtocolRange { min: 1, max: 1 };
/// What the CLI or the daemon and a shim speak.
pub const SHIM_PROTOCOL: ProtocolRange = ProtocolRange { min: 1, max: 1 };
/// What a shim and a guest agent speak.
pub const AGENT_PROTOCOL: ProtocolRange = ProtocolRange { min: 1, max: 1 };

impl ProtocolRange {
    /// The highest version that both ranges contain.
    #[must_use]
    pub fn negotiate(self, other: Self) -> Option<u32> {
        let newest = self.max.min(other.max);
        (newest >= self.min && newest >= other.min).then_some(newest)
    }
}

impl std::fmt::Display for ProtocolRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

/// Answer of `GET /v1/version` of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DaemonVersion {
    /// The daemon's release, for example `0.1.0`.
    pub version: String,
    /// The protocol versions it speaks.
    pub protocol: ProtocolRange,
    /// Its process id in the host's process namespace.
    pub pid: u32,
    /// When it started.
    pub started_at_ms: u64,
    /// The state directory it serves.
    pub data_dir: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_wins() {
        let range = |min, max| ProtocolRange { min, max };
        let cases = [
            (range(1, 1), range(1, 1), Some(1)),
            (range(1, 3), range(2, 5), Some(3)),
            (range(2, 5), range(1, 3), Some(3)),
            (range(1, 2), range(3, 4), None),
            (range(3, 4), range(1, 2), None),
        ];
        for (ours, theirs, want) in cases {
            assert_eq!(ours.negotiate(theirs), want, "{ours} with {theirs}");
        }
    }
}
