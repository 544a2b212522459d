//! Images out of registries.

use banger_api::operation::Progress;
use banger_api::step::{self, Step};
use std::collections::BTreeSet;

use banger_api::image::{Image, ImageLayer, OciOrigin, PullRequest};
use banger_api::vm::InitMode;
use banger_core::reference::{Digest, Reference};
use banger_host::clock::now_ms;
use banger_host::command::Cancel;

use super::images::LocalImage;
use super::make::{Draft, disk_bytes_for, recipe};
use super::{Library, ensure_room};
use crate::catalog::ImageEntry;
use crate::error::{LibraryError, PullError};
use crate::layer::Layer;
use crate::oci::image_config;
use crate::registry::{ProgressSink, PulledManifest, Purpose, Registry, Resolved};
use crate::stage::{Reporter, pass};

/// An image of a registry, and what it will be here.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) reference: Reference,
    pub(super) kernel: Option<String>,
    pub(super) init: InitMode,
}

impl Target {
    pub(super) fn of_entry(entry: &ImageEntry, reference: Reference) -> Self {
        let kernel = Some(entry.kernel.clone());
        Self { name: entry.name.clone(), reference, kernel, init: entry.init }
    }

    pub(super) fn of_reference(reference: Reference) -> Self {
        Self { name: reference.familiar(), reference, kernel: None, init: InitMode::Agent }
    }
}

/// A pull from a registry under way.
struct Pull<'a> {
    target: &'a Target,
    registry: Registry,
    sink: &'a ProgressSink,
    cancel: &'a Cancel,
}

impl Library {
    /// Make what a tag stands for now local. If that is here already, nothing is fetched.
    pub(super) fn pull_oci(
        &self,
        target: &Target,
        request: &PullRequest,
        sink: &ProgressSink,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        let registry =
            Registry::connect(&target.reference, &request.registry, Purpose::Pull, cancel)?;
        let pull = Pull { target, registry, sink, cancel };
        pull.stage(step::IMAGE_RESOLVE, &format!("looking up {}", target.reference.familiar()))?;
        let resolved = pull.registry.resolve()?;
        if let Some(key) = &request.verify_key {
            pull.stage(step::IMAGE_VERIFY, "checking the signature")?;
            pull.registry.verify_signature(&resolved, key)?;
        }
        if let Some(image) = self.known(&pull, |oci| oci.digest == resolved.digest.to_string())? {
            return Ok(image);
        }
        let manifest = pull.registry.manifest(&resolved)?;
        let digest = manifest.manifest_digest.to_string();
        let lock_name = format!("sha256-{}", manifest.manifest_digest.hex());
        let _lock = self.images.lock_name(&lock_name, cancel, &mut || {
            pull.wait("image.wait", "waiting for another process that fetches this image");
        })?;
        // Whoever had the lock has made it.
        if let Some(image) = self.known(&pull, |oci| oci.manifest_digest == digest)? {
            return Ok(image);
        }
        self.build_oci(&pull, &resolved, &manifest)
    }

    /// The image that was made of that before, now also under the wanted name.
    fn known(
        &self,
        pull: &Pull<'_>,
        is_it: impl Fn(&OciOrigin) -> bool,
    ) -> Result<Option<Image>, PullError> {
        let target = pull.target;
        let found = self.image_where(|manifest| {
            let image = &manifest.image;
            // The same files for another purpose are another image.
            (&image.kernel, image.init) == (&target.kernel, target.init)
                && image.oci.as_ref().is_some_and(&is_it)
        })?;
        let Some(LocalImage { mut image, .. }) = found else { return Ok(None) };
        self.images.set_name(&target.name, &image.digest)?;
        self.touch(&image.digest, now_ms())?;
        image.name.clone_from(&target.name);
        Ok(Some(image))
    }

