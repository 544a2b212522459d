//! Images into registries.

use banger_api::step;
use std::fs::File;
use std::io::{self, Write};

use banger_api::image::{Image, OciOrigin, PushImage, Pushed};
use banger_core::reference::{Digest, Reference};
use banger_ext4::Reader;
use banger_host::command::Cancel;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use super::images::LocalImage;
use super::promote::read_limits;
use super::{Library, ensure_room};
use crate::error::{LibraryError, PullError};
use crate::layer::write_layer;
use crate::oci::config_json;
use crate::registry::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST};
use crate::registry::{ProgressSink, Purpose, Registry, Upload};
use crate::stage::Reporter;

/// When the layers of banger's own images claim to have been made: nothing of a push shall depend on
/// its time, so that the same image is the same everywhere.
const CREATED: &str = "1970-01-01T00:00:00Z";

impl Library {
    /// Send an image to a registry: as it came, if what it was made of is still here, else as one
    /// layer with all its files.
    ///
    /// # Errors
    /// See [`PullError`].
    pub fn push_image(
        &self,
        request: &PushImage,
        sink: &ProgressSink,
        cancel: &Cancel,
    ) -> Result<Pushed, PullError> {
        let reference = Reference::parse(&request.reference).map_err(|source| {
            LibraryError::Reference { name: request.reference.clone(), source }
        })?;
        if reference.digest().is_some() {
            return Err(LibraryError::BadName { name: request.reference.clone() }.into());
        }
        let local = self.find_image(&request.name)?;
        let local = local.ok_or_else(|| super::images::not_found(&request.name, None))?;
        let registry = Registry::connect(&reference, &request.registry, Purpose::Push, cancel)?;
        let upload = match local.image.oci.as_ref().map(|oci| self.as_it_came(oci)) {
            Some(Ok(Some(upload))) => upload,
            Some(Err(error)) => return Err(error),
            Some(Ok(None)) | None => self.as_one_layer(&local, sink, cancel)?,
        };
        let digest = registry.push(&upload, &self.blobs, sink.clone())?;
        // What was packed only for this is the registry's now.
        let sent = upload.blobs.iter().map(|blob| blob.digest.clone()).collect();
        self.remove_unneeded(&sent)?;
        Ok(Pushed { reference: reference.canonical(), digest: digest.to_string() })
    }

    /// The image that came, if all of it is still stored.
    fn as_it_came(&self, oci: &OciOrigin) -> Result<Option<Upload>, PullError> {
        let Ok(digest) = Digest::parse(&oci.manifest_digest) else { return Ok(None) };
        if self.blobs.bytes(&digest).is_none() {
            return Ok(None);
        }
        let mut manifest = Vec::new();
        let path = self.blobs.path(&digest);
        io::copy(&mut self.blobs.contents(&digest)?, &mut manifest)
            .map_err(PullError::io("read", &path))?;
        let parsed: Manifest = serde_json::from_slice(&manifest)
            .map_err(|error| PullError::unexpected(path.display().to_string(), error))?;
        let media_type = parsed.media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned());
        let mut blobs = vec![parsed.config];
        blobs.extend(parsed.layers);
        let is_here = |blob: &Descriptor| self.blobs.bytes(&blob.digest) == Some(blob.size);
        Ok(blobs.iter().all(is_here).then_some(Upload { manifest, media_type, blobs }))
    }

    /// A new OCI image with everything that is on the disk in one layer.
    fn as_one_layer(
        &self,
        local: &LocalImage,
        sink: &ProgressSink,
        cancel: &Cancel,
    ) -> Result<Upload, PullError> {
        ensure_room(self.blobs.dir(), (local.image.allocated_bytes >> 20) + 64)?;
        let mut progress = |progress| sink(progress);
        Reporter::new(&mut progress).stage(step::IMAGE_LAYER, "packing the files into a layer")?;
        let (layer, diff_id) = self.pack(local, cancel)?;
        let config = config_json(&local.image.config, &diff_id.to_string(), CREATED);
        let config = self.store_document(&config, OCI_CONFIG, cancel)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.to_owned()),
            config: config.clone(),
            layers: vec![layer.clone()],
        };
        let manifest = serde_json::to_vec(&manifest).expect("plain data");
        Ok(Upload { manifest, media_type: OCI_MANIFEST.to_owned(), blobs: vec![config, layer] })
    }

    /// Store the files of an image as a compressed tar. Answers what that is, and the digest of the
    /// tar.
    fn pack(&self, local: &LocalImage, cancel: &Cancel) -> Result<(Descriptor, Digest), PullError> {
        let Image { name, .. } = &local.image;
        let unreadable = |error: banger_ext4::Error| PullError::invalid(name, error);
        let disk = File::open(&local.root).map_err(PullError::io("open", &local.root))?;
        let reader = Reader::open(disk).map_err(unreadable)?;
        let tree = reader.tree(&read_limits(local.image.disk_bytes)).map_err(unreadable)?;
        let (mut from, to) = io::pipe().map_err(|source| LibraryError::Io {
            action: "pack",
            path: name.into(),
            source,
        })?;
        std::thread::scope(|scope| {
            let packing = scope.spawn(|| {
                let mut out =
                    Summed { sum: Sha256::new(), out: GzEncoder::new(to, Compression::fast()) };
                write_layer(&reader, &tree, &mut out, cancel)?;
                let Summed { sum, out } = out;
                out.finish().map_err(|source| LibraryError::Io {
                    action: "pack",
                    path: name.into(),
                    source,
                })?;
                Ok::<_, PullError>(Digest::of_sum(sum.finalize().into()))
            });
            let stored = self.blobs.add(&mut from, None, cancel);
            // A reader that has given up has broken the pipe.
            drop(from);
            let packed = packing.join().map_err(|_| PullError::Cancelled)?;
            let (digest, size) = stored?;
            let media_type = OCI_LAYER_GZIP.to_owned();
            Ok((Descriptor { media_type, digest, size, annotations: None }, packed?))
        })
    }

    fn store_document(
        &self,
        json: &[u8],
        media_type: &str,
        cancel: &Cancel,
    ) -> Result<Descriptor, PullError> {
        let (digest, size) = self.blobs.add(&mut &*json, None, cancel)?;
        Ok(Descriptor { media_type: media_type.to_owned(), digest, size, annotations: None })
    }
}

/// Passes on what it has taken the digest of.
struct Summed<W> {
    sum: Sha256,
    out: W,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.sum.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
