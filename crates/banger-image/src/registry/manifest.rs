//! Manifests: what an image consists of. Everything here came from a stranger, and is bounded and
//! checked before anybody acts on it. Nothing here performs input or output.

use std::collections::BTreeMap;

use banger_core::reference::Digest;
use serde::{Deserialize, Serialize};

/// Largest manifest or index, in bytes; the limit of the specification.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Largest configuration, in bytes.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// Most layers. Docker stops at 127.
pub(crate) const MAX_LAYERS: usize = 512;
/// Most bytes of all layers of an image together, as they are stored.
pub(crate) const MAX_BYTES: u64 = 256 << 30;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What we say that we understand.
pub(super) const ACCEPT: [&str; 4] = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST];

/// Layers that a registry need not have.
const FOREIGN: [&str; 2] = ["nondistributable", "rootfs.foreign"];
const LAYERS: [&str; 10] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// What a blob is, and how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    /// Its format.
    pub(crate) media_type: String,
    /// Its digest.
    pub(crate) digest: Digest,
    /// Its length, in bytes.
    pub(crate) size: u64,
    /// What somebody noted about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// What an image for one platform consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    /// 2.
    pub(crate) schema_version: u32,
    /// Its own format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    /// How the image is run.
    pub(crate) config: Descriptor,
    /// Its layers, the lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

/// What machine an image is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

/// An image for one of several platforms. Only what is chosen has to be right.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IndexEntry {
    media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

/// What a tag can stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    /// One image.
    Manifest(Manifest),
    /// Images for several platforms.
    Index(Vec<IndexEntry>),
}

/// The fields by which the formats are told apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<Vec<IndexEntry>>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

/// What a configuration has to do with the manifest.
#[derive(Debug, Default, Deserialize)]
struct ConfigShape {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

impl Platform {
    /// This machine: banger runs on nothing else.
    pub(crate) fn of_this_machine() -> Self {
        Self { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None }
    }

    fn runs_on(&self, machine: &Self) -> bool {
        self.os == machine.os && self.architecture == machine.architecture
    }

    /// `linux/arm64/v8`.
    pub(crate) fn name(&self) -> String {
        let variant = self.variant.as_ref().filter(|variant| !variant.is_empty());
        let parts = [Some(&self.os), Some(&self.architecture), variant];
        let parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        parts.join("/")
    }
}

impl Document {
    /// Read a manifest or an index. `content_type` is what the registry called it.
    pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, String> {
        let shape: Shape = serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?;
        let said = content_type.map(|kind| kind.split(';').next().unwrap_or(kind).trim());
        if shape.schema_version == Some(1)
            || said.is_some_and(|kind| kind.contains("docker.distribution.manifest.v1"))
        {
            return Err("it is in Docker's format of 2014 (schema 1); push it again with a \
                        present tool"
                .to_owned());
        }
        if shape.schema_version != Some(2) {
            return Err("it is neither an OCI nor a Docker manifest".to_owned());
        }
        match (shape.manifests, shape.layers.is_some() || shape.config.is_some()) {
            // To some readers it would be the one, to others the other.
            (Some(_), true) => Err("it is a manifest and an index at once".to_owned()),
            (Some(entries), false) => {
                check_type(&[shape.media_type.as_deref(), said], &[OCI_INDEX, DOCKER_INDEX])?;
                Ok(Self::Index(entries))
            }
            (None, _) => {
                check_type(&[shape.media_type.as_deref(), said], &[OCI_MANIFEST, DOCKER_MANIFEST])?;
                let manifest = serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?;
                Ok(Self::Manifest(manifest))
            }
        }
    }
}

/// A type that is not said is that of the contents; so is one that says nothing.
fn check_type(said: &[Option<&str>], fitting: &[&str]) -> Result<(), String> {
    let telling = said.iter().flatten().filter(|kind| kind.starts_with("application/vnd."));
    match telling.into_iter().find(|kind| !fitting.contains(kind)) {
        Some(kind) => Err(format!("its type is {}", super::error::printable(kind))),
        None => Ok(()),
    }
}

fn unreadable(error: &serde_json::Error) -> String {
    super::error::printable(&error.to_string())
}

/// The image of an index for this machine, or the names of the platforms that there are.
///
/// Of several variants the one that asks least of the processor is taken: `v2` and up need
/// instructions that an emulated machine may lack.
pub(crate) fn choose<'a>(
    entries: &'a [IndexEntry],
    machine: &Platform,
) -> Result<&'a IndexEntry, Vec<String>> {
    let is_image =
        |entry: &&IndexEntry| [OCI_MANIFEST, DOCKER_MANIFEST].contains(&entry.media_type.as_str());
    let images: Vec<&IndexEntry> = entries.iter().filter(is_image).collect();
    let demand = |entry: &&&IndexEntry| entry.platform.as_ref().and_then(|p| p.variant.clone());
    let fits = |entry: &&&IndexEntry| entry.platform.as_ref().is_some_and(|p| p.runs_on(machine));
    if let Some(chosen) = images.iter().filter(fits).min_by_key(demand) {
        return Ok(chosen);
    }
    // Its configuration will tell.
    if let [only] = images[..]
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let mut names: Vec<String> = images
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        // Signatures and the like are entries for no platform.
        .filter(|platform| platform.os != "unknown")
        .map(|platform| super::error::printable(&platform.name()))
        .collect();
    names.sort();
    names.dedup();
    names.truncate(40);
    Err(names)
}

