//! Why a VM did not come up.

use std::error::Error;

use banger_api::error::{ErrorCode, Problem};
use banger_host::cow::CowError;
use banger_host::http::HttpError;
use banger_host::network::NetworkError;
use banger_host::process::limit_hint;
use banger_host::qemu::qmp::QmpError;
use banger_host::qemu::{MigrationError, SpawnError};

use crate::exec;

/// What a boot waits for.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum Awaited {
    /// The VMM's first answer.
    #[error("the VMM did not answer")]
    Vmm,
    /// The greeting of the agent, after kernel, modules and disks.
    #[error("the guest did not answer")]
    Agent,
    /// The guest that was saved, loaded.
    #[error("the saved guest was not loaded")]
    Restored,
    /// The guest, ready to be saved.
    #[error("the guest answered, but was not ready to be saved")]
    Parked,
    /// The guest is this VM: its name, network, disks and users.
    #[error("the guest answered, but was not set up")]
    Configured,
}

/// A failed step of a launch.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// The copy-on-write store cannot be used.
    #[error("the VM's disk cannot be used")]
    Disk(#[from] CowError),
    /// The network could not be made.
    #[error("the VM's network could not be made")]
    Network(#[from] NetworkError),
    /// The VMM could not be started.
    #[error("the VMM could not be started")]
    Vmm(#[from] SpawnError),
    /// The VMM cannot be controlled.
    #[error("the VMM cannot be controlled")]
    Control(#[from] QmpError),
    /// The VMM ended while the guest booted.
    #[error("the VMM ended while the guest booted: {reason}")]
    VmmEnded {
        /// How.
        reason: String,
    },
    /// The guest's kernel panicked while booting.
    #[error("guest kernel panic: {line}")]
    Panic {
        /// The panic's line on the console.
        line: String,
    },
    /// The guest powered itself off while booting.
    #[error("the guest powered itself off while it booted")]
    PoweredOff,
    /// The guest did not answer.
    #[error("{awaited} within {} s{processors}", timeout_ms / 1000)]
    Silent {
        /// What did not happen.
        awaited: Awaited,
        /// How long it had.
        timeout_ms: u64,
        /// Where its processors stand, `; CPU 0 …`, or nothing: to tell a guest that hangs from one that
        /// is slow.
        processors: String,
    },
    /// The guest's kernel would hang.
    #[error("the guest's kernel found no timer: the host is too busy")]
    NoTimer,
    /// What is in place of the guest's agent does not greet as one.
    #[error("the guest's agent does not greet")]
    Greeting(#[source] std::io::Error),
    /// The guest's agent is of a release this shim cannot talk to.
    #[error("the guest's agent speaks protocol {theirs}, this shim {ours}")]
    Protocol {
        /// The agent's range.
        theirs: String,
        /// The shim's range.
        ours: String,
    },
    /// The guest's agent is of a release that knows no other first process than itself.
    #[error("the guest's agent {version} cannot start the image's own init")]
    NoSystemInit {
        /// The agent's release.
        version: String,
    },
    /// The guest's agent is of a release that knows no work disks.
    #[error("the guest's agent {version} knows no work disks")]
    NoWorkDisk {
        /// The agent's release.
        version: String,
    },
    /// The guest's agent is of a release that cannot be saved.
    #[error("the guest's agent {version} cannot get ready to be saved")]
    NoPark {
        /// The agent's release.
        version: String,
    },
    /// The guest's agent is of a release that stays who it is.
    #[error("the guest's agent {version} cannot become another VM")]
    NoCopy {
        /// The agent's release.
        version: String,
    },
    /// The VMM could not save or load a guest.
    #[error("the VMM could not save or load the guest")]
    Migration(#[source] MigrationError),
    /// The guest did not go on from its template. A boot may work.
    #[error("the guest did not go on from its template")]
    Restore(#[source] Box<LaunchError>),
    /// The guest could not be configured.
    #[error("the guest could not be configured")]
    Configure(#[source] HttpError),
    /// The guest's agent said why it cannot become this VM.
    #[error("{0}")]
    Refused(Problem),
    /// Something of the host.
    #[error("cannot {what}")]
    Host {
        /// The step, as a verb and its object.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Lets an error of the host say which step it was.
pub(crate) fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> LaunchError {
    move |source| LaunchError::Host { what, source }
}

impl LaunchError {
    /// The error as it travels.
    pub(crate) fn problem(&self, vm: &str) -> Problem {
        let problem = Problem::new(self.code(), format!("VM {vm} did not start")).because(self);
        // What broke may quote the guest, or a VMM that is the guest's.
        exec::plain(match self.hint(vm) {
            Some(hint) => problem.hint(hint),
            None => problem,
        })
    }

    fn code(&self) -> ErrorCode {
        match self {
            Self::Network(NetworkError::Missing { .. }) => ErrorCode::HostProgramMissing,
            Self::Restore(_) | Self::Migration(_) => ErrorCode::TemplateFailed,
            Self::Panic { .. } => ErrorCode::GuestPanic,
            Self::Silent { .. } | Self::NoTimer => ErrorCode::GuestTimeout,
            Self::Greeting(_)
            | Self::Protocol { .. }
            | Self::NoSystemInit { .. }
            | Self::NoWorkDisk { .. }
            | Self::NoPark { .. }
            | Self::NoCopy { .. } => ErrorCode::GuestProtocol,
            _ => ErrorCode::BootFailed,
        }
    }

    fn hint(&self, vm: &str) -> Option<String> {
        if let Some(hint) = self.limit() {
            return Some(hint.to_owned());
        }
        match self {
            Self::Refused(Problem { hint: Some(hint), .. }) => Some(hint.clone()),
            Self::Network(NetworkError::Missing { package, .. }) => {
                Some(format!("sudo apt-get install {package}"))
            }
            Self::Network(_) => Some("banger doctor".to_owned()),
            Self::Disk(_) => Some(format!("banger rm {vm}")),
            Self::Panic { .. }
            | Self::PoweredOff
            | Self::Silent { .. }
            | Self::Greeting(_)
            | Self::Configure(_)
            | Self::Refused(_) => Some(format!("banger logs --console {vm}")),
            Self::Vmm(_) | Self::VmmEnded { .. } | Self::Control(_) | Self::Migration(_) => {
                Some("banger doctor".to_owned())
            }
            Self::Restore(_) => Some("banger template rm --all".to_owned()),
            Self::NoTimer => Some(format!("banger start {vm}")),
            Self::NoSystemInit { .. } => Some("use --init agent".to_owned()),
            Self::Host { .. }
            | Self::Protocol { .. }
            | Self::NoWorkDisk { .. }
            | Self::NoPark { .. }
            | Self::NoCopy { .. } => None,
        }
    }

    /// What raises the limit of the host that was reached, if that is why.
    fn limit(&self) -> Option<&'static str> {
        let sources = std::iter::successors(self.source(), |error| (*error).source());
        sources.filter_map(|error| limit_hint(error.downcast_ref()?)).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_was_reached_is_named_whatever_reached_it() {
        // EMFILE
        let full = || std::io::Error::from_raw_os_error(24);
        let disk = LaunchError::Disk(CowError::Io { path: "root.cow".into(), source: full() });
        for error in [disk, host("open the log")(full())] {
            let hint = error.problem("web").hint.expect("a hint");
            assert!(hint.contains("ulimit -n"), "{hint}");
        }
    }
}
