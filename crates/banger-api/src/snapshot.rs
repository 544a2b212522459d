//! Snapshots: what a VM was at one moment, to which it can go back.
//!
//! That of a running VM has its memory and its disks, which belong together; that of a VM that does not
//! run has its disks. A snapshot belongs to its VM and goes with it.
//!
//! | route | body or query | answer |
//! |---|---|---|
//! | `GET /v1/snapshots` | [`ListSnapshots`] | [`Snapshot`]s |
//! | `POST /v1/vms/{vm}/snapshots` | [`CreateSnapshot`] | 202, an operation whose result is the snapshot |
//! | `GET /v1/vms/{vm}/snapshots/{name}` | | [`Snapshot`] |
//! | `DELETE /v1/vms/{vm}/snapshots/{name}` | | 204 |
//! | `POST /v1/vms/{vm}/snapshots/{name}/restore` | [`RestoreSnapshot`] | 202, an operation whose result is [`Restored`] |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::vm::{EngineInUse, Vm};

/// A snapshot of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// Its name, unique among the snapshots of the VM.
    pub name: String,
    /// Name of the VM.
    pub vm: String,
    /// Identity of the VM.
    pub vm_id: String,
    /// When it was made.
    pub created_at_ms: u64,
    /// It was made by itself, before the VM went back to another one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
    /// What there is of a guest that ran; None if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<SavedMemory>,
    /// Name of the image that the root disk begins with.
    pub image: String,
    /// Identity of that image.
    pub image_digest: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory_mib: u32,
    /// Size of the root disk as the guest sees it.
    pub disk_bytes: u64,
    /// Size of the work disk, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_disk_bytes: Option<u64>,
    /// Host disk that it takes.
    pub allocated_bytes: u64,
}

/// A guest that ran when it was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SavedMemory {
    /// Which engine ran it, and can have it go on.
    pub engine: EngineInUse,
    /// The host's processor that it ran on, and can go on by.
    pub cpu: String,
    /// Digest of all that it saw of its machine, and must see when it goes on.
    pub machine: String,
    /// How long the guest stood still for it.
    pub paused_ms: u64,
}

/// Query of `GET /v1/snapshots`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSnapshots {
    /// Only those of this VM: name, id, or unique beginning of an id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
}

/// Body of `POST /v1/vms/{vm}/snapshots`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateSnapshot {
    /// Its name. None makes one: `snapshot-1`, `snapshot-2`, ….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Body of `POST /v1/vms/{vm}/snapshots/{name}/restore`: the VM ends, and is what it was. One whose
/// snapshot has its memory goes on from there, with its clock set and its connections reset; one whose
/// snapshot has not does not run. What it was before is kept as an automatic snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RestoreSnapshot {
    /// As for a start, [`crate::vm::StartVm`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub session_env: BTreeMap<String, String>,
}

/// A VM that went back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Restored {
    /// The VM, as it is now.
    pub vm: Vm,
    /// Name of the snapshot of what it was before.
    pub undo: String,
}
