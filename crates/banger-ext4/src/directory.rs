//! Directories as they are on disk: entries in blocks, in any order.

use crate::BLOCK_BYTES;
use crate::checksum::Checksum;
use crate::fields::{set_u16, set_u32};
use crate::index;
use crate::name_hash::NameHash;
use crate::tree::Kind;

/// What is before the name of an entry.
pub(crate) const ENTRY_HEADER_BYTES: usize = 8;
/// A block ends with its checksum, in what looks like an entry.
pub(crate) const TAIL_BYTES: usize = 12;
pub(crate) const TAIL_TYPE: u8 = 0xde;
/// What is left for entries.
const ENTRIES_BYTES: usize = BLOCK_BYTES - TAIL_BYTES;

/// Types of files in directory entries.
pub(crate) const TYPE_DIRECTORY: u8 = 2;

/// The type of a file in the directory entry.
pub(crate) fn type_of(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory(_) => TYPE_DIRECTORY,
        Kind::CharacterDevice { .. } => 3,
        Kind::BlockDevice { .. } => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}

/// An entry to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) inode: u32,
    pub(crate) file_type: u8,
}

impl<'a> Entry<'a> {
    pub(crate) fn directory(name: &'a [u8], inode: u32) -> Self {
        Self { name, inode, file_type: TYPE_DIRECTORY }
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.file_type == TYPE_DIRECTORY
    }

    /// The room it takes.
    pub(crate) fn bytes(&self) -> usize {
        (ENTRY_HEADER_BYTES + self.name.len()).next_multiple_of(4)
    }
}

/// A block of entries that is being filled.
#[derive(Debug)]
pub(crate) struct EntryBlock {
    bytes: [u8; BLOCK_BYTES],
    /// Where the last entry is, and where it ends.
    last: usize,
    end: usize,
}

impl EntryBlock {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; BLOCK_BYTES], last: 0, end: 0 }
    }

    /// How much of it is in use.
    pub(crate) fn len(&self) -> usize {
        self.end
    }

    /// Add an entry that fits.
    pub(crate) fn push(&mut self, entry: &Entry<'_>) {
        self.last = self.end;
        self.end += entry.bytes();
        put_entry(&mut self.bytes, self.last, self.end, entry);
    }

    /// The block with its checksum. The last entry has all the room that is left.
    pub(crate) fn seal(mut self, inode_seed: Checksum) -> [u8; BLOCK_BYTES] {
        set_u16(&mut self.bytes, self.last + 4, length(ENTRIES_BYTES - self.last));
        set_u16(&mut self.bytes, ENTRIES_BYTES + 4, length(TAIL_BYTES));
        self.bytes[ENTRIES_BYTES + 7] = TAIL_TYPE;
        let checksum = inode_seed.with(&self.bytes[..ENTRIES_BYTES]);
        set_u32(&mut self.bytes, ENTRIES_BYTES + 8, checksum.value());
        self.bytes
    }
}

/// Put an entry at that place, as long as that it reaches to `end`.
pub(crate) fn put_entry(bytes: &mut [u8], at: usize, end: usize, entry: &Entry<'_>) {
    set_u32(bytes, at, entry.inode);
    set_u16(bytes, at + 4, length(end - at));
    bytes[at + 6] = u8::try_from(entry.name.len()).expect("names have at most 255 bytes");
    bytes[at + 7] = entry.file_type;
    let name = at + ENTRY_HEADER_BYTES;
    bytes[name..name + entry.name.len()].copy_from_slice(entry.name);
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("at most a block of 4096")
}

/// The blocks of a directory with those inodes, its own and its parent's, and whether they have an
/// index: directories of one block need none.
pub(crate) fn blocks(
    inodes: [u32; 2],
    entries: &[Entry<'_>],
    hash: Option<&NameHash>,
    inode_seed: Checksum,
) -> (Vec<u8>, bool) {
    let dots = [Entry::directory(b".", inodes[0]), Entry::directory(b"..", inodes[1])];
    let bytes: usize = dots.iter().chain(entries).map(Entry::bytes).sum();
    let indexed = hash
        .filter(|_| bytes > ENTRIES_BYTES)
        .and_then(|hash| index::indexed(&dots, entries, hash, inode_seed));
    match indexed {
        Some(blocks) => (blocks, true),
        None => (linear(dots.iter().chain(entries), inode_seed), false),
    }
}

fn linear<'a>(entries: impl Iterator<Item = &'a Entry<'a>>, inode_seed: Checksum) -> Vec<u8> {
    let mut blocks = Vec::with_capacity(BLOCK_BYTES);
    let mut block = EntryBlock::new();
    for entry in entries {
        if block.len() + entry.bytes() > ENTRIES_BYTES {
            let full = std::mem::replace(&mut block, EntryBlock::new());
            blocks.extend_from_slice(&full.seal(inode_seed));
        }
        block.push(entry);
    }
    blocks.extend_from_slice(&block.seal(inode_seed));
    blocks
}
