//! A look at all images of a host, before and after: no machine ever writes to one.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_host::sparse::disk_digest;

/// What a disk is: size, time of the last change, digest.
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

/// What a page of the file is, not whether it takes space: a block that was reserved and never written is a
/// hole or zeros, as the kernel has it in memory or not.
fn look(path: &Path) -> io::Result<Disk> {
    let metadata = std::fs::metadata(path)?;
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    Ok(Disk { bytes: metadata.len(), modified, digest: disk_digest(path)? })
}
