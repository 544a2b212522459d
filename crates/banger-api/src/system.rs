//! The system as a whole: disk use, reset, and the doctor's report.

use serde::{Deserialize, Serialize};

/// Answer of `GET /v1/system/df`: host disk that banger uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskUse {
    /// By kind.
    pub rows: Vec<DiskUseRow>,
    /// Free space where the state directory is.
    pub free_bytes: u64,
}

/// Host disk used by one kind of thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskUseRow {
    /// `vms`, `images`, `kernels` or `cache`.
    pub kind: String,
    /// How many there are.
    pub count: u64,
    /// How many of them are in use.
    pub in_use: u64,
    /// Host disk they take.
    pub bytes: u64,
    /// Host disk that removing the unused ones would free.
    pub reclaimable_bytes: u64,
}

/// Body of `POST /v1/system/reset`. Answers [`ResetPlan`] for a dry run, else an operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResetRequest {
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a reset removes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResetPlan {
    /// Names of all VMs, running ones included.
    pub vms: Vec<String>,
    /// Names of all images.
    pub images: Vec<String>,
    /// Names of all kernels.
    pub kernels: Vec<String>,
    /// What `doctor --fix` has set aside: disks of VMs that are in no database.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set_aside: Vec<String>,
    /// Host disk that would be freed.
    pub bytes: u64,
}

/// What `banger doctor` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorReport {
    /// The checks, in the order in which a VM needs them.
    pub checks: Vec<DoctorCheck>,
}

impl DoctorReport {
    /// The worst verdict of all.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Pass)
    }
}

/// One check of the doctor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorCheck {
    /// Stable name: `kvm`, `user-namespaces`, `pasta`.
    pub name: String,
    /// How it went.
    pub verdict: Verdict,
    /// What was found, one line.
    pub reason: String,
    /// The command that mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// What is left over from crashes, for the check of that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<Leftover>,
}

/// Something that a crash, a stranger or an older release left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// `process`, `directory`, `interrupted`, `temporary`, `socket` or `set-aside`.
    pub kind: String,
    /// Where it is; for a process, the lock that it holds.
    pub path: String,
    /// The process's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Why it is ours and of no use, one line.
    pub why: String,
    /// What becomes of it.
    pub remedy: Remedy,
    /// What came of that, if it was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
}

/// What becomes of a leftover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// The process is ended.
    End,
    /// It is removed.
    Remove,
    /// It is moved to `set-aside`, because it may hold somebody's data.
    SetAside,
    /// A daemon that starts removes it.
    RestartDaemon,
    /// It stays.
    Keep,
}

/// Answer of `GET /v1/system/vm-ids`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmIds {
    /// Ids of all VMs in the database, those being removed included.
    pub ids: Vec<String>,
}

/// How a check went, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Good.
    Pass,
    /// VMs work, something is less than it could be.
    Warn,
    /// VMs will not work.
    Fail,
}
