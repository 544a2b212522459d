//! What can go wrong with a disk.

use std::io;

/// Why a disk could not be filled or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk's file cannot be read or written.
    #[error("cannot read or write the disk")]
    Io(#[source] io::Error),
    /// What was to be written could not be read.
    #[error("cannot read what is to be written")]
    Source(#[source] io::Error),
    /// There are no free blocks left.
    #[error("the disk is full: its {bytes} bytes do not hold all the files")]
    NoSpace {
        /// Size of the disk.
        bytes: u64,
    },
    /// There are more files than inodes.
    #[error("the disk can hold {inodes} files, and there are {files}")]
    NoInodes {
        /// How many files it can hold.
        inodes: u64,
        /// How many there are.
        files: u64,
    },
    /// The contents ended early.
    #[error("the contents of a file ended after {got} of {expected} bytes")]
    Short {
        /// How many bytes were announced.
        expected: u64,
        /// How many came.
        got: u64,
    },
    /// A file is larger than ext4 allows.
    #[error("a file of {bytes} bytes is larger than ext4 allows")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The parts of a sparse file overlap, are out of order, or reach beyond its end.
    #[error("the parts of a sparse file are not in order")]
    BadChunks,
    /// An extended attribute that ext4 cannot store.
    #[error("the extended attribute {name:?} cannot be stored: {why}")]
    BadXattr {
        /// Its name; bytes that are no UTF-8 are replaced.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A symbolic link that ext4 cannot store.
    #[error(
        "a symbolic link of {bytes} bytes cannot be stored: it has 1 to 4095, and no zero byte"
    )]
    BadSymlink {
        /// The length of what it says.
        bytes: usize,
    },
    /// A device number that ext4 cannot store.
    #[error("the device number {major}:{minor} is too large")]
    BadDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// The contents of a file are not what this writer has written, or another file's too.
    #[error("a file's contents are not its own blocks on this disk")]
    ForeignContent,
    /// The file system to fill has files.
    #[error("the file system is not empty")]
    NotEmpty,
    /// A file system that this crate does not understand.
    #[error("the file system has {0}, which banger does not support")]
    Unsupported(String),
    /// It was not unmounted.
    #[error("the file system was not unmounted: its journal must be replayed first (e2fsck -p)")]
    NeedsRecovery,
    /// It is damaged, or made to confuse.
    #[error("the file system is damaged: {what} ({place})")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// Where.
        place: Place,
    },
    /// It holds more than the caller wants to read.
    #[error("the file system holds more than the limit of {limit} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl Error {
    pub(crate) fn corrupt(what: &'static str, place: Place) -> Self {
        Self::Corrupt { what, place }
    }
}

/// A place on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The superblock.
    Superblock,
    /// The descriptor of a block group.
    Group(u64),
    /// An inode.
    Inode(u32),
    /// A block of the disk.
    Block(u64),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Superblock => write!(f, "superblock"),
            Self::Group(number) => write!(f, "block group {number}"),
            Self::Inode(number) => write!(f, "inode {number}"),
            Self::Block(number) => write!(f, "block {number}"),
        }
    }
}
