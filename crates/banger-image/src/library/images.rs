//! The library's images.

use std::path::{Path, PathBuf};

use banger_api::image::{CatalogImage, Image, ImageConfig};
use banger_api::operation::Progress;
use banger_core::suggest::nearest;
use banger_host::clock::now_ms;
use banger_host::command::Cancel;
use banger_host::files::{allocated_bytes, write_atomic};
use sha2::{Digest, Sha256};

use super::{Library, ensure_room, read_manifest, resolve};
use crate::catalog::{Catalog, ImageEntry};
use crate::debian::bootstrap::bootstrap;

use crate::error::{Kind, LibraryError, PullError};
use crate::ext4;
use crate::rootfs::{DiskPlan, make_disk, tree_digest, uuid_of};
use crate::sparse::disk_digest;
use crate::stage::Reporter;
use crate::store::WorkDir;

/// Version of the way from a tree to a disk. A change makes other images out of the same trees.
const BUILDER_VERSION: u32 = 1;
/// Size of an image's disk as a guest sees it: the default, and least, root disk of a VM.
const DISK_BYTES: u64 = 8 << 30;
const MANIFEST: &str = "image.json";
const DISK: &str = "root.ext4";

/// An image that is here, and where its disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// What it is.
    pub image: Image,
    /// Its disk, an ext4 file system; never to be written to.
    pub root: PathBuf,
}

impl Library {
    /// All local images by name, newest first, versions that a refresh has superseded included. One
    /// that cannot be read is left out.
    ///
    /// # Errors
    /// The library cannot be read.
    pub fn images(&self) -> Result<Vec<Image>, LibraryError> {
        let mut images = Vec::new();
        for digest in self.images.digests()? {
            match self.read_image(&digest) {
                Ok(Some(local)) => images.push(local.image),
                Ok(None) => {}
                Err(error) => tracing::warn!("image {digest} is left out: {error}"),
            }
        }
        images.sort_by(|a, b| (&a.name, b.created_at_ms).cmp(&(&b.name, a.created_at_ms)));
        Ok(images)
    }

    /// The local image of that name, digest, or beginning of a digest.
    ///
    /// # Errors
    /// The library or the image's manifest cannot be read.
    pub fn find_image(&self, wanted: &str) -> Result<Option<LocalImage>, LibraryError> {
        match resolve(&self.images, wanted)? {
            Some(digest) => self.read_image(&digest),
            None => Ok(None),
        }
    }

    /// Check in a few milliseconds that an image's disk is there, whole and its own.
    ///
    /// # Errors
    /// [`LibraryError::Corrupt`] with what is wrong.
    pub fn verify_image(&self, local: &LocalImage) -> Result<(), LibraryError> {
        let identity = local.image.digest.trim_start_matches("sha256:");
        let uuid = uuid_of(identity);
        ext4::check(&local.root, local.image.disk_bytes, &uuid).map_err(|reason| {
            LibraryError::Corrupt { kind: Kind::Image, name: local.image.name.clone(), reason }
        })
    }

    /// The images of the catalog.
    #[must_use]
    pub fn catalog_images(&self) -> Vec<CatalogImage> {
        let show = |entry: &ImageEntry| CatalogImage {
            name: entry.name.clone(),
            description: entry.description.clone(),
            source: entry.source.clone(),
            kernel: entry.kernel.clone(),
            size_hint_bytes: entry.size_mib << 20,
            local: self.images.digest_of(&entry.name).is_some(),
        };
        Catalog::get().images.iter().map(show).collect()
    }

    /// Make an image of the catalog local. One that is here already is taken as it is, unless
    /// `refresh` asks for a new version; if nothing has changed, that is the one that is here.
    ///
    /// # Errors
    /// See [`PullError`]. Nothing half-made stays visible.
    pub fn pull_image(
        &self,
        name: &str,
        refresh: bool,
        on_progress: &mut dyn FnMut(Progress),
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        let entry = Catalog::get().image(name).ok_or_else(|| unknown_image(name))?;
        if let (false, Some(local)) = (refresh, self.find_image(name)?) {
            return Ok(local.image);
        }
        let mut reporter = Reporter::new(on_progress);
        let began = now_ms();
        let _lock = self.images.lock_name(name, cancel, &mut || {
            reporter.stage("image.wait", "waiting for another process that builds this image");
        })?;
        // Whoever had the lock has made it.
        if let Some(local) = self.find_image(name)?
            && (!refresh || local.image.created_at_ms >= began)
        {
            return Ok(local.image);
        }
        ensure_room(self.images.dir(), entry.build_mib)?;
        let work = self.images.begin()?;
        let built = self.build_image(entry, &work, &mut reporter, cancel);
        // The result is what counts; what cannot be removed now is removed at the next opening.
        if let Err(error) = work.remove() {
            tracing::warn!("left for later: {error}");
        }
        built
    }

