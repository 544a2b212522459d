//! Stored pieces of OCI images: layers as they were compressed, manifests, configurations.
//!
//! ```text
//! sha256-<hex>           a whole blob; its name is the digest of its bytes
//! partial-sha256-<hex>   what is there of one that is being downloaded; locked while somebody does
//! tmp-<random>           a blob that is being added; locked likewise
//! ```
//!
//! A blob gets its name by rename, when all of it is on the disk and its digest was checked. What a
//! killed process leaves of a download is the beginning of the next one. Files are the user's alone:
//! images may hold secrets.

mod partial;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::step;
use banger_core::reference::Digest;
use banger_host::command::Cancel;
use banger_host::files::{create_private_dir, sync_dir};
use banger_host::lock::{OfdLock, is_locked};
use banger_host::random;
use sha2::{Digest as _, Sha256};

use crate::error::LibraryError;
use crate::stage::pass;
pub(crate) use partial::{Finished, Partial, Verified};

/// How much is read at once.
const CHUNK: usize = 128 * 1024;
const BLOB: &str = "sha256-";
const PARTIAL: &str = "partial-sha256-";
const TEMPORARY: &str = "tmp-";

/// The stored blobs of one library.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    dir: PathBuf,
    /// What others were adding when this was opened.
    others: Arc<[PathBuf]>,
}

/// A file of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredBlob {
    /// What it is, or for an unfinished one, what it will be.
    pub(crate) digest: Digest,
    /// Its length.
    pub(crate) bytes: u64,
    /// Whether somebody downloads it right now.
    pub(crate) in_use: bool,
}

/// Reads a blob from its beginning, whatever other readers do.
#[derive(Debug, Clone)]
pub(crate) struct Contents {
    file: Arc<File>,
    at: u64,
}

/// What there is of a blob that somebody wants to download.
#[derive(Debug)]
pub(crate) enum Begun {
    /// All of it.
    Stored(Contents),
    /// Somebody else downloads it.
    Busy,
    /// A part, maybe empty, that nobody else touches now.
    Partial(Partial),
}

