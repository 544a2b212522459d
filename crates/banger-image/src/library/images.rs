//! The library's images: which are here, under which names, and whether they are whole.

use std::path::{Path, PathBuf};

use banger_api::image::{CatalogImage, Image};
use banger_api::step;
use banger_core::reference::Reference;
use banger_core::suggest::nearest;
use banger_host::files::write_atomic;
use serde::{Deserialize, Serialize};

use super::{Library, read_manifest, resolve};
use crate::catalog::{Catalog, ImageEntry};
use crate::error::{Kind, LibraryError};
use crate::ext4;
use crate::stage::pass;

const MANIFEST: &str = "image.json";
/// File name of an image's disk.
pub(super) const DISK: &str = "root.ext4";

/// An image's manifest: what it is, what it was made of, and how to recognise its disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    #[serde(flatten)]
    pub(super) image: Image,
    /// What this builder made it of, 64 hex digits: the same again would be the same image.
    pub(super) made_of: String,
    /// UUID of its file system.
    pub(super) disk_uuid: String,
}

/// An image that is here, and where its disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// What it is.
    pub image: Image,
    /// Its disk, an ext4 file system; never to be written to.
    pub root: PathBuf,
}

/// What a person means by the name of an image that need not be here.
#[derive(Debug)]
pub(super) enum Wanted {
    /// An entry of the catalog.
    Entry(Box<ImageEntry>),
    /// An image of a registry.
    Reference(Reference),
    /// A local image that has no source to be fetched from again.
    Local,
}

impl Library {
    /// All local images by name, newest first: each once for every name that it has, and those
    /// whose name a newer version has taken. One that cannot be read is left out.
    ///
    /// # Errors
    /// The library cannot be read.
    pub fn images(&self) -> Result<Vec<Image>, LibraryError> {
        let names = self.images.names()?;
        let mut images = Vec::new();
        for digest in self.images.digests()? {
            let local = match self.read_image(&digest, &digest) {
                Ok(Some(local)) => local,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!("image {digest} is left out: {error}");
                    continue;
                }
            };
            let count = images.len();
            for (name, _) in names.iter().filter(|(_, stands_for)| **stands_for == digest) {
                images.push(Image { name: name.clone(), ..local.image.clone() });
            }
            if images.len() == count {
                images.push(Image { superseded: true, ..local.image });
            }
        }
        images.sort_by(|a, b| (&a.name, b.created_at_ms).cmp(&(&b.name, a.created_at_ms)));
        Ok(images)
    }

    /// The local image of that name, digest, or beginning of a digest. `app` and `app:latest` are
    /// the same.
    ///
    /// # Errors
    /// The library or the image's manifest cannot be read.
    pub fn find_image(&self, wanted: &str) -> Result<Option<LocalImage>, LibraryError> {
        for name in names_of(wanted) {
            if let Some(digest) = self.images.digest_of(&name) {
                let found = self.read_image(&digest, &name)?;
                return Ok(found.map(|local| local.under(name)));
            }
        }
        match resolve(&self.images, wanted)? {
            Some(digest) => self.read_image(&digest, wanted),
            None => Ok(None),
        }
    }

    /// Check that an image of that name is here, or could be fetched.
    ///
    /// # Errors
    /// It makes no sense as a name, or is so much like a known one that it must be a misspelling: a
    /// registry may have something bad under it.
    pub fn check_image(&self, name: &str) -> Result<(), LibraryError> {
        self.wanted(name).map(drop)
    }

    /// What a name means: a local image's, the catalog's, or a registry's.
    pub(super) fn wanted(&self, name: &str) -> Result<Wanted, LibraryError> {
        let catalog = Catalog::load(&self.user_catalog)?;
        if let Some(entry) = catalog.image(name) {
            return Ok(Wanted::Entry(Box::new(entry.clone())));
        }
        let local = self.find_image(name)?;
        let reference = Reference::parse(name);
        match (local, reference) {
            // What was registered or promoted has no source but what it was made of.
            (Some(local), _)
                if local.image.oci.as_ref().is_none_or(|oci| oci.reference.is_none()) =>
            {
                Ok(Wanted::Local)
            }
            (Some(_), Ok(reference)) => Ok(Wanted::Reference(reference)),
            (Some(_), Err(_)) => Ok(Wanted::Local),
            (None, Ok(reference)) => match self.misspelt(name, &catalog) {
                Some(near) => Err(not_found(name, Some(near))),
                None => Ok(Wanted::Reference(reference)),
            },
            (None, Err(error)) => {
                Err(LibraryError::Reference { name: name.to_owned(), source: error })
            }
        }
    }

    /// The known name that a short name is a misspelling of.
    fn misspelt(&self, name: &str, catalog: &Catalog) -> Option<String> {
        if name.contains(['/', ':', '@', '.']) {
            return None;
        }
        let local = self.images.names().unwrap_or_default();
        let known = catalog.images.iter().map(|entry| entry.name.as_str());
        nearest(name, known.chain(local.keys().map(String::as_str))).map(str::to_owned)
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
    ///
    /// # Errors
    /// The user's catalog cannot be used.
    pub fn catalog_images(&self) -> Result<Vec<CatalogImage>, LibraryError> {
        let show = |entry: &ImageEntry| CatalogImage {
            name: entry.name.clone(),
            description: entry.description.clone(),
            source: entry.source_text(),
            kernel: entry.kernel.clone(),
            init: entry.init,
            size_hint_bytes: entry.size_mib << 20,
            local: self.images.digest_of(&entry.name).is_some(),
            user_defined: entry.user_defined,
        };
        Ok(Catalog::load(&self.user_catalog)?.images.iter().map(show).collect())
    }

    /// Remove an image. By digest it goes with all its names; by one name of several it only loses
    /// that. Whether a VM needs it is for the caller to know.
    ///
    /// # Errors
    /// There is none, or its files cannot be removed.
    pub fn remove_image(&self, wanted: &str) -> Result<(), LibraryError> {
        let names = self.images.names()?;
        for name in names_of(wanted) {
            let Some(digest) = names.get(&name) else { continue };
            if names.values().filter(|other| *other == digest).count() > 1 {
                return self.images.remove_name(&name);
            }
            return self.remove_with_layers(digest);
        }
        match resolve(&self.images, wanted)? {
            Some(digest) => self.remove_with_layers(&digest),
            None => {
                let near = nearest(wanted, names.keys().map(String::as_str)).map(str::to_owned);
                Err(not_found(wanted, near))
            }
        }
    }

    fn remove_with_layers(&self, digest: &str) -> Result<(), LibraryError> {
        // What it was made of may not be known: damaged things can be removed too.
        let oci = self.read_image(digest, digest).ok().flatten().and_then(|local| local.image.oci);
        self.images.remove(digest)?;
        match oci {
            Some(oci) => self.remove_unneeded(&super::oci::blobs_of(&oci)),
            None => Ok(()),
        }
    }

    /// The local image of that name if nothing is wrong with it.
    pub(super) fn whole_image(&self, name: &str) -> Option<LocalImage> {
        let local = self.find_image(name).ok().flatten()?;
        self.verify_image(&local).is_ok().then_some(local)
    }

    /// A whole local image for whose manifest that holds.
    pub(super) fn image_where(
        &self,
        holds: impl Fn(&Manifest) -> bool,
    ) -> Result<Option<LocalImage>, LibraryError> {
        for digest in self.images.digests()? {
            let Ok(Some(manifest)) = self.read_manifest(&digest, &digest) else { continue };
            if holds(&manifest)
                && let Some(local) = self.whole_image(&digest)
            {
                return Ok(Some(local));
            }
        }
        Ok(None)
    }

    /// Note that an image was found to be the newest at that time.
    pub(super) fn touch(&self, digest: &str, now_ms: u64) -> Result<(), LibraryError> {
        let Some(mut manifest) = self.read_manifest(digest, digest)? else { return Ok(()) };
        let Some(dir) = self.images.path_of(digest) else { return Ok(()) };
        manifest.image.created_at_ms = now_ms;
        write_manifest(&dir, &manifest)
    }

    /// The image with that digest; `name` is what to call it if it is damaged.
    fn read_image(&self, digest: &str, name: &str) -> Result<Option<LocalImage>, LibraryError> {
        let Some(dir) = self.images.path_of(digest) else { return Ok(None) };
        let manifest = self.read_manifest(digest, name)?;
        Ok(manifest.map(|manifest| LocalImage { image: manifest.image, root: dir.join(DISK) }))
    }

    pub(super) fn read_manifest(
        &self,
        digest: &str,
        name: &str,
    ) -> Result<Option<Manifest>, LibraryError> {
        let Some(dir) = self.images.path_of(digest) else { return Ok(None) };
        read_manifest(Kind::Image, name, &dir.join(MANIFEST))
    }
}

