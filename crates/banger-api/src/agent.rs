//! What a shim asks the guest agent.
//!
//! The agent serves HTTP/1.1 on every stream that the shim opens:
//!
//! | route | body | answer |
//! |---|---|---|
//! | `GET /v1/hello` | | [`Hello`] |
//! | `POST /v1/configure` | [`Configure`] | [`Configured`] |
//! | `POST /v1/await-system` | [`AwaitSystem`] | [`SystemStatus`]; see [`SYSTEM_INIT_FEATURE`] |
//! | `POST /v1/park` | [`Park`] | 204 once the guest can be saved; see [`PARK_FEATURE`] |
//! | `POST /v1/clock` | [`SetClock`] | 204 |
//! | `GET /v1/exec` | WebSocket, see [`crate::exec`] | |
//! | `POST /v1/sync` | | 204 once everything written is on the disks |
//! | `POST /v1/shutdown` | [`Shutdown`] | 204 once everything is synced and unmounted; then it acts |
//!
//! Errors are [`crate::Problem`]s. Until `configure` has succeeded, `exec` answers 409.
//!
//! **Additions** do not change the protocol's version. A new field has a default that means what
//! was before it; a new route is announced by a name in [`Hello::features`].
//!
//! **The stream.** On QEMU the agent is at the end of one virtio-serial port, [`PORT_NAME`]. Every
//! connection begins with [`PREAMBLE`] and [`NONCE_LEN`] random bytes from the shim; the agent
//! discards what it reads until it finds them, and sends the same bytes back; the shim discards
//! likewise. From there on both sides speak yamux, in which only the shim opens streams. Neither
//! end trusts anything before the preamble: it may be left over from another connection.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::version::ProtocolRange;

/// Name of the agent's virtio-serial port, as in `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "banger.agent.0";
/// First bytes of every connection to the agent.
pub const PREAMBLE: &[u8; 16] = b"\0\xffbanger-agent\x01\n";
/// How many random bytes follow the preamble.
pub const NONCE_LEN: usize = 16;
/// Most streams that may be open at once on one connection.
pub const MAX_STREAMS: usize = 64;
/// Receive window of all streams of one connection together, in bytes.
pub const CONNECTION_WINDOW: usize = 16 * 1024 * 1024;
/// Largest JSON body that either side accepts, in bytes, except for exec requests.
pub const MAX_BODY: usize = 1024 * 1024;

/// Where the initramfs keeps the modules to load at boot, in the order of their file names.
pub const BOOT_MODULES_DIR: &str = "/modules";
/// Kernel argument with the size of the root disk in 512-byte sectors.
pub const ROOT_SECTORS_ARG: &str = "banger.root_sectors";
/// Kernel argument with the guest's first process, as [`crate::vm::InitMode::as_str`] has it;
/// without it the agent stays the first process.
pub const INIT_ARG: &str = "banger.init";
/// Beginning of the kernel arguments by which test builds make steps of the agent fail; the step's
/// name follows, and after `=` what it does, with `-` for spaces. See [`crate::step`].
pub const FAULT_ARG: &str = "banger.fault.";
/// What the agent of a test build says on the console right before a step does that; the step's name
/// and a colon follow.
pub const FAULT_SAID: &str = "fault at ";

/// In [`Hello::features`]: the agent obeys [`INIT_ARG`] and [`Shutdown::main`], and answers
/// `await-system`.
pub const SYSTEM_INIT_FEATURE: &str = "system-init";
/// In [`Hello::features`]: the agent knows [`Drive::Work`].
pub const WORK_DISK_FEATURE: &str = "work-disk";

/// In [`Hello::features`]: the agent knows `park`.
pub const PARK_FEATURE: &str = "park";

/// In [`Hello::features`]: the agent knows [`Configure::copy`].
pub const COPY_FEATURE: &str = "copy";

/// Answer of `GET /v1/hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions the agent speaks.
    pub protocol: ProtocolRange,
    /// The agent's release.
    pub version: String,
    /// What it can do beyond the protocol's base.
    #[serde(default)]
    pub features: Vec<String>,
    /// What `uname -r` says in the guest.
    pub kernel_release: String,
    /// Whether `configure` has succeeded.
    pub configured: bool,
}

