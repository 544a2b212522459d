//! A look at all images of a host, before and after: no machine ever writes to one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

/// What a disk is: size, time of the last change, digest of what is not a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Disk {
    bytes: u64,
    modified: (i64, i64),
    digest: String,
}

/// The shared disks of a host: images' roots and kernels' modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageGuard {
    disks: BTreeMap<PathBuf, Disk>,
}

impl ImageGuard {
    /// Looks at the images and kernels of a data directory.
    ///
    /// # Panics
    /// If they cannot be read, or there are none.
    #[must_use]
    pub fn of(data: &Path) -> Self {
        let mut disks = BTreeMap::new();
        for kind in ["images", "kernels"] {
            let versions = std::fs::read_dir(data.join(kind)).into_iter().flatten().flatten();
            for version in versions {
                let files = std::fs::read_dir(version.path()).into_iter().flatten().flatten();
                for file in files.map(|file| file.path()) {
                    if file.extension().is_some_and(|extension| extension == "ext4") {
                        let disk =
                            look(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
                        disks.insert(file, disk);
                    }
                }
            }
        }
        assert!(!disks.is_empty(), "there is no image in {}", data.display());
        Self { disks }
    }

    /// Fails the test if anything has changed.
    ///
    /// # Panics
    /// If so.
    pub fn assert_unchanged(&self, data: &Path) {
        assert_eq!(self, &Self::of(data), "a machine has changed an image");
    }
}

fn look(path: &Path) -> io::Result<Disk> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let (mut at, size) = (0, i64::try_from(metadata.len()).map_err(io::Error::other)?);
    while at < size {
        let begin = match lseek(&file, at, Whence::SeekData) {
            Ok(begin) => begin,
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = lseek(&file, begin, Whence::SeekHole)?;
        sum.update(begin.to_le_bytes());
        at = begin;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let offset = u64::try_from(at).map_err(io::Error::other)?;
            let count = file.read_at(&mut buffer[..wanted], offset)?;
            sum.update(&buffer[..count]);
            at += i64::try_from(count.max(1)).map_err(io::Error::other)?;
        }
    }
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    Ok(Disk { bytes: metadata.len(), modified, digest: hex::encode(sum.finalize()) })
}
