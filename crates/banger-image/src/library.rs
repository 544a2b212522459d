//! The library: what is here, what can be fetched, and keeping it whole.

mod file;
mod images;
mod kernels;
mod make;
mod oci;
mod promote;
mod prune;
mod pull;
mod push;
mod register;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use banger_api::system::DiskUseRow;
use banger_host::files::{allocated_bytes, create_private_dir, free_bytes};
use serde::de::DeserializeOwned;

use crate::error::{Kind, LibraryError, PullError};
use crate::store::Store;

use crate::blobs::Blobs;
use crate::catalog::CATALOG_FILE;
pub use images::LocalImage;
pub use kernels::LocalKernel;
pub use promote::VmDisk;
pub use prune::LayerUse;

/// The local images and kernels, and the catalog of those that could be.
///
/// All state is files; any number of these values, in any number of processes, may work on the same
/// directory. The methods block: building an image takes half a minute.
#[derive(Debug, Clone)]
pub struct Library {
    images: Store,
    kernels: Store,
    blobs: Blobs,
    cache: PathBuf,
    /// The user's own catalog.
    user_catalog: PathBuf,
}

impl Library {
    /// Open the library under `data_dir`, making it if it is not there, and remove what killed
    /// builds have left. The user's catalog is in `config_dir`, if there is one.
    ///
    /// # Errors
    /// The directories cannot be made or read.
    pub fn open(data_dir: &Path, config_dir: &Path) -> Result<Self, LibraryError> {
        let cache = data_dir.join("cache");
        create_private_dir(&cache).map_err(LibraryError::io("create", &cache))?;
        Ok(Self {
            images: Store::open(&data_dir.join("images"))?,
            kernels: Store::open(&data_dir.join("kernels"))?,
            blobs: Blobs::open(data_dir)?,
            cache,
            user_catalog: config_dir.join(CATALOG_FILE),
        })
    }

    /// Wait until whoever built or pulled when this was opened is done, or dead, and remove what is still
    /// there of it: a process that was killed holds its files until the kernel has taken them from it.
    ///
    /// # Errors
    /// Of the first thing of a kind that cannot be removed.
    pub fn outlast_others(&self) -> Result<(), LibraryError> {
        let (images, kernels) = (self.images.outlast_others(), self.kernels.outlast_others());
        self.blobs.outlast_others().and(images).and(kernels)
    }

    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// Host disk that images, kernels and the cache take. Nothing is counted as in use: who uses
    /// what is not known here.
    ///
    /// # Errors
    /// The directories cannot be read.
    pub fn disk_use(&self) -> Result<Vec<DiskUseRow>, LibraryError> {
        let row = |kind: &str, count: usize, dir: &Path| {
            let bytes = allocated_bytes(dir).map_err(LibraryError::io("measure", dir))?;
            let kind = kind.to_owned();
            Ok(DiskUseRow { kind, count: count as u64, in_use: 0, bytes, reclaimable_bytes: bytes })
        };
        let cached =
            std::fs::read_dir(&self.cache).map_err(LibraryError::io("list", &self.cache))?;
        Ok(vec![
            row("images", self.images.digests()?.len(), self.images.dir())?,
            row("kernels", self.kernels.digests()?.len(), self.kernels.dir())?,
            row("cache", cached.count(), &self.cache)?,
        ])
    }
}

/// The digest that `wanted` means in `store`: a name, a whole digest, or the first twelve or more of
/// its hex digits.
fn resolve(store: &Store, wanted: &str) -> Result<Option<String>, LibraryError> {
    if let Some(digest) = store.lookup(wanted)? {
        return Ok(Some(digest));
    }
    let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    if hex.len() < 12 {
        return Ok(None);
    }
    let mut found = store.digests()?.into_iter().filter(|digest| digest[7..].starts_with(hex));
    Ok(found.next().filter(|_| found.next().is_none()))
}

/// Read a manifest; None if the thing is not there.
fn read_manifest<T: DeserializeOwned>(
    kind: Kind,
    name: &str,
    path: &Path,
) -> Result<Option<T>, LibraryError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LibraryError::io("read", path)(error)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(error) => Err(LibraryError::Corrupt {
            kind,
            name: name.to_owned(),
            reason: format!("{} cannot be understood: {error}", path.display()),
        }),
    }
}

/// Fail early, and clearly, if there is not enough room for a build.
fn ensure_room(dir: &Path, needed_mib: u64) -> Result<(), PullError> {
    let free_mib = free_bytes(dir).map_err(PullError::io("measure", dir))? >> 20;
    if free_mib < needed_mib {
        return Err(PullError::NoSpace { needed_mib, free_mib });
    }
    Ok(())
}