/// Why a blob could not be stored or checked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    /// Its bytes are not what its name says.
    #[error("the contents of {expected} have the digest {found}")]
    WrongDigest {
        /// The digest by which it was named.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// It was called off.
    #[error("it was cancelled")]
    Cancelled,
    /// What was to be stored could not be read.
    #[error("cannot read the contents")]
    Source(#[source] io::Error),
    /// The store's own files failed it.
    #[error(transparent)]
    Library(#[from] LibraryError),
}

impl Blobs {
    /// Open the store below `data_dir`, making it if it is not there, and remove what killed
    /// processes were adding.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, LibraryError> {
        let dir = data_dir.join("blobs");
        create_private_dir(&dir).map_err(LibraryError::io("create", &dir))?;
        let mut blobs = Self { dir, others: Arc::default() };
        blobs.remove_leftovers()?;
        blobs.others = blobs.added()?;
        Ok(blobs)
    }

    /// The directory that holds it all.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a blob is, if it is here.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{BLOB}{}", digest.hex()))
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{PARTIAL}{}", digest.hex()))
    }

    /// Length of a blob; None if it is not here.
    pub(crate) fn bytes(&self, digest: &Digest) -> Option<u64> {
        let metadata = fs::symlink_metadata(self.path(digest)).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// A blob's contents, from their beginning.
    pub(crate) fn contents(&self, digest: &Digest) -> Result<Contents, LibraryError> {
        let path = self.path(digest);
        File::open(&path).map(Contents::of).map_err(LibraryError::io("read", &path))
    }

    /// Store what `contents` gives. With `expected` it must have that digest.
    pub(crate) fn add(
        &self,
        contents: &mut dyn Read,
        expected: Option<&Digest>,
        cancel: &Cancel,
    ) -> Result<(Digest, u64), BlobError> {
        let (temporary, _lock) = self.temporary()?;
        let added = self.fill(&temporary, contents, expected, cancel);
        if added.is_err() {
            // The next opening removes it if this does not.
            let _ = fs::remove_file(&temporary);
        }
        added
    }

    fn fill(
        &self,
        temporary: &Path,
        contents: &mut dyn Read,
        expected: Option<&Digest>,
        cancel: &Cancel,
    ) -> Result<(Digest, u64), BlobError> {
        let write = || LibraryError::io("write", temporary);
        let mut file = File::options().write(true).open(temporary).map_err(write())?;
        let mut hasher = Sha256::new();
        let mut bytes = 0;
        let read = each_chunk(contents, cancel, &mut |chunk| {
            hasher.update(chunk);
            bytes += chunk.len() as u64;
            file.write_all(chunk)
        });
        match read {
            Ok(()) => {}
            Err(Broken::Cancelled) => return Err(BlobError::Cancelled),
            Err(Broken::Read(error)) => return Err(BlobError::Source(error)),
            Err(Broken::Use(error)) => return Err(write()(error).into()),
        }
        let found = Digest::of_sum(hasher.finalize().into());
        if let Some(expected) = expected.filter(|expected| **expected != found) {
            return Err(BlobError::WrongDigest { expected: expected.clone(), found });
        }
        publish(&file, temporary, &self.path(&found))?;
        Ok((found, bytes))
    }

    /// Whether a stored blob still is what its name says.
    pub(crate) fn verify(&self, digest: &Digest, cancel: &Cancel) -> Result<bool, BlobError> {
        let mut hasher = Sha256::new();
        let read = each_chunk(&mut self.contents(digest)?, cancel, &mut |chunk| {
            hasher.update(chunk);
            Ok(())
        });
        match read {
            Ok(()) => Ok(Digest::of_sum(hasher.finalize().into()) == *digest),
            Err(Broken::Cancelled) => Err(BlobError::Cancelled),
            Err(Broken::Read(error) | Broken::Use(error)) => {
                Err(LibraryError::io("read", &self.path(digest))(error).into())
            }
        }
    }

    /// Begin or go on with a download of a blob of `bytes` bytes.
    pub(crate) fn begin(&self, digest: &Digest, bytes: u64) -> Result<Begun, LibraryError> {
        let path = self.partial_path(digest);
        loop {
            if self.bytes(digest) == Some(bytes) {
                return self.contents(digest).map(Begun::Stored);
            }
            let Some(lock) =
                OfdLock::try_acquire(&path).map_err(LibraryError::io("lock", &path))?
            else {
                return Ok(Begun::Busy);
            };
            // Whoever had the lock may have made this file the blob, or removed it.
            if !lock.is_on(&path).map_err(LibraryError::io("lock", &path))? {
                continue;
            }
            match self.bytes(digest) {
                Some(stored) if stored == bytes => remove_file(&path)?,
                // Its length is no secret, so it is damaged.
                Some(_) => self.remove(digest)?,
                None => return Partial::open(&path, &self.path(digest), lock).map(Begun::Partial),
            }
        }
    }

    /// All blobs, sorted.
    pub(crate) fn list(&self) -> Result<Vec<StoredBlob>, LibraryError> {
        self.list_with(BLOB)
    }

    /// All unfinished downloads, sorted.
    pub(crate) fn partials(&self) -> Result<Vec<StoredBlob>, LibraryError> {
        self.list_with(PARTIAL)
    }

    fn list_with(&self, prefix: &str) -> Result<Vec<StoredBlob>, LibraryError> {
        let mut found = Vec::new();
        for name in self.names()? {
            let Some(hex) = name.strip_prefix(prefix) else { continue };
            let Ok(digest) = Digest::parse(&format!("sha256:{hex}")) else { continue };
            let path = self.dir.join(&name);
            // What vanishes meanwhile is not here.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let in_use = is_locked(&path).map_err(LibraryError::io("read", &path))?;
            found.push(StoredBlob { digest, bytes: metadata.len(), in_use });
        }
        found.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(found)
    }

    /// Forget a blob. A missing one is fine; whoever has it open keeps it.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), LibraryError> {
        remove_file(&self.path(digest))?;
        sync_dir(&self.dir).map_err(LibraryError::io("write", &self.dir))
    }

    /// Forget an unfinished download, unless somebody is at it; says whether it is gone.
    pub(crate) fn remove_partial(&self, digest: &Digest) -> Result<bool, LibraryError> {
        remove_unlocked(&self.partial_path(digest))
    }

    /// A new file that nobody else knows, locked.
    fn temporary(&self) -> Result<(PathBuf, OfdLock), LibraryError> {
        loop {
            let path = self.dir.join(format!("{TEMPORARY}{}", random::hex::<8>()));
            let lock = OfdLock::try_acquire(&path).map_err(LibraryError::io("create", &path))?;
            // Somebody who removes leftovers may come between creating and locking.
            if let Some(lock) = lock
                && lock.is_on(&path).map_err(LibraryError::io("create", &path))?
            {
                return Ok((path, lock));
            }
        }
    }

    fn remove_leftovers(&self) -> Result<(), LibraryError> {
        for path in self.added()?.iter() {
            remove_unlocked(path)?;
        }
        Ok(())
    }

    /// What is being added.
    fn added(&self) -> Result<Arc<[PathBuf]>, LibraryError> {
        let names = self.names()?.into_iter().filter(|name| name.starts_with(TEMPORARY));
        Ok(names.map(|name| self.dir.join(name)).collect())
    }

    /// Wait until whoever added blobs when this was opened is done, or dead, and remove what is still there.
    pub(crate) fn outlast_others(&self) -> Result<(), LibraryError> {
        self.others.iter().try_for_each(|path| {
            let _lock = OfdLock::acquire(path).map_err(LibraryError::io("lock", path))?;
            remove_file(path)
        })
    }

    fn names(&self) -> Result<Vec<String>, LibraryError> {
        let entries = fs::read_dir(&self.dir).map_err(LibraryError::io("list", &self.dir))?;
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
        };
        let names: io::Result<Vec<String>> = entries.map(name).collect();
        names.map_err(LibraryError::io("list", &self.dir))
    }
}

