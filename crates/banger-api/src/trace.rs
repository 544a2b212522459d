//! Where the time of a VM's start and end goes: marks of every process that has a part in it.
//!
//! Whoever starts a VM may ask for them ([`crate::vm::StartVm::trace`]). They travel with the events
//! that there are anyway and are no progress. All processes of a host read the same clock,
//! `CLOCK_MONOTONIC`, so their marks have one order.

use serde::{Deserialize, Serialize};

/// A part of a start or an end, from when to when it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Mark {
    /// One of [`STAGES`], or what another release calls another.
    pub stage: String,
    /// Microseconds of the host's monotonic clock.
    pub began_us: u64,
    /// Microseconds of the host's monotonic clock.
    pub ended_us: u64,
}

macro_rules! stages {
    ($($constant:ident = $name:literal: $what:literal,)*) => {
        $(#[doc = $what] pub const $constant: &str = $name;)*

        /// Every stage with what happens in it, in the order in which they begin.
        pub const STAGES: &[(&str, &str)] = &[$(($name, $what),)*];
    };
}

stages! {
    CLI_BEGIN = "cli.begin": "the command line is read",
    CLI_DAEMON = "cli.daemon": "the daemon is reached, or started, and asked for its version",
    CLI_REQUEST = "cli.request": "the VM is asked for",
    DAEMON_CHECK = "daemon.check": "the request is checked",
    DAEMON_ROW = "daemon.row": "image and kernel are found, or fetched; the row is written",
    DAEMON_FILES = "daemon.files": "the VM's directory and disk are made",
    DAEMON_NEEDS = "daemon.needs": "image, kernel and engine are checked",
    DAEMON_TEMPLATE = "daemon.template": "the template is checked; the first of a kind is made",
    DAEMON_SEED = "daemon.seed": "the VM gets a copy of the template's disk",
    DAEMON_LAUNCH = "daemon.launch": "what the shim reads is written",
    DAEMON_CLAIM = "daemon.claim": "a guest that stands ready is told that it is this VM",
    DAEMON_SHIM = "daemon.shim": "the shim is started and enters its namespaces",
    SHIM_BEGIN = "shim.begin": "the shim proper begins",
    SHIM_NETWORK = "shim.network": "network namespace and tap are made",
    SHIM_VMM = "shim.vmm": "the VMM's jail is started",
    SHIM_RULES = "shim.rules": "the packet rules are waited for, without which there is no uplink",
    SHIM_UPLINK = "shim.uplink": "pasta connects the network, beside what follows",
    VMM_BEGIN = "vmm.begin": "the VMM starts in its jail, until it answers",
    VMM_LOAD = "vmm.load": "the VMM loads the saved guest",
    VMM_RESUME = "vmm.resume": "the guest goes on",
    GUEST_BOOT = "guest.boot": "the guest's kernel boots, until its agent greets",
    GUEST_GREET = "guest.greet": "the guest's agent greets",
    GUEST_CONFIGURE = "guest.configure": "the guest becomes this VM",
    SHIM_UP = "shim.up": "services and uplink are waited for",
    DAEMON_READY = "daemon.ready": "the daemon hears of it and writes it down",
    CLI_EXEC = "cli.exec": "the command's stream is opened",
    COMMAND_START = "command.start": "the command is sent, and started in the guest",
    COMMAND_RUN = "command.run": "the command runs",
    CLI_END = "cli.end": "the VM's end is waited for",
    SHIM_KILL = "shim.kill": "the VMM is ended",
    DAEMON_END = "daemon.end": "the shim ends",
    DAEMON_REMOVE = "daemon.remove": "row and files are removed",
}

/// What happens in a stage; nothing is known of another release's.
#[must_use]
pub fn describe(stage: &str) -> &'static str {
    STAGES.iter().find(|(name, _)| *name == stage).map_or("", |(_, what)| what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_a_name_of_its_own_and_stands_in_the_documentation() {
        let guide = include_str!("../../../docs/instant-start.md");
        for (at, (name, what)) in STAGES.iter().enumerate() {
            assert_eq!(STAGES.iter().position(|(other, _)| other == name), Some(at), "{name}");
            assert_eq!(describe(name), *what);
            assert!(guide.contains(&format!("| `{name}` | {what} |")), "{name}: {what}");
        }
        assert_eq!(describe("other"), "");
    }
}
