//! What the daemon hands a shim, and what a shim answers.
//!
//! The daemon writes a [`LaunchSpec`] to `launch.json` in the VM's directory and starts
//! `banger-shim` there. The shim reports [`LaunchEvent`]s, one JSON object per line, on the pipe it
//! got as standard output, until `ready` or `failed`. From `ready` on it serves HTTP/1.1 on
//! `run/shim.sock`; one that stands ready to become a VM ([`LaunchSpec::waits`]) does not until it is one:
//!
//! | route | body or query | answer |
//! |---|---|---|
//! | `GET /v1/hello` | | [`ShimHello`] |
//! | `GET /v1/watch` | | lines of [`crate::vm::VmStatus`] as JSON, one per change, the present one first; never ends while the shim lives |
//! | `GET /v1/exec` | [`ExecQuery`] | WebSocket, see [`crate::exec`] |
//! | `GET /v1/logs` | [`crate::vm::LogQuery`] | text |
//! | `POST /v1/stop` | [`crate::vm::StopVm`] | 202; the end shows in `watch` |
//! | `POST /v1/kill` | | 202 |
//! | `POST /v1/capture` | [`Capture`] | [`Captured`] |
//! | `POST /v1/pause` | | 204 when the virtual CPUs stand still |
//! | `POST /v1/resume` | | 204 when they go on and the guest's clock is right; 507 if the disk is still full |
//!
//! A shim of an older release has no `pause` and `resume`, and answers 404. Errors are [`crate::Problem`]s. The shim exits when the VM has ended and `status.json` says how.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::change::Resources;
use crate::error::Problem;
use crate::exec::ExecRequest;
use crate::operation::Progress;
use crate::trace::Mark;
use crate::version::ProtocolRange;
use crate::vm::{Accelerator, EngineInUse, InitMode, NetworkPolicy, OwnerPolicy, VmStatus};

/// File in the VM's directory with its [`LaunchSpec`].
pub const LAUNCH_FILE: &str = "launch.json";
/// File in the VM's directory with its [`VmStatus`].
pub const STATUS_FILE: &str = "status.json";
/// File in the VM's directory that is locked as long as anything may write the VM's disks.
pub const LOCK_FILE: &str = "lock";
/// The VM's copy-on-write store.
pub const COW_FILE: &str = "root.cow";
/// The VM's work disk, an ext4.
pub const WORK_FILE: &str = "work.ext4";
/// The guest's console; `console.log.1` is its older half.
pub const CONSOLE_FILE: &str = "console.log";
/// Output of the main process; `main.log.1` is its older half.
pub const MAIN_LOG_FILE: &str = "main.log";
/// The shim's own log, with what pasta said on its standard error; `shim.log.1` is its older
/// half, or the last run's.
pub const SHIM_LOG_FILE: &str = "shim.log";
/// What the VMM said on its standard error; `vmm.log.1` is its older half.
pub const VMM_LOG_FILE: &str = "vmm.log";
/// Most that each of these logs takes with its older half, in bytes, unless asked otherwise.
pub const DEFAULT_LOG_BYTES: u64 = 8 * 1024 * 1024;
/// A guest's memory, saved: a sparse file of its size.
pub const MEMORY_FILE: &str = "memory";
/// The state of a guest's processors and devices, saved.
pub const DEVICES_FILE: &str = "devices";
/// Directory of a VM's sockets.
pub const RUN_DIR: &str = "run";
/// The shim's socket in [`RUN_DIR`].
pub const SHIM_SOCKET: &str = "shim.sock";

/// Everything a shim needs to know to run a VM. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The VM's id.
    pub vm_id: String,
    /// The VM's name and hostname.
    pub name: String,
    /// 32 lower-case hex digits.
    pub machine_id: String,
    /// The program that runs the guest.
    pub engine: EngineSpec,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory_mib: u32,
    /// The kernel to boot.
    pub kernel: String,
    /// What `uname -r` will say.
    pub kernel_release: String,
    /// The initramfs with the agent.
    pub initramfs: String,
    /// The image's disk, never written.
    pub root_image: String,
    /// Size of the image's disk.
    pub root_image_bytes: u64,
    /// Size of `/` as the guest sees it; at least the image's.
    pub disk_bytes: u64,
    /// Size of the work disk, [`WORK_FILE`]; None is no work disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_disk_bytes: Option<u64>,
    /// Read-only disk with the kernel's modules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules_image: Option<String>,
    /// Whether the guest's flushes reach the host's disk.
    pub durable: bool,
    /// What the guest's network may reach.
    pub network: NetworkPolicy,
    /// Environment of every command.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Default user of commands.
    #[serde(default)]
    pub user: Option<String>,
    /// Default working directory of commands.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Additional certificate authorities, PEM.
    #[serde(default)]
    pub ca_certificates: Vec<String>,
    /// What is the guest's first process.
    #[serde(default)]
    pub init: InitMode,
    /// Signal that asks the main process to end, by name or number; None is SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// The main process, its output going to `main.log`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<ExecRequest>,
    /// Set for a VM that belongs to a foreground client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerPolicy>,
    /// The system user that the VMM becomes when banger runs as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jail_user: Option<JailUser>,
    /// How long the guest may take to answer.
    pub boot_timeout_ms: u64,
    /// Most that each of the VM's logs takes with its older half.
    #[serde(default = "default_log_bytes")]
    pub log_bytes: u64,
    /// Which start of the host this belongs to: after another one nothing of it can be alive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_boot_id: Option<String>,
    /// How its guest begins.
    #[serde(default)]
    pub begin: Begin,
    /// Digest of all that the guest sees of its machine. None: an older release did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Tell where the time goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trace: bool,
    /// It is nobody's VM yet: its guest comes up, stands still, and waits. A byte on the shim's standard
    /// input says that this file now has a VM that it becomes; the end of that input ends it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
}