impl Contents {
    fn of(file: File) -> Self {
        Self { file: Arc::new(file), at: 0 }
    }
}

impl Read for Contents {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Why a stream was not read to its end.
enum Broken {
    Cancelled,
    Read(io::Error),
    Use(io::Error),
}

/// Read to the end, piece by piece.
fn each_chunk(
    contents: &mut dyn Read,
    cancel: &Cancel,
    on_chunk: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), Broken> {
    let mut buffer = vec![0; CHUNK];
    loop {
        if cancel.is_cancelled() {
            return Err(Broken::Cancelled);
        }
        match contents.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => on_chunk(&buffer[..count]).map_err(Broken::Use)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Broken::Read(error)),
        }
    }
}

/// Give a complete file its name, durably.
fn publish(file: &File, from: &Path, to: &Path) -> Result<(), LibraryError> {
    pass(step::BLOB_PUBLISH)?;
    let dir = to.parent().expect("blobs are in a directory");
    file.sync_all()
        .and_then(|()| fs::rename(from, to))
        .and_then(|()| sync_dir(dir))
        .map_err(LibraryError::io("write", to))
}

fn remove_file(path: &Path) -> Result<(), LibraryError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LibraryError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Remove a file unless somebody has it locked.
fn remove_unlocked(path: &Path) -> Result<bool, LibraryError> {
    // Making a lock would make the file.
    if !path.exists() {
        return Ok(true);
    }
    match OfdLock::try_acquire(path).map_err(LibraryError::io("lock", path))? {
        Some(_lock) => remove_file(path).map(|()| true),
        None => Ok(false),
    }
}
