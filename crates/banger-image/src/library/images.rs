//! The library's images.

use std::path::{Path, PathBuf};

use banger_api::image::{CatalogImage, Image, ImageConfig};
use banger_api::operation::Progress;
use banger_core::suggest::nearest;
use banger_host::clock::now_ms;
use banger_host::command::Cancel;
use banger_host::files::{allocated_bytes, write_atomic};
use serde::{Deserialize, Serialize};
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

/// An image's manifest: what it is, what it was made of, and how to recognise its disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Manifest {
    #[serde(flatten)]
    image: Image,
    /// What this builder made it of, 64 hex digits: the same again would be the same image.
    made_of: String,
    /// UUID of its file system.
    disk_uuid: String,
}

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
            match self.read_image(&digest, &digest) {
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
            Some(digest) => self.read_image(&digest, wanted),
            None => Ok(None),
        }
    }

    /// Check in a few milliseconds that an image's disk is there, whole and its own.
    ///
    /// # Errors
    /// [`LibraryError::Corrupt`] with what is wrong.
    pub fn verify_image(&self, local: &LocalImage) -> Result<(), LibraryError> {
        let Image { name, digest, disk_bytes, .. } = &local.image;
        let corrupt = |reason| {
            let (kind, name) = (Kind::Image, name.clone());
            LibraryError::Corrupt { kind, name, reason }
        };
        let manifest = self.read_manifest(digest, name)?;
        let manifest = manifest.ok_or_else(|| corrupt("its manifest is missing".to_owned()))?;
        ext4::check(&local.root, *disk_bytes, &manifest.disk_uuid).map_err(corrupt)
    }

    /// The images of the catalog.
    #[must_use]
    pub fn catalog_images(&self) -> Vec<CatalogImage> {
        let show = |entry: &ImageEntry| CatalogImage {
            name: entry.name.clone(),
            description: entry.description.clone(),
            source: entry.source_text(),
            kernel: entry.kernel.clone(),
            init: entry.init,
            user_defined: entry.user_defined,
            size_hint_bytes: entry.size_mib << 20,
            local: self.images.digest_of(&entry.name).is_some(),
        };
        Catalog::built_in().images.iter().map(show).collect()
    }

    /// Make an image of the catalog local. One that is here and whole is taken as it is, unless
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
        let entry = Catalog::built_in().image(name).ok_or_else(|| unknown_image(name))?;
        if let (false, Some(local)) = (refresh, self.whole_image(name)) {
            return Ok(local.image);
        }
        let mut reporter = Reporter::new(on_progress);
        let began = now_ms();
        let _lock = self.images.lock_name(name, cancel, &mut || {
            reporter.stage("image.wait", "waiting for another process that builds this image");
        })?;
        // Whoever had the lock has made it.
        if let Some(local) = self.whole_image(name)
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

    /// The local image of that name if nothing is wrong with it.
    fn whole_image(&self, name: &str) -> Option<LocalImage> {
        let local = self.find_image(name).ok().flatten()?;
        self.verify_image(&local).is_ok().then_some(local)
    }

    fn build_image(
        &self,
        entry: &ImageEntry,
        work: &WorkDir,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        let crate::catalog::ImageSource::Debian(debian) = entry.source() else {
            return Err(unknown_image(&entry.name));
        };
        let tree = bootstrap(debian, &work.subdir("debian")?, reporter, cancel)?;
        reporter.stage("image.unpack", "measuring the root filesystem");
        let made_of = recipe_of(&tree_digest(&tree, cancel)?);
        if let Some(image) = self.still_current(entry, &made_of)? {
            return Ok(image);
        }
        reporter.stage("image.disk", "building the disk");
        let made = work.subdir("made")?;
        let disk = made.join(DISK);
        let label = "banger-root";
        let plan = DiskPlan { label, bytes: DISK_BYTES, journal: true, identity: &made_of };
        make_disk(&tree, &disk, &plan, cancel)?;
        let manifest = describe(entry, made_of, &disk)?;
        write_manifest(&made, &manifest)?;
        self.images.publish(&made, &manifest.image.digest)?;
        self.images.set_name(&entry.name, &manifest.image.digest)?;
        Ok(manifest.image)
    }

    /// The image of that name if it was made of the same as a new one would be: then it is as new as
    /// the packages it was just compared with.
    fn still_current(&self, entry: &ImageEntry, made_of: &str) -> Result<Option<Image>, PullError> {
        let Some(local) = self.whole_image(&entry.name) else { return Ok(None) };
        let digest = &local.image.digest;
        let Some(mut manifest) = self.read_manifest(digest, &entry.name)? else { return Ok(None) };
        if manifest.made_of != made_of {
            return Ok(None);
        }
        manifest.image.created_at_ms = now_ms();
        write_manifest(local.root.parent().unwrap_or(&local.root), &manifest)?;
        Ok(Some(manifest.image))
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

    /// The image with that digest; `name` is what to call it if it is damaged.
    fn read_image(&self, digest: &str, name: &str) -> Result<Option<LocalImage>, LibraryError> {
        let Some(dir) = self.images.path_of(digest) else { return Ok(None) };
        let manifest = self.read_manifest(digest, name)?;
        Ok(manifest.map(|manifest| LocalImage { image: manifest.image, root: dir.join(DISK) }))
    }

    fn read_manifest(&self, digest: &str, name: &str) -> Result<Option<Manifest>, LibraryError> {
        let Some(dir) = self.images.path_of(digest) else { return Ok(None) };
        read_manifest(Kind::Image, name, &dir.join(MANIFEST))
    }
}

fn unknown_image(name: &str) -> PullError {
    let known = Catalog::built_in().images.iter().map(|entry| entry.name.as_str());
    let nearest = nearest(name, known).map(str::to_owned);
    PullError::Unknown { kind: Kind::Image, name: name.to_owned(), nearest }
}

/// What this builder makes an image of, 64 hex digits: the tree, and the way from there to a disk.
fn recipe_of(tree_digest: &str) -> String {
    let text = format!("banger image builder {BUILDER_VERSION}\n{DISK_BYTES}\n{tree_digest}\n");
    hex::encode(Sha256::digest(text))
}

/// The manifest of a new image.
///
/// Its identity is the disk's as well as the tree's. mke2fs does not always lay the same tree out
/// the same way, and a VM's own copy-on-write file is worthless, or worse, over another layout: so a
/// disk that was lost and made anew must not pass for the one that was lost.
fn describe(entry: &ImageEntry, made_of: String, disk: &Path) -> Result<Manifest, LibraryError> {
    let disk_sha256 = disk_digest(disk).map_err(LibraryError::io("read", disk))?;
    let identity = Sha256::digest(format!("{made_of}\n{disk_sha256}\n"));
    let image = Image {
        name: entry.name.clone(),
        digest: format!("sha256:{}", hex::encode(identity)),
        disk_sha256,
        disk_bytes: DISK_BYTES,
        allocated_bytes: allocated_bytes(disk).map_err(LibraryError::io("measure", disk))?,
        source: entry.source_text(),
        created_at_ms: now_ms(),
        config: ImageConfig::default(),
        oci: None,
        kernel: Some(entry.kernel.clone()),
        init: entry.init,
    };
    Ok(Manifest { image, disk_uuid: uuid_of(&made_of), made_of })
}

fn write_manifest(dir: &Path, manifest: &Manifest) -> Result<(), LibraryError> {
    let path = dir.join(MANIFEST);
    let json = serde_json::to_vec_pretty(manifest).expect("plain data");
    write_atomic(&path, &json).map_err(LibraryError::io("write", &path))
}
