//! From a finished disk to an image of the library.

use banger_api::step;
use std::path::Path;

use banger_api::image::{Image, ImageConfig, OciOrigin};
use banger_api::vm::InitMode;
use banger_host::clock::now_ms;
use banger_host::command::Cancel;
use banger_host::files::allocated_bytes;
use sha2::{Digest, Sha256};

use super::Library;
use super::images::{DISK, Manifest, write_manifest};
use super::pull::LABEL;
use crate::error::{LibraryError, PullError};
use crate::layer::{Layer, Root};
use crate::rootfs::{DiskPlan, uuid_of};
use crate::stage::Reporter;
use banger_host::sparse::disk_digest;

/// Version of the way from a tree to a disk. A change makes other images out of the same trees.
const BUILDER_VERSION: u32 = 2;
/// Size of an image's disk as a guest sees it: the default, and least, root disk of a VM.
pub(super) const DISK_BYTES: u64 = 8 << 30;

/// What an image will be, but for what its disk says.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) config: ImageConfig,
    pub(super) oci: Option<OciOrigin>,
    pub(super) kernel: Option<String>,
    pub(super) init: InitMode,
    /// See [`recipe`].
    pub(super) made_of: String,
    pub(super) disk_bytes: u64,
}

/// What this builder makes an image of, 64 hex digits: the contents, and the way from there to a
/// disk. `kind` tells apart what contents are digests of.
pub(super) fn recipe(kind: &str, contents: &str, disk_bytes: u64) -> String {
    let text = format!("banger image builder {BUILDER_VERSION}\n{disk_bytes}\n{kind} {contents}\n");
    hex::encode(Sha256::digest(text))
}

/// The size of a disk for layers of so many compressed bytes in all: the usual one, or a larger one
/// where they would hardly fit.
pub(super) fn disk_bytes_for(compressed: u64) -> u64 {
    const GUESS: u64 = 6;
    DISK_BYTES.max(compressed.saturating_mul(GUESS).next_power_of_two())
}

impl Library {
    /// Make an image of layers, the lowest first.
    pub(super) fn assemble<'a>(
        &self,
        draft: Draft,
        layers: impl ExactSizeIterator<Item = Result<Layer<'a>, PullError>>,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        self.in_work_dir(|work| {
            let made = work.subdir("made")?;
            let (label, bytes, identity) = (LABEL, draft.disk_bytes, draft.made_of.as_str());
            let plan = DiskPlan { label, bytes, journal: true, identity };
            let mut root = Root::create(&made.join(DISK), &plan, cancel)?;
            let count = layers.len();
            for (number, layer) in (1..).zip(layers) {
                let layer = layer?;
                // Until then what is seen is how the layers come.
                if number == count {
                    reporter.stage(step::IMAGE_DISK, "building the disk")?;
                }
                root.apply(layer, cancel)?;
            }
            root.finish(cancel)?;
            self.publish_image(&made, draft)
        })
    }

    /// Make the disk in the directory `made` visible as an image, and give it its name.
    pub(super) fn publish_image(&self, made: &Path, draft: Draft) -> Result<Image, PullError> {
        let uuid = uuid_of(&draft.made_of);
        self.publish_image_with_uuid(made, draft, uuid)
    }

    /// Like [`Library::publish_image`] for a disk that has another UUID than what it was made of
    /// says.
    pub(super) fn publish_image_with_uuid(
        &self,
        made: &Path,
        draft: Draft,
        disk_uuid: String,
    ) -> Result<Image, PullError> {
        let manifest = describe(draft, &made.join(DISK), disk_uuid)?;
        write_manifest(made, &manifest)?;
        self.images.publish(made, &manifest.image.digest)?;
        self.images.set_name(&manifest.image.name, &manifest.image.digest)?;
        Ok(manifest.image)
    }
}

/// The manifest of a new image.
///
/// Its identity is the disk's as well as its contents'. A VM's own copy-on-write file is worthless,
/// or worse, over another layout: so a disk that was lost and made anew must not pass for the one
/// that was lost, even if it came out differently.
fn describe(draft: Draft, disk: &Path, disk_uuid: String) -> Result<Manifest, LibraryError> {
    let disk_sha256 = disk_digest(disk).map_err(LibraryError::io("read", disk))?;
    // The same files that are run otherwise are another image.
    let run =
        serde_json::to_string(&(&draft.config, &draft.kernel, draft.init)).expect("plain data");
    let identity = Sha256::digest(format!("{}\n{disk_sha256}\n{run}\n", draft.made_of));
    let image = Image {
        name: draft.name,
        digest: format!("sha256:{}", hex::encode(identity)),
        disk_sha256,
        disk_bytes: draft.disk_bytes,
        allocated_bytes: allocated_bytes(disk).map_err(LibraryError::io("measure", disk))?,
        source: draft.source,
        created_at_ms: now_ms(),
        config: draft.config,
        oci: draft.oci,
        kernel: draft.kernel,
        init: draft.init,
        superseded: false,
    };
    Ok(Manifest { image, disk_uuid, made_of: draft.made_of })
}
