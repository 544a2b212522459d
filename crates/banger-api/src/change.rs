//! Changing what a VM is after it was made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::vm::{RestartPolicy, Vm, VmSpec};

/// Body of `PATCH /v1/vms/{vm}`: what shall be different; what is left out stays. Answers 200 with
/// [`VmChanged`] once all of it is written down, or changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetVm {
    /// Virtual CPUs, from the next start on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Guest memory, from the next start on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Size of the root disk, from the next start on. It can only grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Size of the work disk, from the next start on: it is added or grows. 0 removes it, with
    /// everything on it, at once; the VM must not run then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_disk_bytes: Option<u64>,
    /// Name or digest of a local image: `/` is replaced, at once, by a fresh root disk of that image,
    /// the VM's own too. All that is on the old one is lost; the VM must not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Labels to set, or, where the value is null, to remove.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    /// Whether it is started again when it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// How long from now the VM is stopped and removed; 0 is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

/// Answer of `PATCH /v1/vms/{vm}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmChanged {
    /// The VM as it is now.
    pub vm: Vm,
    /// What is different. Empty if everything was so already.
    pub changes: Vec<Change>,
}

/// One setting that is different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Change {
    /// Which: `image`, `cpus`, `memory`, `disk`, `work-disk`, `label KEY`, `restart`, `ttl`.
    pub setting: String,
    /// What it was, for people: `2`, `8 GiB`; None is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it is to be, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// When.
    pub applies: Applies,
}

/// When a change has its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Applies {
    /// It has it already.
    Now,
    /// When the VM starts the next time.
    NextStart,
}

/// What a running VM has of what can be changed under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Resources {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory_mib: u32,
    /// Size of the root disk.
    pub disk_bytes: u64,
    /// Size of the work disk, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_disk_bytes: Option<u64>,
}

impl Resources {
    /// Those of a VM with this specification, and with a root disk of this size.
    #[must_use]
    pub fn of(spec: &VmSpec, disk_bytes: u64) -> Self {
        let VmSpec { cpus, memory_mib, work_disk_bytes, .. } = *spec;
        Self { cpus, memory_mib, disk_bytes, work_disk_bytes }
    }
}