    fn build_image(
        &self,
        entry: &ImageEntry,
        work: &WorkDir,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        let tree = bootstrap(&entry.debian, &work.subdir("debian")?, reporter, cancel)?;
        reporter.stage("image.unpack", "measuring the root filesystem");
        let identity = identity_of(&tree_digest(&tree, cancel)?);
        reporter.stage("image.disk", "building the disk");
        let made = work.subdir("made")?;
        let disk = made.join(DISK);
        let label = "banger-root";
        let plan = DiskPlan { label, bytes: DISK_BYTES, journal: true, identity: &identity };
        make_disk(&tree, &disk, &plan, cancel)?;
        let image = describe(entry, &identity, &disk)?;
        write_manifest(&made, &image)?;
        self.publish_image(&made, &image, work)?;
        Ok(image)
    }

    fn publish_image(
        &self,
        made: &Path,
        image: &Image,
        work: &WorkDir,
    ) -> Result<(), LibraryError> {
        if let Some(local) = self.find_image(&image.digest)? {
            match self.verify_image(&local) {
                // The same again: it only is as new as the packages it was just compared with.
                Ok(()) => write_manifest(local.root.parent().unwrap_or(made), image)?,
                Err(_) => self.images.move_away(&image.digest, &work.path().join("damaged"))?,
            }
        }
        self.images.publish(made, &image.digest)?;
        self.images.set_name(&image.name, &image.digest)
    }

    /// Remove an image by name or digest. Whether a VM needs it is for the caller to know.
    ///
    /// # Errors
    /// There is none, or its files cannot be removed.
    pub fn remove_image(&self, wanted: &str) -> Result<(), LibraryError> {
        match resolve(&self.images, wanted)? {
            Some(digest) => self.images.remove(&digest),
            None => Err(self.no_image(wanted)),
        }
    }

    fn no_image(&self, name: &str) -> LibraryError {
        let images = self.images().unwrap_or_default();
        let nearest = nearest(name, images.iter().map(|image| image.name.as_str()));
        let nearest = nearest.map(str::to_owned);
        LibraryError::NotFound { kind: Kind::Image, name: name.to_owned(), nearest }
    }

    fn read_image(&self, digest: &str) -> Result<Option<LocalImage>, LibraryError> {
        let Some(dir) = self.images.path_of(digest) else { return Ok(None) };
        let image = read_manifest::<Image>(Kind::Image, digest, &dir.join(MANIFEST))?;
        Ok(image.map(|image| LocalImage { image, root: dir.join(DISK) }))
    }
}

fn unknown_image(name: &str) -> PullError {
    let known = Catalog::get().images.iter().map(|entry| entry.name.as_str());
    let nearest = nearest(name, known).map(str::to_owned);
    PullError::Unknown { kind: Kind::Image, name: name.to_owned(), nearest }
}

/// The identity of the image that this builder makes of a tree: 64 hex digits.
fn identity_of(tree_digest: &str) -> String {
    let text = format!("banger image builder {BUILDER_VERSION}\n{DISK_BYTES}\n{tree_digest}\n");
    hex::encode(Sha256::digest(text))
}

fn describe(entry: &ImageEntry, identity: &str, disk: &Path) -> Result<Image, LibraryError> {
    Ok(Image {
        name: entry.name.clone(),
        digest: format!("sha256:{identity}"),
        disk_sha256: disk_digest(disk).map_err(LibraryError::io("read", disk))?,
        disk_bytes: DISK_BYTES,
        allocated_bytes: allocated_bytes(disk).map_err(LibraryError::io("measure", disk))?,
        source: entry.source.clone(),
        created_at_ms: now_ms(),
        config: ImageConfig::default(),
    })
}

fn write_manifest(dir: &Path, image: &Image) -> Result<(), LibraryError> {
    let path = dir.join(MANIFEST);
    let json = serde_json::to_vec_pretty(image).expect("plain data");
    write_atomic(&path, &json).map_err(LibraryError::io("write", &path))
}