impl Manifest {
    /// Whether it is an image that we can use, and no larger than we allow.
    pub(crate) fn check(&self) -> Result<(), String> {
        let kind = &self.config.media_type;
        if ![OCI_CONFIG, DOCKER_CONFIG].contains(&kind.as_str()) {
            let kind = super::error::printable(kind);
            return Err(format!("it is no container image, its configuration is of type {kind}"));
        }
        if self.config.size > MAX_CONFIG {
            return Err(format!("its configuration has {} bytes", self.config.size));
        }
        if self.layers.len() > MAX_LAYERS {
            let count = self.layers.len();
            return Err(format!("it has {count} layers, and {MAX_LAYERS} are allowed"));
        }
        if let Some(layer) = self.layers.iter().find(|l| !LAYERS.contains(&l.media_type.as_str())) {
            let kind = super::error::printable(&layer.media_type);
            return Err(format!("layer {} is of type {kind}", layer.digest));
        }
        let bytes = self.layers.iter().try_fold(0_u64, |sum, layer| sum.checked_add(layer.size));
        if bytes.is_none_or(|bytes| bytes > MAX_BYTES) {
            return Err(format!("its layers have more than {} GiB", MAX_BYTES >> 30));
        }
        Ok(())
    }
}

impl Descriptor {
    /// Whether it is a layer that its maker allows no registry to give away.
    pub(crate) fn is_foreign(&self) -> bool {
        FOREIGN.iter().any(|sign| self.media_type.contains(sign))
    }
}

/// Why a configuration does not go with its manifest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ConfigFault {
    /// It is for another machine.
    Platform(String),
    /// It is none, or of another manifest.
    Other(String),
}

/// The digests of the unpacked layers that a configuration lists, if it is for this machine.
pub(super) fn check_config(
    bytes: &[u8],
    manifest: &Manifest,
    machine: &Platform,
) -> Result<Vec<Digest>, ConfigFault> {
    let shape: ConfigShape = serde_json::from_slice(bytes).map_err(|error| {
        ConfigFault::Other(format!("its configuration: {}", unreadable(&error)))
    })?;
    let platform = shape.platform;
    let is_told = !platform.os.is_empty() || !platform.architecture.is_empty();
    if is_told && !platform.runs_on(machine) {
        return Err(ConfigFault::Platform(super::error::printable(&platform.name())));
    }
    let diff_ids = shape.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != manifest.layers.len() {
        return Err(ConfigFault::Other(format!(
            "it has {} layers, but its configuration lists {}",
            manifest.layers.len(),
            diff_ids.len()
        )));
    }
    Ok(diff_ids)
}

#[cfg(test)]
mod tests;
