//! VMs: what one is made of, what it is now, and what can be asked of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::change::{Change, Resources};
pub use crate::end::{EndCause, VmEnd};
use crate::image::{PullPolicy, RegistryAccess};

/// The states of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Exists, never started.
    Created,
    /// A shim is at work, the guest does not answer yet.
    Starting,
    /// The guest is configured and answers.
    Running,
    /// The virtual CPUs stand still.
    Paused,
    /// Going down.
    Stopping,
    /// Was running, ended as somebody wanted.
    Stopped,
    /// Ended as nobody wanted, or never came up; the reason says why.
    Failed,
}

impl VmState {
    /// The state in one lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Whether a shim is, or may be, alive in this state.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Stopping)
    }
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why the virtual CPUs of a VM stand still. There may be several reasons at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PauseReason {
    /// Somebody paused it. It goes on when somebody has it resumed.
    Requested,
    /// The host's disk is full. It goes on by itself when there is space again.
    HostDiskFull,
}

impl PauseReason {
    /// The reason in one lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::HostDiskFull => "host-disk-full",
        }
    }
}

/// What a VM is: everything that stays the same from start to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmSpec {
    /// Catalog or local name of the image.
    pub image: String,
    /// Catalog or local name of the kernel; None takes the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Which engine to use.
    #[serde(default)]
    pub engine: EngineChoice,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory_mib: u32,
    /// Size of the root disk as the guest sees it. None takes the default, or the image's size if
    /// that is larger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Environment of every command in the VM.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Default user of commands; None takes the image's, else root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Default working directory of commands; None takes the image's, else the user's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// What is the guest's first process; None takes the image's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitMode>,
    /// What commands of `run` are arguments of. None takes the image's `ENTRYPOINT`; a created VM
    /// always says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// What `run` runs if it is given no command: the image's `CMD`, unless the entrypoint was
    /// replaced. Set by the daemon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub default_command: Vec<String>,
    /// Signal that asks the main process to end, by name or number; None takes the image's
    /// `STOPSIGNAL`, else SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// The main process of a detached VM: started with it, shown by `logs`; when it ends, the VM
    /// stops. Empty: the VM runs until it is stopped. In a request it is the command alone; a
    /// created VM has the whole, entrypoint included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Limit of the main process; None is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Remove the VM when it ends, and do not make its disk writes durable.
    #[serde(default)]
    pub remove_on_exit: bool,
    /// Whether it is started again when it ends without having been told to.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How long after its creation the VM is stopped and removed; None is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// Size of the work disk, which is mounted at the user's home; None is no work disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_disk_bytes: Option<u64>,
    /// Whether the guest reaches the host's own addresses.
    #[serde(default)]
    pub network: NetworkPolicy,
    /// Labels, for filters and scripts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Whether a VM is started again that ended by itself. One that somebody stopped or killed stays so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// If its main process failed, or it ended as nobody wanted: a panic, a crash, a power cut.
    OnFailure,
    /// However it ended.
    Always,
}

impl RestartPolicy {
    /// The policy in one lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure => "on-failure",
            Self::Always => "always",
        }
    }
}

/// What is the first process in the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum InitMode {
    /// Banger's agent: any image boots.
    #[default]
    Agent,
    /// The image's own `/sbin/init`, with the agent beside it.
    System,
}

impl InitMode {
    /// The mode in one lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::System => "system",
        }
    }
}

/// Which engine runs a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// The best one that works on this host.
    #[default]
    Auto,
    /// QEMU's microvm machine.
    Qemu,
}

/// What the guest's network may reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NetworkPolicy {
    /// What the host reaches, except the host itself and link-local addresses.
    #[default]
    Default,
    /// The same, and the host's own addresses.
    HostAccess,
}

/// A VM as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Vm {
    /// Identity: 12 lower-case hex digits.
    pub id: String,
    /// Name; also the guest's hostname.
    pub name: String,
    /// What it is.
    pub spec: VmSpec,
    /// Identity of its image.
    pub image_digest: String,
    /// Identity of its kernel.
    pub kernel_digest: String,
    /// Size of the root disk as the guest sees it.
    pub disk_bytes: u64,
    /// When it was created.
    pub created_at_ms: u64,
    /// When it will be stopped and removed, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// What it is doing now.
    pub status: VmStatus,
    /// What is set and not yet so, because the VM runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Change>,
    /// The directory that holds its files, and, while it runs, `run/shim.sock`.
    pub dir: String,
}

