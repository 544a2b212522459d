//! Reading the tree of a file system that somebody else wrote.
//!
//! That somebody may have been a guest that wants to harm its host. So every number is checked
//! before it is used, nothing is followed for ever, and memory is bounded by [`Limits`]. A file
//! system that was not unmounted, or uses features that need more than reading, is refused.

mod budget;
mod contents;
mod entries;
mod map;
mod node;
mod walk;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::checksum::Checksum;
use crate::error::{Error, Place};
use crate::fields::{set_u16, u16_at, u32_at, u64_of};
use crate::groups::has_superblock;
use crate::superblock::{Superblock, incompat, ro_compat, unknown_feature};
use crate::tree::{Content, Tree};

const KNOWN_INCOMPAT: u32 = incompat::FILETYPE
    | incompat::META_BG
    | incompat::EXTENTS
    | incompat::BIT64
    | incompat::FLEX_BG
    | incompat::CSUM_SEED
    | incompat::LARGEDIR;
const KNOWN_RO_COMPAT: u32 = ro_compat::SPARSE_SUPER
    | ro_compat::LARGE_FILE
    | ro_compat::HUGE_FILE
    | ro_compat::UNINIT_BG
    | ro_compat::DIR_NLINK
    | ro_compat::EXTRA_ISIZE
    | ro_compat::QUOTA
    | ro_compat::METADATA_CSUM
    | ro_compat::READONLY
    | ro_compat::PROJECT
    | ro_compat::VERITY
    | ro_compat::ORPHAN_PRESENT;

/// How much of a file system is read at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files, directories included.
    pub nodes: u64,
    /// Memory for names, links, attributes, and for where the contents are, about.
    pub memory: u64,
    /// Sum of the sizes of the files, holes included.
    pub contents: u64,
}

/// Reads an ext4 file system without mounting it.
#[derive(Debug)]
pub struct Reader {
    file: File,
    superblock: Superblock,
}

impl Reader {
    /// Begin with a file, open for reading.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there is no sound file system, [`Error::NeedsRecovery`] if it was not
    /// unmounted, [`Error::Unsupported`], [`Error::Io`].
    pub fn open(file: File) -> Result<Self, Error> {
        let superblock = Superblock::read(&file)?;
        if superblock.incompat() & incompat::RECOVER != 0 {
            return Err(Error::NeedsRecovery);
        }
        let incompat = unknown_feature(superblock.incompat(), KNOWN_INCOMPAT, incompat::NAMES);
        let ro_compat = unknown_feature(superblock.ro_compat(), KNOWN_RO_COMPAT, ro_compat::NAMES);
        match incompat.or(ro_compat) {
            Some(unknown) => Err(Error::Unsupported(unknown)),
            None => Ok(Self { file, superblock }),
        }
    }

