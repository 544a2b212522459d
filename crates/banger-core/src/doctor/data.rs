//! What the doctor knows about a machine.

use std::collections::BTreeSet;

/// Facts, as they were found. `None` is: could not be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The processor's architecture, as Rust spells it.
    pub architecture: String,
    /// Who runs banger.
    pub uid: u32,
    /// That user's name, or the number if it has none.
    pub user: String,
    /// A program of banger's own that is missing.
    pub missing_part: Option<String>,
    /// Why the settings cannot be used.
    pub settings: Result<(), String>,
    /// What happened when a user namespace with a mount, a network and a PID namespace was made.
    pub user_namespaces: Result<(), String>,
    /// AppArmor lets only confined programs have user namespaces.
    pub apparmor_restricts_namespaces: bool,
    /// The kernel's switch for unprivileged user namespaces, where there is one.
    pub unprivileged_namespaces: Option<bool>,
    /// How many user namespaces the kernel allows.
    pub max_user_namespaces: Option<u64>,
    /// What `/etc/subuid` grants the user.
    pub subuid: MapRange,
    /// What `/etc/subgid` grants the user.
    pub subgid: MapRange,
    /// Whether the system user that jails VMMs started by root exists.
    pub jail_user: bool,
    /// Hardware virtualisation.
    pub kvm: Kvm,
    /// The processor's flags name AMD's virtualisation and not Intel's.
    pub is_amd: bool,
    /// `/dev/net/tun`.
    pub tun: Device,
    /// Programs of the host that were found, of those that banger uses.
    pub programs: BTreeSet<String>,
    /// What `qemu-system-x86_64 --version` says.
    pub qemu_version: Option<String>,
    /// Whether apt has a source of packages.
    pub has_apt_sources: bool,
    /// The default image.
    pub image: Stored,
    /// The default kernel.
    pub kernel: Stored,
    /// Where the data is, and how much space is left there.
    pub space: Option<Space>,
    /// Where the daemon's socket is.
    pub runtime_dir: String,
    /// Whether the runtime directory can be used.
    pub runtime_dir_state: Result<(), String>,
    /// The runtime directory is logind's, which removes it when the user's last session ends.
    pub runtime_dir_is_logind: bool,
    /// Whether logind keeps the user's things after logout.
    pub lingers: Option<bool>,
    /// The daemon.
    pub daemon: DaemonFacts,
}

/// What stands in the way of hardware virtualisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kvm {
    /// Nothing.
    Usable,
    /// There is no `/dev/kvm`.
    NoDevice,
    /// The user may not open it.
    NotPermitted,
    /// The processor does not offer it here.
    NoHardware,
    /// It cannot be opened for another reason.
    Broken(String),
}

/// Whether a device can be opened for reading and writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// It can.
    Usable,
    /// It is not there.
    Missing,
    /// The user may not.
    NotPermitted,
    /// It cannot for another reason.
    Broken(String),
}

/// The largest range of ids that a user may map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapRange {
    /// None.
    Missing,
    /// So many ids.
    Of(u64),
}

/// Something that may be local.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Whether it is here.
    pub is_local: bool,
}

/// Room on a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// The directory that was asked about.
    pub path: String,
    /// Bytes that this user may still take.
    pub free_bytes: u64,
}

/// What can be told about the daemon without starting it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonFacts {
    /// It does not run.
    Down,
    /// It runs and answers.
    Up {
        /// Its release.
        version: String,
        /// Whether this program can talk to it.
        is_compatible: bool,
    },
    /// It holds its lock and does not answer.
    Silent,
}