/// What a VM is doing now, or how it last ended. The shim writes it as `status.json`; the daemon
/// corrects it by what it observes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmStatus {
    /// The state.
    pub state: VmState,
    /// Since when.
    pub since_ms: u64,
    /// Why it stands still, for paused VMs. None of a supervisor of an older release, which knows no
    /// reason but a full disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paused: Vec<PauseReason>,
    /// How it last ended, for ended VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<VmEnd>,
    /// Which engine and accelerator run or ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineInUse>,
    /// From the shim's start to a configured guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_ms: Option<u64>,
    /// How its guest began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// What it was started with, which may since have been set to something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Things a person should know, one line each: `root.cow was marked invalid; repaired`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// How often in a row its restart policy has started it, the start that is due next included.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// When its restart policy starts an ended VM again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start_ms: Option<u64>,
}

/// How the guest of a VM began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Its kernel booted.
    Boot,
    /// It went on from a template.
    Template,
    /// It went on from where another VM was.
    Fork,
    /// It went back to where it was.
    Snapshot,
    /// It stood ready: it went on from a template before anybody asked for it.
    Pool,
}

impl Origin {
    /// The origin in one lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Template => "template",
            Self::Fork => "fork",
            Self::Snapshot => "snapshot",
            Self::Pool => "pool",
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The engine that runs a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EngineInUse {
    /// Its name: `qemu`.
    pub name: String,
    /// Its version: `7.2.22`.
    pub version: String,
    /// `kvm` or `tcg`.
    pub accelerator: Accelerator,
}

/// How guest instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

impl Accelerator {
    /// The accelerator in one lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Body of `POST /v1/vms`: make a VM, and start it if asked.
///
/// Answers 202 with an operation whose result is the VM. The image and the kernel are fetched
/// first if they are not local. A VM that this request created is removed again when the request
/// fails or is cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateVm {
    /// The name; None generates one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What to make.
    pub spec: VmSpec,
    /// Start it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartVm>,
    /// Run what a detached `run` runs as the VM's main process: the entrypoint with the
    /// specification's command, or with the image's.
    #[serde(default)]
    pub main: bool,
    /// When to fetch the image.
    #[serde(default)]
    pub pull: PullPolicy,
    /// How to talk to registries.
    #[serde(default)]
    pub registry: RegistryAccess,
}

/// Body of `POST /v1/vms/{vm}/start`. Answers 202 with an operation; `already running` succeeds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StartVm {
    /// The VM belongs to a foreground client: it ends when that client's exec stream ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerPolicy>,
    /// Boot, also if there is a template to go on from, and make none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
    /// Tell where the time goes, with [`crate::trace::Mark`]s among the operation's events.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trace: bool,
    /// Proxy variables (`http_proxy`, `https_proxy`, `no_proxy`, …) and other session environment
    /// of the caller that every command in the VM gets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub session_env: BTreeMap<String, String>,
}

/// What happens to a VM when the client that owns it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OwnerPolicy {
    /// Kill at once (`run --rm`: there is nothing to save).
    Kill,
    /// Stop cleanly (`run`: the disk is kept).
    Stop,
}

/// Body of `POST /v1/vms/{vm}/stop` and `/restart`. Answers 202 with an operation; `already
/// stopped` succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StopVm {
    /// How long the guest may take before it is killed.
    pub grace_ms: u64,
}

impl Default for StopVm {
    fn default() -> Self {
        Self { grace_ms: 10_000 }
    }
}

/// Query of `GET /v1/vms`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListVms {
    /// `key=value` pairs that all must hold: `state=running`, `label=k` or `label=k=v`, `name=…`,
    /// `image=…`; separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

/// Query of `DELETE /v1/vms/{vm}`. Answers 202 with an operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveVm {
    /// Kill it first if it runs.
    #[serde(default)]
    pub force: bool,
}

/// Query of `GET /v1/vms/{vm}/logs` (daemon) and `GET /v1/logs` (shim). The body is plain text,
/// control characters other than tab and newline removed from the console's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuery {
    /// Which log.
    #[serde(default)]
    pub source: LogSource,
    /// Go on as lines are added, until the VM ends.
    #[serde(default)]
    pub follow: bool,
    /// Only that many last lines; None is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
}

/// The logs of a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// What the main process wrote.
    #[default]
    Main,
    /// The guest's console.
    Console,
}

/// Body of `POST /v1/vms/prune`, which answers with what went, or would go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PruneVms {
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer of `POST /v1/vms/prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pruned {
    /// Names of the ended VMs.
    pub vms: Vec<String>,
    /// Host disk that their own files take.
    pub bytes: u64,
}