    /// Size of its blocks in bytes: [`Content`] counts in them.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        self.superblock.block_bytes
    }

    /// Read all names, metadata, and where the contents are. No two files of the answer have the
    /// same blocks. A `lost+found` as `mke2fs` makes it is left out: every disk has one anyway.
    ///
    /// # Errors
    /// [`Error::TooMuch`] if there is more than the limits allow, [`Error::Corrupt`],
    /// [`Error::Unsupported`], [`Error::Io`].
    pub fn tree(&self, limits: &Limits) -> Result<Tree, Error> {
        walk::tree(self, limits)
    }

    /// The contents of a file of the tree that was read. Holes are zeros.
    pub fn contents<'a>(&'a self, content: &'a Content) -> impl Read + 'a {
        contents::Contents::new(&self.file, self.block_bytes(), content)
    }

    /// The parts of the contents that are not holes, as offset and length in bytes.
    #[must_use]
    pub fn chunks(&self, content: &Content) -> Vec<(u64, u64)> {
        contents::chunks(self.block_bytes(), content)
    }

    /// The contents without their holes, one chunk after the other.
    pub fn data<'a>(&'a self, content: &'a Content) -> impl Read + 'a {
        let contents = contents::Contents::new(&self.file, self.block_bytes(), content);
        contents::Data::new(contents, self.chunks(content))
    }

    /// Read whole blocks of the disk.
    fn read_block(&self, number: u64, bytes: &mut [u8]) -> Result<(), Error> {
        debug_assert_eq!(bytes.len(), self.superblock.block_bytes as usize);
        if number >= self.superblock.blocks || number == 0 {
            return Err(Error::corrupt("it is said to be of use", Place::Block(number)));
        }
        self.read_at(number * u64::from(self.superblock.block_bytes), bytes)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
            // Everything is checked against the size it had. Somebody cut it off.
            io::ErrorKind::UnexpectedEof => {
                Error::corrupt("the file became shorter", Place::Superblock)
            }
            _ => Error::Io(error),
        })
    }

    /// The bytes of an inode, which must exist.
    fn read_inode(&self, number: u32) -> Result<Vec<u8>, Error> {
        let superblock = &self.superblock;
        if number == 0 || number > superblock.inodes {
            return Err(Error::corrupt("there is no such inode", Place::Inode(number)));
        }
        let (group, within) = (
            u64::from((number - 1) / superblock.inodes_per_group),
            u64::from((number - 1) % superblock.inodes_per_group),
        );
        let table = self.inode_table(group)?;
        let block_bytes = u64::from(superblock.block_bytes);
        let inode_bytes = u64::from(superblock.inode_bytes);
        let block = table.checked_add(within * inode_bytes / block_bytes);
        match block {
            Some(block) if block < superblock.blocks => {
                let mut raw = vec![0; usize::from(superblock.inode_bytes)];
                let offset = block * block_bytes + within * inode_bytes % block_bytes;
                self.read_at(offset, &mut raw)?;
                Ok(raw)
            }
            _ => Err(Error::corrupt("its inodes are beyond the end", Place::Group(group))),
        }
    }

    /// The block where the inodes of a group begin.
    fn inode_table(&self, group: u64) -> Result<u64, Error> {
        let superblock = &self.superblock;
        let bytes = u64::from(superblock.descriptor_bytes);
        let per_block = u64::from(superblock.block_bytes) / bytes;
        let block = self.descriptor_block(group, per_block);
        let block = block.filter(|block| *block < superblock.blocks).ok_or(Error::Corrupt {
            what: "its descriptor is beyond the end",
            place: Place::Group(group),
        })?;
        let offset = block * u64::from(superblock.block_bytes) + group % per_block * bytes;
        let mut raw = vec![0; usize::from(superblock.descriptor_bytes)];
        self.read_at(offset, &mut raw)?;
        if let Some(seed) = superblock.seed
            && !descriptor_is_sound(&raw, group, seed)
        {
            return Err(Error::corrupt("its checksum is wrong", Place::Group(group)));
        }
        Ok(if raw.len() >= 64 { u64_of(&raw, 0x8, 0x28) } else { u64::from(u32_at(&raw, 0x8)) })
    }

    /// The block with the descriptor of a group.
    fn descriptor_block(&self, group: u64, per_block: u64) -> Option<u64> {
        let superblock = &self.superblock;
        let first = u64::from(superblock.first_block);
        let at = group / per_block;
        let is_spread = superblock.incompat() & incompat::META_BG != 0
            && at >= u64::from(superblock.first_meta_group());
        if !is_spread {
            return Some(first + 1 + at);
        }
        let group = at * per_block;
        let start = group.checked_mul(u64::from(superblock.blocks_per_group))?;
        start.checked_add(first + u64::from(has_superblock(group)))
    }
}

fn descriptor_is_sound(raw: &[u8], group: u64, seed: Checksum) -> bool {
    let mut zeroed = raw.to_vec();
    set_u16(&mut zeroed, 0x1e, 0);
    let number = group.to_le_bytes();
    let checksum = seed.with(&number[..4]).with(&zeroed).value().to_le_bytes();
    u16_at(raw, 0x1e) == u16::from_le_bytes([checksum[0], checksum[1]])
}
