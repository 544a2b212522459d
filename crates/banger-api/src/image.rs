//! Images: immutable root filesystems.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::vm::InitMode;

/// A local image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Image {
    /// The name people use: `debian-bookworm`, `alpine:3.20`, `localhost:5000/team/app:1`.
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
    /// What it was made of, if it came from a registry or an OCI archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciOrigin>,
    /// The kernel that goes with it; None takes the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// How it wants to be run as a system.
    #[serde(default)]
    pub init: InitMode,
    /// Whether a newer version has taken its name: it is here for the VMs that use it.
    #[serde(default)]
    pub superseded: bool,
}

/// The OCI image that an image was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OciOrigin {
    /// The whole reference it was pulled by: `docker.io/library/alpine:3.20`. None if it came from
    /// an archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Digest of what the tag named: an index or a manifest.
    pub digest: String,
    /// Digest of the manifest for this machine.
    pub manifest_digest: String,
    /// Digest of its configuration.
    pub config_digest: String,
    /// Its layers, the lowest first.
    pub layers: Vec<ImageLayer>,
}

/// A layer of an OCI image, as it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageLayer {
    /// `sha256:<64 hex>` of the compressed bytes.
    pub digest: String,
    /// How many they are.
    pub bytes: u64,
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
    /// `EXPOSE`: `8080/tcp`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// `STOPSIGNAL`: `SIGQUIT` or a number. None is SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// `LABEL`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
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
    /// How it wants to be run as a system.
    #[serde(default)]
    pub init: InitMode,
    /// Roughly how much host disk it takes.
    pub size_hint_bytes: u64,
    /// Whether it is already here.
    pub local: bool,
    /// Whether the user's own catalog has it.
    #[serde(default)]
    pub user_defined: bool,
}

/// Body of `POST /v1/images/pull` and `POST /v1/kernels/pull`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PullRequest {
    /// A name of the catalog or, for images, an OCI reference.
    pub name: String,
    /// Look for a newer version even if one is here.
    #[serde(default)]
    pub refresh: bool,
    /// How to talk to registries.
    #[serde(default)]
    pub registry: RegistryAccess,
    /// A public key, PEM: only an image with a signature of it is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_key: Option<String>,
}

/// Where the caller keeps what registries want to know of it. The daemon reads these files when it
/// needs them; paths are absolute.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegistryAccess {
    /// `--registry-config`: settings per registry (TOML), or an auth file (JSON).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// `DOCKER_CONFIG`: the directory of Docker's `config.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_config: Option<String>,
    /// `REGISTRY_AUTH_FILE`: the auth file of podman, skopeo and buildah.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_file: Option<String>,
    /// `PATH` of the caller, where credential helpers are looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// When an image is fetched for a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// If it is not here.
    #[default]
    Missing,
    /// If its source has a newer one than is here.
    Always,
    /// Never: it is here, or the request fails.
    Never,
}

/// Body of `POST /v1/images/register`: make an image of local files. Answers 202 with an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegisterImage {
    /// The new image's name; None takes what an archive says, else the file's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What to make it of.
    pub source: RegisterSource,
    /// Where that came from, for people; None says where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The kernel that goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// How it wants to be run as a system.
    #[serde(default)]
    pub init: InitMode,
}

/// Local files to make an image of: an ext4 file system, a directory or tar of a root filesystem, an
/// OCI layout (directory or tar), or what `docker save` wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum RegisterSource {
    /// A file or directory of the host.
    Path {
        /// Absolute.
        path: String,
    },
    /// What was sent before by `POST /v1/images/uploads`.
    Upload {
        /// Which.
        id: String,
    },
}

/// Answer of `POST /v1/images/uploads`, whose body is the file itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Upload {
    /// To be used in [`RegisterSource::Upload`], once, within ten minutes.
    pub id: String,
    /// How many bytes came.
    pub bytes: u64,
}

/// Body of `POST /v1/images/promote`: the disk of a stopped VM becomes an image. Answers 202 with an
/// operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PromoteVm {
    /// Name or id of the VM.
    pub vm: String,
    /// The new image's name.
    pub name: String,
}

/// Body of `POST /v1/images/push`. Answers 202 with an operation whose result is [`Pushed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PushImage {
    /// Name or digest of a local image.
    pub name: String,
    /// Where to: an OCI reference.
    pub reference: String,
    /// How to talk to registries.
    #[serde(default)]
    pub registry: RegistryAccess,
}

/// An image that is now in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pushed {
    /// The whole reference.
    pub reference: String,
    /// Digest of its manifest there.
    pub digest: String,
}

/// Body of `POST /v1/images/prune`, which answers with what went, or would go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PruneImages {
    /// Every image that no VM uses, not only those that have lost their name to a newer version.
    #[serde(default)]
    pub all: bool,
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer of `POST /v1/images/prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PrunedImages {
    /// The images.
    pub images: Vec<PrunedImage>,
    /// How many stored layers, and parts of them, no image needs any more.
    pub layers: u64,
    /// Host disk that all of it takes.
    pub bytes: u64,
}

/// An image that went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PrunedImage {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub digest: String,
}
