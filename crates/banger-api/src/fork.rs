//! Forks: running copies of a running VM.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::vm::Vm;

/// The most copies that one request makes.
pub const MAX_COPIES: u32 = 64;

/// Body of `POST /v1/vms/{vm}/fork`: make running copies of a running VM. Answers 202 with an operation
/// whose result is [`Forked`]. All copies come up, or none stays.
///
/// A copy has the memory and the disks of the VM at one moment and is a VM of its own from there on: name,
/// id, machine-id, host keys, addresses of the network and random numbers are new, connections are reset,
/// and commands that were running have ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ForkVm {
    /// How many, up to [`MAX_COPIES`].
    pub count: u32,
    /// The copy's name; of several, the beginning of their names, which end in `-1`, `-2`, …. None
    /// generates them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The copies' commands get the environment that the VM was made with. It may hold secrets, so else
    /// they do not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_env: bool,
    /// As for a start, [`crate::vm::StartVm`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub session_env: BTreeMap<String, String>,
}

/// Copies of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Forked {
    /// The copies, which run.
    pub vms: Vec<Vm>,
    /// How long the VM stood still.
    pub paused_ms: u64,
    /// How long it took to save it; it ran for the rest of that time.
    pub capture_ms: u64,
}
