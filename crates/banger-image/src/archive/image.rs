//! The image in an archive.

use banger_api::image::{ImageConfig, OciOrigin};
use banger_core::reference::{Digest, Reference};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Fault;
use super::members::Members;
use crate::error::PullError;
use crate::layer::{Layer, shown};
use crate::oci::image_config;
use crate::registry::manifest::{MAX_CONFIG, MAX_LAYERS, Platform};

/// Longest name that is suggested.
const MAX_NAME: usize = 255;

/// An image that lies in an archive.
#[derive(Debug)]
pub(crate) struct ArchivedImage {
    /// What the archive calls it.
    pub(crate) name: Option<String>,
    /// How it is run.
    pub(crate) config: ImageConfig,
    /// What it is: the digest of its manifest or, if it has none, of its configuration.
    pub(crate) digest: Digest,
    /// What it is in OCI's words, if it has a manifest.
    pub(crate) origin: Option<OciOrigin>,
    pub(super) layers: Vec<ArchivedLayer>,
    pub(super) members: Members,
}

/// A layer that lies in an archive.
#[derive(Debug)]
pub(super) struct ArchivedLayer {
    pub(super) member: String,
    pub(super) bytes: u64,
    /// Of what lies there, if the archive tells it.
    pub(super) digest: Option<Digest>,
    /// Of the tar in it.
    pub(super) diff_id: Digest,
}

impl ArchivedImage {
    /// How many bytes its layers have as they lie there.
    pub(crate) fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes).sum()
    }

    /// Its layers, the lowest first.
    pub(crate) fn layers(
        &self,
    ) -> impl ExactSizeIterator<Item = Result<Layer<'static>, PullError>> {
        let count = self.layers.len();
        self.layers.iter().enumerate().map(move |(index, layer)| {
            let name = format!("layer {} of {count} ({})", index + 1, layer.diff_id.short());
            let missing = || PullError::invalid(&name, "the archive does not have it");
            let opened = self.members.open(&layer.member);
            let (stream, _) =
                opened.map_err(|fault| fault.of(name.as_ref()))?.ok_or_else(missing)?;
            Ok(Layer {
                name,
                digest: layer.digest.as_ref().map(ToString::to_string),
                diff_id: Some(layer.diff_id.to_string()),
                stream: Box::new(stream),
            })
        })
    }
}

/// What a configuration says besides how the image is run.
pub(super) struct Config {
    pub(super) digest: Digest,
    pub(super) run: ImageConfig,
    /// Digests of the tars of its layers.
    pub(super) diff_ids: Vec<Digest>,
}

#[derive(Debug, Default, Deserialize)]
struct Document {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

impl Config {
    /// Read a configuration, which must be for this machine and of `layers` layers.
    pub(super) fn read(json: &[u8], layers: usize) -> Result<Self, Fault> {
        let document: Document = serde_json::from_slice(json).map_err(|error| {
            format!(
                "its configuration cannot be understood: {}",
                shown(error.to_string().as_bytes())
            )
        })?;
        let machine = Platform::of_this_machine();
        let Document { os, architecture, rootfs } = document;
        let is_told = !os.is_empty() || !architecture.is_empty();
        if is_told && (&os, &architecture) != (&machine.os, &machine.architecture) {
            let platform = shown(format!("{os}/{architecture}").as_bytes());
            return Err(format!("it is for {platform}, and this is {}", machine.name()).into());
        }
        let diff_ids = rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() != layers {
            let reason =
                format!("it has {layers} layers, but its configuration lists {}", diff_ids.len());
            return Err(reason.into());
        }
        if layers > MAX_LAYERS {
            return Err(format!("it has {layers} layers, and {MAX_LAYERS} are allowed").into());
        }
        Ok(Self { digest: digest_of(json), run: image_config(json)?, diff_ids })
    }

    /// Read the configuration that lies there.
    pub(super) fn open(members: &Members, member: &str, layers: usize) -> Result<Self, Fault> {
        let json = members.read(member, MAX_CONFIG)?;
        let missing = || format!("its configuration {} is not in it", shown(member.as_bytes()));
        Self::read(&json.ok_or_else(missing)?, layers)
    }
}

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::of_sum(Sha256::digest(bytes).into())
}

/// A name that an archive suggests, if an image can have it. A tag alone is none.
pub(super) fn suggested(name: &str) -> Option<String> {
    if name.len() > MAX_NAME || !name.contains([':', '/']) {
        return None;
    }
    let reference = Reference::parse(name).ok()?;
    reference.digest().is_none().then(|| reference.familiar())
}