/// How a guest begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum Begin {
    /// Its kernel boots, and it becomes this VM.
    #[default]
    Boot,
    /// Its kernel boots, and as soon as its agent is there it is saved, in [`MEMORY_FILE`] and
    /// [`DEVICES_FILE`] of the working directory, instead of becoming a VM. The shim then ends.
    Save,
    /// It comes from another VMM, and stands still: how a running guest is saved. Only a shim itself wants
    /// that, beside the VM that it runs.
    Receive,
    /// It goes on from where one was saved, and becomes this VM. The disks are as they were then.
    Restore {
        /// The directory with [`MEMORY_FILE`] and [`DEVICES_FILE`].
        saved: String,
        /// Who it was then.
        #[serde(default)]
        was: Was,
    },
}

/// Who a guest was when it was saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Was {
    /// Nobody yet: it is a template's.
    #[default]
    Nobody,
    /// Another VM, whose identity it must lose.
    Another,
    /// This VM, which goes back to where it was: what it shared with others meanwhile is void.
    Itself,
}

impl Was {
    /// It was somebody: it has connections, and random numbers that were used.
    #[must_use]
    pub fn is_somebody(self) -> bool {
        self != Self::Nobody
    }
}

fn default_log_bytes() -> u64 {
    DEFAULT_LOG_BYTES
}

impl LaunchSpec {
    /// What the VM gets of what may be changed while it runs.
    #[must_use]
    pub fn resources(&self) -> Resources {
        let Self { cpus, memory_mib, disk_bytes, work_disk_bytes, .. } = *self;
        Resources { cpus, memory_mib, disk_bytes, work_disk_bytes }
    }
}

/// Numeric ids of the user that a VMM started by root becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailUser {
    /// User id on the host.
    pub uid: u32,
    /// Group id on the host.
    pub gid: u32,
}

/// An engine, found and examined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineSpec {
    /// `qemu`.
    pub name: String,
    /// Its version: `7.2.22`.
    pub version: String,
    /// The program.
    pub binary: String,
    /// Changes when the program is replaced, also by one of the same version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// Its dynamic loader and every library it loads.
    pub libraries: Vec<String>,
    /// Directories it reads: firmware.
    pub data_dirs: Vec<String>,
    /// How it executes the guest.
    pub accelerator: Accelerator,
    /// The host's TSC rate, needed under [`Accelerator::Tcg`] (see `docs/boot.md`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsc_khz: Option<u64>,
}

impl EngineSpec {
    /// The engine as it is shown.
    #[must_use]
    pub fn in_use(&self) -> EngineInUse {
        let (name, version) = (self.name.clone(), self.version.clone());
        EngineInUse { name, version, accelerator: self.accelerator }
    }
}

/// A line on the pipe between a shim that starts and the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum LaunchEvent {
    /// A step began.
    Progress(Progress),
    /// Where time went: if the launch asks for that. After `ready` nothing else comes.
    Mark(Mark),
    /// The guest is configured; the shim serves.
    Ready {
        /// What `status.json` says.
        status: VmStatus,
    },
    /// The guest is saved; nothing runs any more. The end of a [`Begin::Save`].
    Saved,
    /// The guest stands still and waits to become a VM ([`LaunchSpec::waits`]).
    Waits {
        /// Memory that its processes share with nobody.
        private_bytes: u64,
    },
    /// The VM will not come up.
    Failed {
        /// Why.
        problem: Problem,
    },
}

/// Answer of `GET /v1/hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimHello {
    /// Protocol versions the shim speaks.
    pub protocol: ProtocolRange,
    /// The shim's release.
    pub version: String,
    /// The VM it runs.
    pub vm_id: String,
}

/// Body of `POST /v1/capture`: saves the running guest and its disks, and lets it go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// An empty directory on the host, for [`MEMORY_FILE`], [`DEVICES_FILE`], [`COW_FILE`] and, where the VM
    /// has one, [`WORK_FILE`].
    pub dir: String,
}

/// Answer of `POST /v1/capture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// How long the guest stood still.
    pub paused_ms: u64,
    /// How long all of it took.
    pub took_ms: u64,
}

/// Query of `GET /v1/exec`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecQuery {
    /// The client owns the VM: when this stream ends, the VM ends (see [`OwnerPolicy`]).
    #[serde(default)]
    pub owner: bool,
}