impl LocalImage {
    /// The same under one of its names.
    pub(super) fn under(mut self, name: String) -> Self {
        self.image.name = name;
        self
    }
}

/// The local names that a person may mean: as it is written, and with or without `:latest`.
fn names_of(wanted: &str) -> Vec<String> {
    let mut names = vec![wanted.to_owned()];
    if let Ok(reference) = Reference::parse(wanted) {
        let familiar = reference.familiar();
        if let Some(short) = familiar.strip_suffix(":latest") {
            names.push(short.to_owned());
        }
        names.push(familiar);
    }
    names.dedup();
    names
}

pub(super) fn not_found(name: &str, nearest: Option<String>) -> LibraryError {
    LibraryError::NotFound { kind: Kind::Image, name: name.to_owned(), nearest }
}

pub(super) fn write_manifest(dir: &Path, manifest: &Manifest) -> Result<(), LibraryError> {
    let json = serde_json::to_vec_pretty(manifest).expect("plain data");
    let path = dir.join(MANIFEST);
    pass(step::IMAGE_MANIFEST)?;
    write_atomic(&path, &json).map_err(LibraryError::io("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_may_be_left_out() {
        let cases = [
            ("app", vec!["app", "app:latest"]),
            ("app:latest", vec!["app:latest", "app", "app:latest"]),
            ("app:1", vec!["app:1"]),
            ("docker.io/library/app", vec!["docker.io/library/app", "app", "app:latest"]),
            ("localhost:5000/a", vec!["localhost:5000/a", "localhost:5000/a:latest"]),
            ("No Name", vec!["No Name"]),
        ];
        for (wanted, want) in cases {
            assert_eq!(names_of(wanted), want, "{wanted}");
        }
    }
}
