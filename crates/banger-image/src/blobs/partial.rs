//! A blob that is being downloaded.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use banger_api::step;
use banger_core::reference::Digest;
use banger_host::command::Cancel;
use banger_host::lock::OfdLock;
use sha2::{Digest as _, Sha256};

use super::{BlobError, Broken, Contents, each_chunk, publish};
use crate::error::LibraryError;
use crate::stage::pass;

/// The beginning of a blob, which only this value changes.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    target: PathBuf,
    file: File,
    lock: OfdLock,
    hasher: Sha256,
    bytes: u64,
}

/// All of a blob, checked, without its name yet.
#[derive(Debug)]
pub(crate) struct Verified {
    path: PathBuf,
    target: PathBuf,
    file: File,
    _lock: OfdLock,
}

/// What a download has come to.
#[derive(Debug)]
pub(crate) enum Finished {
    /// The blob.
    Whole(Verified),
    /// Something else, of which nothing is kept.
    Wrong {
        /// Empty again.
        partial: Partial,
        /// The digest of what came.
        found: Digest,
    },
}

impl Partial {
    pub(super) fn open(path: &Path, target: &Path, lock: OfdLock) -> Result<Self, LibraryError> {
        pass(step::BLOB_BEGIN)?;
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(LibraryError::io("write", path))?;
        let (path, target) = (path.to_owned(), target.to_owned());
        Ok(Self { path, target, file, lock, hasher: Sha256::new(), bytes: 0 })
    }

    /// Take up what an earlier download left, of a blob that will have `expected` bytes. It is read
    /// once, for the digest.
    pub(crate) fn resume(mut self, expected: u64, cancel: &Cancel) -> Result<Self, BlobError> {
        let left = self.file.metadata().map_err(self.io("read"))?.len();
        if left > expected {
            self.restart()?;
            return Ok(self);
        }
        let Self { file, hasher, bytes, .. } = &mut self;
        let read = each_chunk(file, cancel, &mut |chunk| {
            hasher.update(chunk);
            *bytes += chunk.len() as u64;
            Ok(())
        });
        match read {
            Ok(()) => Ok(self),
            Err(Broken::Cancelled) => Err(BlobError::Cancelled),
            Err(Broken::Read(error) | Broken::Use(error)) => Err(self.io("read")(error).into()),
        }
    }

    /// How much of it is here.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Add the next bytes.
    pub(crate) fn write(&mut self, chunk: &[u8]) -> Result<(), LibraryError> {
        self.file.write_all(chunk).map_err(self.io("write"))?;
        self.hasher.update(chunk);
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    /// Begin again with nothing.
    pub(crate) fn restart(&mut self) -> Result<(), LibraryError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(self.io("write"))?;
        self.hasher = Sha256::new();
        self.bytes = 0;
        Ok(())
    }

    /// Check the digest.
    pub(crate) fn finish(mut self, digest: &Digest) -> Result<Finished, LibraryError> {
        let found = Digest::of_sum(self.hasher.clone().finalize().into());
        if found == *digest {
            let Self { path, target, file, lock, .. } = self;
            return Ok(Finished::Whole(Verified { path, target, file, _lock: lock }));
        }
        self.restart()?;
        Ok(Finished::Wrong { partial: self, found })
    }

    fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> LibraryError + use<> {
        let path = self.path.clone();
        move |source| LibraryError::Io { action, path, source }
    }
}

impl Verified {
    /// Its contents, from their beginning. They can be read before they have a name.
    pub(crate) fn contents(&self) -> Result<Contents, LibraryError> {
        let file = self.file.try_clone().map_err(LibraryError::io("read", &self.path))?;
        Ok(Contents::of(file))
    }

    /// Make it a blob: waits until it is on the disk.
    pub(crate) fn publish(self) -> Result<(), LibraryError> {
        publish(&self.file, &self.path, &self.target)
    }
}