/// Body of `POST /v1/configure`: everything that makes this guest this VM.
///
/// The order in which the agent applies it is fixed: entropy, clock, machine-id, hostname, network,
/// the rest; where the image's own init becomes the first process, that is the last step. If any of
/// it fails the answer is an error and the guest stays unconfigured.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// At least 32 random bytes, in hex, added to the kernel's pool before anything else.
    pub entropy_hex: String,
    /// The time now, since the Unix epoch.
    pub time_unix_ns: u64,
    /// 32 lower-case hex digits.
    pub machine_id: String,
    /// The VM's name.
    pub hostname: String,
    /// The guest's network interface; None leaves the guest without one.
    pub network: Option<GuestNetwork>,
    /// Environment of every command: the image's, the VM's and the session's, in that order.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Default user of commands, as in [`crate::exec::ExecRequest::user`]; None is root.
    #[serde(default)]
    pub user: Option<String>,
    /// Default working directory of commands; None is the user's home.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Additional certificate authorities, PEM, to be trusted in the guest.
    #[serde(default)]
    pub ca_certificates: Vec<String>,
    /// The drives beyond `/`, in device order from the third on.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// The guest is a copy of another VM, whose identity it has: it loses that first. See
    /// [`COPY_FEATURE`].
    #[serde(default)]
    pub copy: bool,
}

impl std::fmt::Debug for Configure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The entropy and the environment may be secret.
        f.debug_struct("Configure").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}

/// The guest's side of the VM's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// IPv4 address.
    pub address: std::net::Ipv4Addr,
    /// Length of the network prefix.
    pub prefix: u8,
    /// Default gateway.
    pub gateway: std::net::Ipv4Addr,
    /// Name servers.
    pub dns: Vec<std::net::Ipv4Addr>,
    /// Search domains of the host.
    #[serde(default)]
    pub search: Vec<String>,
    /// Largest packet.
    pub mtu: u16,
}

/// What a drive beyond the root disk is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "role")]
pub enum Drive {
    /// The VM's work disk, an ext4 to be mounted at the home of the default user and, where it is
    /// smaller than its disk, to be grown. See [`WORK_DISK_FEATURE`].
    Work {
        /// How large the disk is. A guest that goes on from a saved one learns of it a moment later, and
        /// waits for that. None takes it as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
    },
    /// The kernel's modules, an ext4 to be mounted read-only at `/lib/modules/<release>`.
    Modules {
        /// The kernel's release.
        release: String,
    },
    /// Something this agent need not touch.
    Unused,
}

/// Body of `POST /v1/park`: makes an unconfigured guest ready to be saved, with all that is the same for
/// every VM that will go on from there. It must not know anything of an identity then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Park {
    /// The drives beyond `/`, as in [`Configure::drives`]; those that are the same for every VM are
    /// mounted.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// The network, where that is the same for every VM; names are not looked up yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<GuestNetwork>,
}

/// Answer of `POST /v1/configure`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// What could not be done and does not matter enough to fail, one line each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Body of `POST /v1/await-system`: answered as soon as the image's own init has started everything
/// that it starts at boot, or tells nothing of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitSystem {
    /// How long the answer may wait.
    pub limit_ms: u64,
}

/// Answer of `POST /v1/await-system`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemStatus {
    /// How far it is.
    pub state: SystemState,
}

/// How far the image's own init is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SystemState {
    /// It has started everything. Some of it may have failed.
    Up,
    /// It still starts things.
    Starting,
    /// It runs, and is not of a kind that tells.
    Silent,
    /// There is none: the agent is the first process.
    None,
}

/// Body of `POST /v1/clock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetClock {
    /// The time now, since the Unix epoch.
    pub time_unix_ns: u64,
}

/// Body of `POST /v1/shutdown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// What to do in the end.
    pub action: ShutdownAction,
    /// How long processes may take between SIGTERM and SIGKILL.
    pub grace_ms: u64,
    /// The main process, which is asked to end before all others and in its own way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<StopMain>,
}

/// How a main process is asked to end. While it does, everything else goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopMain {
    /// What [`crate::exec::ServerControl::Started`] said.
    pub pid: u32,
    /// The signal that it gets.
    pub signal: i32,
}

/// What a shutdown ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownAction {
    /// Power off.
    PowerOff,
    /// Start again.
    Reboot,
}