    fn build_oci(
        &self,
        pull: &Pull<'_>,
        resolved: &Resolved,
        manifest: &PulledManifest,
    ) -> Result<Image, PullError> {
        let compressed: u64 = manifest.manifest.layers.iter().map(|layer| layer.size).sum();
        // Layers and disk together; unpacked they are a few times as large.
        ensure_room(self.images.dir(), (compressed >> 20) * 4 + 64)?;
        self.keep_documents(manifest, pull.cancel)?;
        let disk_bytes = disk_bytes_for(compressed);
        let draft = || -> Result<Draft, PullError> {
            Ok(Draft {
                name: pull.target.name.clone(),
                source: pull.target.reference.canonical(),
                config: image_config(&manifest.config)
                    .map_err(|reason| PullError::invalid(&pull.target.name, reason))?,
                oci: Some(origin(&pull.target.reference, resolved, manifest)),
                kernel: pull.target.kernel.clone(),
                init: pull.target.init,
                made_of: recipe("oci", &manifest.manifest_digest.to_string(), disk_bytes),
                disk_bytes,
            })
        };
        match self.unpack(pull, draft()?, manifest) {
            // A stored layer may be what is damaged: then it comes again, once.
            Err(PullError::Layer(_)) if self.forget_damaged(manifest, pull.cancel)? => {
                self.unpack(pull, draft()?, manifest)
            }
            done => done,
        }
    }

    fn unpack(
        &self,
        pull: &Pull<'_>,
        draft: Draft,
        manifest: &PulledManifest,
    ) -> Result<Image, PullError> {
        let descriptors = &manifest.manifest.layers;
        let fetch = pull.registry.fetch(descriptors, &self.blobs, pull.sink.clone())?;
        let layers = descriptors.iter().zip(&manifest.diff_ids).enumerate();
        let count = descriptors.len();
        let layers = layers.map(|(index, (layer, diff_id))| {
            Ok(Layer {
                name: format!("layer {} of {count} ({})", index + 1, layer.digest.short()),
                digest: None,
                diff_id: Some(diff_id.to_string()),
                stream: Box::new(fetch.wait_for(&layer.digest)?),
            })
        });
        let mut progress = |progress| (pull.sink)(progress);
        let mut reporter = Reporter::new(&mut progress);
        let image = self.assemble(draft, layers, &mut reporter, pull.cancel)?;
        // The image is made; it only cannot be pushed as it came.
        if let Err(error) = fetch.finish() {
            tracing::warn!("a layer is not kept: {error}");
        }
        Ok(image)
    }

    /// Keep what came besides the layers, so that the image can be pushed as it is.
    fn keep_documents(&self, manifest: &PulledManifest, cancel: &Cancel) -> Result<(), PullError> {
        let config = &manifest.manifest.config.digest;
        let documents =
            [(&manifest.manifest_digest, &manifest.manifest_bytes), (config, &manifest.config)];
        for (digest, bytes) in documents {
            if self.blobs.bytes(digest).is_none() {
                self.blobs.add(&mut bytes.as_slice(), Some(digest), cancel)?;
            }
        }
        Ok(())
    }

    /// Remove the stored layers that are damaged. Whether there was one.
    fn forget_damaged(
        &self,
        manifest: &PulledManifest,
        cancel: &Cancel,
    ) -> Result<bool, PullError> {
        let mut found = false;
        for layer in &manifest.manifest.layers {
            if self.blobs.bytes(&layer.digest).is_some()
                && !self.blobs.verify(&layer.digest, cancel)?
            {
                tracing::warn!("the stored layer {} is damaged", layer.digest);
                self.blobs.remove(&layer.digest)?;
                found = true;
            }
        }
        Ok(found)
    }
}

impl Pull<'_> {
    fn stage(&self, step: Step, message: &str) -> Result<(), LibraryError> {
        self.wait(step.name(), message);
        pass(step)
    }

    /// Says that this waits for somebody else, which is no step.
    fn wait(&self, name: &'static str, message: &str) {
        (self.sink)(Progress::stage(name, message));
    }
}

fn origin(reference: &Reference, resolved: &Resolved, manifest: &PulledManifest) -> OciOrigin {
    let layer = |layer: &crate::registry::manifest::Descriptor| ImageLayer {
        digest: layer.digest.to_string(),
        bytes: layer.size,
    };
    OciOrigin {
        reference: Some(reference.canonical()),
        digest: resolved.digest.to_string(),
        manifest_digest: manifest.manifest_digest.to_string(),
        config_digest: manifest.manifest.config.digest.to_string(),
        layers: manifest.manifest.layers.iter().map(layer).collect(),
    }
}

/// Everything that is kept of an OCI image as it came.
pub(super) fn blobs_of(oci: &OciOrigin) -> BTreeSet<Digest> {
    let single = [&oci.digest, &oci.manifest_digest, &oci.config_digest];
    let layers = oci.layers.iter().map(|layer| &layer.digest);
    single.into_iter().chain(layers).filter_map(|digest| Digest::parse(digest).ok()).collect()
}
