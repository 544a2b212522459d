//! ext4 disks without mounting them: filling a freshly made one with a tree of files, and reading
//! the tree of one.
//!
//! Root filesystems come as streams of tar entries and go to a disk image. Going through a directory
//! of the host would cost every byte twice, need a user namespace for owners, and trust the host's
//! kernel with paths that strangers chose. Here a path is only ever a key in a [`Tree`].
//!
//! `mke2fs` makes the empty file system, so its layout, features and journal are e2fsprogs' own;
//! this crate only adds files to it.

mod acl;
mod bitmap;
mod checksum;
mod contents;
mod directory;
mod disk;
mod error;
mod extents;
mod fields;
mod finish;
mod groups;
mod index;
mod inode;
mod name_hash;
mod numbers;
mod reader;
mod superblock;
mod table;
mod tree;
mod writer;
mod xattr;

pub use error::{Error, Place};
pub use reader::{Limits, Reader};
pub use tree::{
    Content, Extent, Kind, MAX_LINKS, MAX_NAME, Metadata, Node, NodeId, Timestamp, Tree, TreeError,
};
pub use writer::Writer;
pub use xattr::check_xattrs;

/// Size of the blocks of the disks that are written.
pub(crate) const BLOCK: u64 = 4096;
/// The same, for sizes in memory.
pub(crate) const BLOCK_BYTES: usize = 4096;
