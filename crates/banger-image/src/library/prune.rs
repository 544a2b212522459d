//! Removing what nobody needs, and telling what that would free.

use std::collections::BTreeSet;
use std::fs;

use banger_api::image::{PruneImages, PrunedImage, PrunedImages};
use banger_core::reference::Digest;

use super::Library;
use crate::blobs::StoredBlob;
use crate::error::LibraryError;
use crate::store::remove_any_tree;

/// What the kept layers of OCI images take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUse {
    /// How many there are, unfinished downloads included.
    pub count: u64,
    /// How many of them an image needs.
    pub used: u64,
    /// Host disk that they take.
    pub bytes: u64,
    /// What of it no image needs.
    pub unused_bytes: u64,
}

impl Library {
    /// Remove the images that nobody needs, or say which would go; `used` are the digests of those
    /// that VMs use. Layers go that no remaining image was made of, and downloads that nobody is at.
    ///
    /// # Errors
    /// The library cannot be read or written.
    pub fn prune_images(
        &self,
        request: PruneImages,
        used: &BTreeSet<String>,
    ) -> Result<PrunedImages, LibraryError> {
        let mut pruned = PrunedImages::default();
        let mut gone = BTreeSet::new();
        for image in self.images()? {
            if used.contains(&image.digest) || !(image.superseded || request.all) {
                continue;
            }
            // It is listed once for each of its names.
            if gone.insert(image.digest.clone()) {
                pruned.bytes += image.allocated_bytes;
            }
            pruned.images.push(PrunedImage { name: image.name, digest: image.digest });
        }
        let needed = self.needed_blobs(&gone)?;
        let unneeded: Vec<StoredBlob> =
            self.blobs.list()?.into_iter().filter(|blob| !needed.contains(&blob.digest)).collect();
        let mut partials = self.blobs.partials()?;
        partials.retain(|partial| !partial.in_use);
        let layers = unneeded.iter().chain(&partials);
        pruned.layers = layers.clone().count() as u64;
        pruned.bytes += layers.map(|blob| blob.bytes).sum::<u64>();
        if !request.dry_run {
            gone.iter().try_for_each(|digest| self.images.remove(digest))?;
            unneeded.iter().try_for_each(|blob| self.blobs.remove(&blob.digest))?;
            for partial in &partials {
                self.blobs.remove_partial(&partial.digest)?;
            }
        }
        Ok(pruned)
    }

    /// Remove the blobs among `candidates` that no image needs any more.
    pub(super) fn remove_unneeded(
        &self,
        candidates: &BTreeSet<Digest>,
    ) -> Result<(), LibraryError> {
        let needed = self.needed_blobs(&BTreeSet::new())?;
        candidates.difference(&needed).try_for_each(|digest| self.blobs.remove(digest))
    }

    /// What the images but those `without` were made of.
    fn needed_blobs(&self, without: &BTreeSet<String>) -> Result<BTreeSet<Digest>, LibraryError> {
        let mut needed = BTreeSet::new();
        for image in self.images()? {
            if !without.contains(&image.digest)
                && let Some(oci) = &image.oci
            {
                needed.extend(super::oci::blobs_of(oci));
            }
        }
        Ok(needed)
    }

    /// Empty the cache; what is in it can be made again.
    ///
    /// # Errors
    /// Of the first thing that cannot be removed; the rest is gone.
    pub fn clear_cache(&self) -> Result<(), LibraryError> {
        let entries = fs::read_dir(self.cache()).map_err(LibraryError::io("list", self.cache()))?;
        let mut outcome = Ok(());
        for entry in entries {
            let path = entry.map_err(LibraryError::io("list", self.cache()))?.path();
            let removed = if path.is_dir() && !path.is_symlink() {
                remove_any_tree(&path)
            } else {
                fs::remove_file(&path).map_err(LibraryError::io("remove", &path))
            };
            outcome = outcome.and(removed);
        }
        outcome
    }

    /// How many layers are kept, what they take, and what of it no image needs.
    ///
    /// # Errors
    /// The library cannot be read.
    pub fn layers(&self) -> Result<LayerUse, LibraryError> {
        let needed = self.needed_blobs(&BTreeSet::new())?;
        let mut layers = LayerUse::default();
        for blob in self.blobs.list()?.into_iter().chain(self.blobs.partials()?) {
            layers.count += 1;
            layers.bytes += blob.bytes;
            if needed.contains(&blob.digest) {
                layers.used += 1;
            } else if !blob.in_use {
                layers.unused_bytes += blob.bytes;
            }
        }
        Ok(layers)
    }
}
