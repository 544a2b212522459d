//! Kernels: a bootable kernel, the modules its boot needs, and the rest of its modules.

use serde::{Deserialize, Serialize};

/// A local kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Kernel {
    /// The name people use: `debian-cloud`.
    pub name: String,
    /// Identity, `sha256:<64 hex>`: the source package's digest together with the extractor's version.
    pub digest: String,
    /// What `uname -r` says: `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// Host disk it takes.
    pub allocated_bytes: u64,
    /// Where it came from, for people: `linux-image-6.1.0-56-cloud-amd64 6.1.192-2 (Debian)`.
    pub source: String,
    /// When it was extracted.
    pub created_at_ms: u64,
    /// Modules that the agent loads at boot, in load order, by name.
    pub boot_modules: Vec<String>,
}

/// An entry of the kernel catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CatalogKernel {
    /// The name to use with `--kernel`.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Where it would come from.
    pub source: String,
    /// Roughly how much host disk it takes.
    #[serde(default)]
    pub size_hint_bytes: u64,
    /// Whether it is already here.
    pub local: bool,
}

/// Body of `POST /v1/kernels/import`: make a kernel of local files. Answers 202 with an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImportKernel {
    /// The new kernel's name.
    pub name: String,
    /// A bzImage, a vmlinux (ELF), or a Debian package with a kernel in it. Absolute, as all paths
    /// here.
    pub kernel: String,
    /// Directory of its modules, `…/lib/modules/<release>`, or one that has exactly one such below
    /// it. Everything that a guest needs is built in if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<String>,
    /// Its build configuration, where the kernel does not carry it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
}
