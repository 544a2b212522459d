//! Templates: guests that were saved right after their boot, before they were any VM, so that VMs go on
//! from there instead of booting.
//!
//! | route | body or query | answer |
//! |---|---|---|
//! | `GET /v1/templates` | | [`Template`]s |
//! | `POST /v1/templates` | [`MakeTemplate`] | 202, an operation whose result is the template |
//! | `GET /v1/templates/{id}` | | [`Template`] |
//! | `DELETE /v1/templates/{id}` | | 204 |
//! | `POST /v1/templates/prune` | [`PruneTemplates`] | [`PrunedTemplates`] |

use serde::{Deserialize, Serialize};

use crate::vm::{EngineInUse, InitMode, VmSpec};

/// A template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Template {
    /// Its identity: the beginning of the digest of all that it was made of.
    pub id: String,
    /// Name of the image when it was made.
    pub image: String,
    /// Identity of the image.
    pub image_digest: String,
    /// Identity of the kernel.
    pub kernel_digest: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory_mib: u32,
    /// Size of the root disk as the guest sees it.
    pub disk_bytes: u64,
    /// What is the guest's first process.
    pub init: InitMode,
    /// Which engine it was made by, and is for.
    pub engine: EngineInUse,
    /// The host's processor that it was made on, and is for.
    pub cpu: String,
    /// When it was made.
    pub created_at_ms: u64,
    /// When a VM last began from it.
    pub used_at_ms: u64,
    /// Host disk that it takes.
    pub allocated_bytes: u64,
    /// How many guests that went on from it stand ready to become VMs.
    #[serde(default)]
    pub ready: u32,
}

/// Body of `POST /v1/templates`: make the template that VMs of this specification go on from, unless it
/// is there. Image and kernel are fetched first if they are not local.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MakeTemplate {
    /// What the VMs will be. Only what a guest sees before it is a VM matters: image, kernel, engine,
    /// CPUs, memory, size of the root disk, and init.
    pub spec: VmSpec,
}

/// Body of `POST /v1/templates/prune`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PruneTemplates {
    /// Also those that VMs of local images could still begin from.
    #[serde(default)]
    pub all: bool,
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer of `POST /v1/templates/prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PrunedTemplates {
    /// Which went, or would go.
    pub templates: Vec<Template>,
}
