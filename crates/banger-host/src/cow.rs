//! A VM's copy-on-write store, `root.cow`: the exception store of a device-mapper snapshot that the
//! guest makes over the image's disk.
//!
//! The guest's kernel writes the store; the host creates it empty, and before each start looks at
//! its header. The format is the kernel's `drivers/md/dm-snap-persistent.c`: one chunk of header
//! (magic, valid flag, version, chunk size, little-endian 32-bit each), then areas of metadata, each
//! followed by the chunks it describes.

mod flatten;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use banger_api::shim::JailUser;

pub use flatten::flatten;

/// `SnAp`, the first four bytes of a used store.
const MAGIC: u32 = 0x7041_6e53;
/// The one version of the format that there is.
const VERSION: u32 = 1;
/// Chunk size of our snapshots in 512-byte sectors: 4 KiB.
const CHUNK_SECTORS: u32 = 8;

/// Size of a store that can hold a copy of every chunk of a disk, and so cannot overflow.
///
/// A metadata area of one chunk describes 256 chunks (16 bytes each), hence 257/256; the rest is
/// for the header and the last, partly used area.
#[must_use]
pub fn store_bytes(disk_bytes: u64) -> u64 {
    const CHUNK_BYTES: u64 = CHUNK_SECTORS as u64 * 512;
    let bytes = disk_bytes + disk_bytes.div_ceil(256) + (1 << 20);
    bytes.div_ceil(CHUNK_BYTES) * CHUNK_BYTES
}

/// Creates an empty, sparse store for a disk of `disk_bytes`. Mode 0600.
///
/// # Errors
/// Of the file system; `AlreadyExists` if there is one: a store is never replaced silently.
pub fn create(path: &Path, disk_bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(store_bytes(disk_bytes))
}

/// Makes a store large enough for a disk of `disk_bytes`, durably. One that is keeps its size: the
/// layout does not depend on that, so a store that a guest has used can grow.
///
/// # Errors
/// Of the file system; `NotFound` if there is none.
pub fn grow(path: &Path, disk_bytes: u64) -> io::Result<()> {
    crate::files::grow(path, store_bytes(disk_bytes))
}

/// Whether no guest has used the store yet.
///
/// # Errors
/// Of the file system.
pub fn is_unused(path: &Path) -> io::Result<bool> {
    let mut magic = [0; 4];
    std::fs::File::open(path)?.read_exact_at(&mut magic, 0)?;
    Ok(magic == [0; 4])
}

/// What the header of a store says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// No guest has used the store yet.
    Fresh,
    /// Good.
    Valid,
    /// An I/O error in the guest cleared the valid flag; the flag was restored and the guest's file
    /// system will replay its journal.
    Repaired,
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CowError {
    /// The file cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// The store.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a copy-on-write store of banger (magic {magic:#x}, version {version}, chunk {chunk_sectors} sectors)", path.display())]
    Foreign {
        /// The store.
        path: std::path::PathBuf,
        /// What stands in place of the magic number.
        magic: u32,
        /// What stands in place of the version.
        version: u32,
        /// What stands in place of the chunk size.
        chunk_sectors: u32,
    },
    /// The file is too short for the disk.
    #[error("{} has {actual} bytes, a disk of this size needs {needed}", path.display())]
    Truncated {
        /// The store.
        path: std::path::PathBuf,
        /// Its size.
        actual: u64,
        /// The size it was made with.
        needed: u64,
    },
}

/// Checks a store before a start, and restores a cleared valid flag.
///
/// # Errors
/// [`CowError`] if the guest could not use it; it is then unchanged.
pub fn check_and_repair(path: &Path, disk_bytes: u64) -> Result<Header, CowError> {
    let io = |source| CowError::Io { path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
    let actual = file.metadata().map_err(io)?.len();
    let needed = store_bytes(disk_bytes);
    if actual < needed {
        return Err(CowError::Truncated { path: path.to_owned(), actual, needed });
    }
    let mut header = [0; 16];
    file.read_exact_at(&mut header, 0).map_err(io)?;
    let field = |index: usize| {
        u32::from_le_bytes(header[index * 4..][..4].try_into().expect("four bytes are four bytes"))
    };
    let (magic, valid, version, chunk_sectors) = (field(0), field(1), field(2), field(3));
    match (magic, valid) {
        // The kernel initialises a store whose magic is zero.
        (0, _) => Ok(Header::Fresh),
        (MAGIC, _) if version != VERSION || chunk_sectors != CHUNK_SECTORS => {
            Err(CowError::Foreign { path: path.to_owned(), magic, version, chunk_sectors })
        }
        (MAGIC, 0) => {
            file.write_all_at(&1_u32.to_le_bytes(), 4).map_err(io)?;
            file.sync_data().map_err(io)?;
            Ok(Header::Repaired)
        }
        (MAGIC, _) => Ok(Header::Valid),
        _ => Err(CowError::Foreign { path: path.to_owned(), magic, version, chunk_sectors }),
    }
}

/// Lets the user of the VMM's jail write a store. Its caller keeps the right to, being root.
///
/// # Errors
/// [`CowError::Io`].
pub fn give_to(path: &Path, user: JailUser) -> Result<(), CowError> {
    std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
        .map_err(|source| CowError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = 8 << 30;

    fn store_with(header: [u32; 4]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("root.cow");
        create(&path, DISK).expect("create");
        let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        let file = OpenOptions::new().write(true).open(&path).expect("open");
        file.write_all_at(&bytes, 0).expect("write");
        (dir, path)
    }

    #[test]
    fn the_store_has_room_for_every_chunk() {
        for disk in [1 << 20, (1 << 30) + 4096, DISK, 1 << 40] {
            let chunks = disk / 4096;
            let areas = chunks.div_ceil(256);
            assert!(store_bytes(disk) / 4096 > chunks + areas + 1, "disk of {disk}");
        }
    }

    #[test]
    fn headers_are_judged() {
        let cases = [
            ([0, 0, 0, 0], Header::Fresh),
            ([MAGIC, 1, 1, 8], Header::Valid),
            ([MAGIC, 0, 1, 8], Header::Repaired),
        ];
        for (header, want) in cases {
            let (_dir, path) = store_with(header);
            assert_eq!(check_and_repair(&path, DISK).expect("usable"), want);
        }
        let (_dir, path) = store_with([MAGIC, 0, 1, 8]);
        check_and_repair(&path, DISK).expect("usable");
        assert_eq!(check_and_repair(&path, DISK).expect("usable"), Header::Valid);
    }

    #[test]
    fn what_is_no_store_is_refused_and_left_alone() {
        for header in [[0x1234, 1, 1, 8], [MAGIC, 1, 2, 8], [MAGIC, 0, 1, 16]] {
            let (_dir, path) = store_with(header);
            let before = std::fs::metadata(&path).expect("stat").modified().expect("mtime");
            assert!(matches!(check_and_repair(&path, DISK), Err(CowError::Foreign { .. })));
            let after = std::fs::metadata(&path).expect("stat").modified().expect("mtime");
            assert_eq!(before, after);
        }
        let (_dir, path) = store_with([0; 4]);
        assert!(matches!(check_and_repair(&path, DISK * 2), Err(CowError::Truncated { .. })));
        grow(&path, DISK * 2).expect("grow");
        check_and_repair(&path, DISK * 2).expect("large enough");
    }
}
