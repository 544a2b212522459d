//! From layers to a root disk, and back.
//!
//! A layer is a tar, mostly compressed, of what it adds to those below it and of what it hides of
//! them. [`Root`] is a disk in the making: the contents of files go straight to their blocks while
//! the layers stream through, everything else is a [`banger_ext4::Tree`] in memory until
//! [`Root::finish`]. Nothing is unpacked on the host's file system, and no path that a stranger
//! chose is ever given to the host's kernel.
//!
//! Layers come from anywhere. What they may make us keep or do is bounded by [`Limits`].

pub(crate) mod compression;
mod digest;
mod error;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod header;
mod merge;
mod path;
mod pax;
mod root;
mod sparse;
pub(crate) mod tar;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod umoci_tests;
mod write;
mod xattrs;

pub use error::LayerError;
pub(crate) use error::shown;
pub(crate) use root::{Layer, Root};
pub(crate) use write::write_layer;

use crate::rootfs::BYTES_PER_INODE;

/// Most files, however large the disk is: each takes some 200 bytes of memory.
const MAX_FILES: usize = 2_000_000;
/// Inodes that no file can have; but for the root, of which every disk has one.
const RESERVED_INODES: usize = 11;

/// What the layers of an image may amount to, all together.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Bytes of their tars, uncompressed.
    pub(crate) bytes: u64,
    /// Entries of their tars.
    pub(crate) entries: usize,
    /// Files at any one time, the root not counted.
    pub(crate) files: usize,
    /// Bytes of one path. More than Linux takes at once, but deep trees have them.
    pub(crate) path: usize,
    /// Directories above a file.
    pub(crate) depth: usize,
    /// Bytes of names, symbolic links and extended attributes: all that is kept in memory and is
    /// not of a fixed size.
    pub(crate) text: u64,
}

impl Limits {
    /// Sensible ones for a disk of that size.
    pub(crate) fn of_disk(bytes: u64) -> Self {
        let inodes = usize::try_from(bytes / BYTES_PER_INODE).unwrap_or(usize::MAX);
        Self {
            // What does not fit on the disk is told soon enough; only zeros and what a higher layer
            // replaces take no room there. An honest stack of layers is a small multiple.
            bytes: bytes.saturating_mul(8),
            entries: MAX_FILES,
            files: inodes.saturating_sub(RESERVED_INODES).min(MAX_FILES),
            path: 16 << 10,
            depth: 1024,
            text: 256 << 20,
        }
    }
}
