//! Images: immutable root filesystems.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A local image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Image {
    /// The name people use: `debian-bookworm`.
    pub name: String,
    /// Identity, `sha256:<64 hex>`: of what it was made of, its builder's version and its disk.
    pub digest: String,
    /// sha256, in hex, of `root.ext4`: of its blocks that are not all zeros, their numbers and its size.
    pub disk_sha256: String,
    /// Size of the disk as the guest sees it.
    pub disk_bytes: u64,
    /// Host disk that the sparse file really takes.
    pub allocated_bytes: u64,
    /// Where it came from, for people: `Debian archive, bookworm`.
    pub source: String,
    /// When it was built.
    pub created_at_ms: u64,
    /// How its programs expect to be run.
    #[serde(default)]
    pub config: ImageConfig,
}

/// The part of an OCI image configuration that banger honours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageConfig {
    /// `USER`: name, uid, or `user:group`. None is root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `ENV`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// `WORKDIR`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// `ENTRYPOINT`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// `CMD`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
}

/// An entry of the image catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CatalogImage {
    /// The name to use with `banger run`.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Where it would come from.
    pub source: String,
    /// The kernel that goes with it.
    pub kernel: String,
    /// Roughly how much host disk it takes.
    pub size_hint_bytes: u64,
    /// Whether it is already here.
    pub local: bool,
}

/// Body of `POST /v1/images/pull` and `POST /v1/kernels/pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PullRequest {
    /// The catalog name.
    pub name: String,
    /// Make a new version even if one is here.
    #[serde(default)]
    pub refresh: bool,
}
