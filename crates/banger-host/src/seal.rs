//! Files that belong together and must be what they were: a guest's memory, its devices, its disks.
//!
//! A seal has the digest of each. Looking whether a file was touched since costs nothing, so the digest
//! is computed again only where one was: by a stranger, a restored backup, a disk that lies.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::sparse::disk_digest;

/// Digests of files in one directory, by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    files: BTreeMap<String, Sealed>,
}

/// A sealed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Sealed {
    bytes: u64,
    sha256: String,
    /// Changes when somebody writes it.
    modified_ns: i128,
    /// Changes when another file takes its place.
    inode: u64,
}

/// Why sealed files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// One is not what was sealed.
    #[error("{name} is not what it was: {reason}")]
    Broken {
        /// The file.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// One cannot be read.
    #[error("{name} cannot be read")]
    Io {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Seal {
    /// Seals the files of those names, after making them durable.
    ///
    /// # Errors
    /// Of the file system.
    pub fn of(dir: &Path, names: &[&str]) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for name in names {
            let path = dir.join(name);
            let file = File::open(&path)?;
            file.sync_all()?;
            let sha256 = disk_digest(&path)?;
            files.insert((*name).to_owned(), Sealed::new(sha256, &file.metadata()?));
        }
        Ok(Self { files })
    }

    /// Makes sure that the files are what was sealed. Gives a new seal where one was touched and is all
    /// the same what it was, as after a copy; with that, the next look costs nothing again.
    ///
    /// # Errors
    /// [`SealError`] names the file.
    pub fn verify(&self, dir: &Path) -> Result<Option<Self>, SealError> {
        let mut renewed = self.clone();
        for (name, sealed) in &self.files {
            let path = dir.join(name);
            let io = |source| SealError::Io { name: name.clone(), source };
            let found = std::fs::metadata(&path).map_err(io)?;
            if Sealed::new(sealed.sha256.clone(), &found) == *sealed {
                continue;
            }
            let broken = |reason| SealError::Broken { name: name.clone(), reason };
            if found.len() != sealed.bytes {
                return Err(broken("it has another size"));
            }
            if disk_digest(&path).map_err(io)? != sealed.sha256 {
                return Err(broken("it has another digest"));
            }
            renewed.files.insert(name.clone(), Sealed::new(sealed.sha256.clone(), &found));
        }
        Ok((renewed != *self).then_some(renewed))
    }
}

impl Sealed {
    fn new(sha256: String, found: &Metadata) -> Self {
        let modified_ns =
            i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        Self { bytes: found.len(), sha256, modified_ns, inode: found.ino() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_touched_is_looked_at_and_what_is_altered_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("memory"), "memory").expect("write");
        fs::write(at("devices"), "devices").expect("write");
        let seal = Seal::of(dir.path(), &["memory", "devices"]).expect("sealed");
        assert_eq!(seal.verify(dir.path()).expect("intact"), None);

        fs::write(at("copy"), "memory").expect("write");
        fs::rename(at("copy"), at("memory")).expect("replace");
        let renewed = seal.verify(dir.path()).expect("the same").expect("another file");
        assert_eq!(renewed.verify(dir.path()).expect("intact"), None);

        for (contents, reason) in [("memorY", "another digest"), ("memor", "another size")] {
            fs::write(at("memory"), contents).expect("write");
            let error = renewed.verify(dir.path()).expect_err("refused").to_string();
            assert!(error.starts_with("memory ") && error.ends_with(reason), "{error}");
        }
        fs::remove_file(at("memory")).expect("remove");
        let error = renewed.verify(dir.path()).expect_err("refused");
        assert!(matches!(error, SealError::Io { .. }), "{error}");
    }
}
