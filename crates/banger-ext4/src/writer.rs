//! Filling an empty file system.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use crate::bitmap::Bitmap;
use crate::checksum::Checksum;
use crate::contents::{Filling, INPUT_BYTES};
use crate::disk::{Disk, Run};
use crate::error::Error;
use crate::groups::{DESCRIPTOR_BYTES, Groups};
use crate::numbers::{LOST_FOUND, ROOT};
use crate::reader::Reader;
use crate::superblock::{Superblock, incompat, ro_compat, unknown_feature};
use crate::tree::{Content, Tree};
use crate::{BLOCK, BLOCK_BYTES, finish, inode};

/// The most bytes a file can have: blocks are counted in 32 bits.
pub(crate) const MAX_FILE_BYTES: u64 = (1 << 32) * BLOCK - BLOCK;

const NEEDED_INCOMPAT: u32 =
    incompat::FILETYPE | incompat::EXTENTS | incompat::BIT64 | incompat::FLEX_BG;
const NEEDED_RO_COMPAT: u32 = ro_compat::SPARSE_SUPER
    | ro_compat::LARGE_FILE
    | ro_compat::HUGE_FILE
    | ro_compat::DIR_NLINK
    | ro_compat::EXTRA_ISIZE
    | ro_compat::METADATA_CSUM;

/// Fills an empty file system that `mke2fs` has made.
///
/// Contents come first and go to the disk at once; [`Writer::finish`] then writes the names and
/// everything else from a [`Tree`]. Before that, the disk is an empty file system still, with
/// rubbish in its free blocks.
///
/// The file system must have blocks of 4096 bytes, inodes of 256, and the features `filetype`,
/// `extent`, `64bit`, `flex_bg`, `sparse_super`, `large_file`, `huge_file`, `dir_nlink`,
/// `extra_isize` and `metadata_csum`; it may have a journal, `resize_inode` and `dir_index`. Its
/// inode tables must have been zeroed (`lazy_itable_init=0`).
///
/// The same calls on the same empty file system give the same bytes.
#[derive(Debug)]
pub struct Writer {
    pub(crate) disk: Disk,
    pub(crate) superblock: Superblock,
    pub(crate) groups: Groups,
    pub(crate) seed: Checksum,
    /// The blocks in use without any of ours.
    pub(crate) base: Bitmap,
    /// The blocks in use when this began.
    pub(crate) before: Bitmap,
    /// The blocks of the `lost+found` that is there.
    pub(crate) lost_found: Run,
    input: Vec<u8>,
}

impl Writer {
    /// Begin with a file, open for reading and writing, that `mke2fs` has made an empty file
    /// system in.
    ///
    /// # Errors
    /// [`Error::Unsupported`] and [`Error::NotEmpty`] if it is something else, [`Error::Corrupt`]
    /// if it is damaged, [`Error::Io`].
    pub fn open(file: File) -> Result<Self, Error> {
        let superblock = Superblock::read(&file)?;
        let seed = check_supported(&superblock)?;
        if superblock.inodes.checked_sub(superblock.free_inodes()) != Some(LOST_FOUND) {
            return Err(Error::NotEmpty);
        }
        let (groups, before) = Groups::read(&file, &superblock, seed)?;
        let mut base = before.clone();
        let table = groups.inode_table(0);
        let made = |number| made_directory(&file, table, number, seed);
        let (root, lost_found) = (made(ROOT)?, made(LOST_FOUND)?);
        for run in [root, lost_found] {
            if !base.covers(run.start, run.blocks) {
                return Err(Error::NotEmpty);
            }
        }
        // The root directory will be made anew.
        base.remove(root.start, root.blocks);
        // What is free before lost+found is too little for most files to be in one piece.
        let disk = Disk::new(file, base.clone(), lost_found.start);
        Ok(Self {
            disk,
            superblock,
            groups,
            seed,
            base,
            before,
            lost_found,
            input: vec![0; INPUT_BYTES],
        })
    }

    /// Write the contents of a file: exactly `bytes` of them. Blocks of zeros become holes.
    ///
    /// # Errors
    /// [`Error::Short`] if there are fewer, [`Error::Source`] if they cannot be read,
    /// [`Error::NoSpace`], [`Error::TooLarge`], [`Error::Io`]. Nothing is kept then, and the writer
    /// can be used further.
    pub fn write(&mut self, contents: &mut dyn Read, bytes: u64) -> Result<Content, Error> {
        self.write_sparse(bytes, &[(0, bytes)], contents)
    }

    /// Write the contents of a file of `bytes`, of which only some parts are in `data`: `chunks` says
    /// the offset and the length of each, in order and without overlap. The rest is holes.
    ///
    /// # Errors
    /// As [`Writer::write`], and [`Error::BadChunks`].
    pub fn write_sparse(
        &mut self,
        bytes: u64,
        chunks: &[(u64, u64)],
        data: &mut dyn Read,
    ) -> Result<Content, Error> {
        if bytes > MAX_FILE_BYTES {
            return Err(Error::TooLarge { bytes });
        }
        check_chunks(bytes, chunks)?;
        let mut filling = Filling::new(&mut self.disk, &mut self.input);
        match fill(&mut filling, chunks, data) {
            Ok(()) => Ok(filling.into_content(bytes)),
            Err(error) => {
                filling.abandon();
                Err(error)
            }
        }
    }

    /// Write the contents of a file of another disk, without its holes.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn copy(&mut self, reader: &Reader, content: &Content) -> Result<Content, Error> {
        let chunks = reader.chunks(content);
        self.write_sparse(content.bytes, &chunks, &mut reader.data(content))
    }

    /// Use the blocks of contents that no file of the final tree will have for something else.
    pub fn release(&mut self, dropped: Vec<Content>) {
        for extent in dropped.into_iter().flat_map(|content| content.extents) {
            let run = Run { start: extent.physical, blocks: extent.blocks.into() };
            // Nobody can give back what was not theirs: that would be found in the end anyway.
            if self.owns(run) {
                self.disk.free_run(run);
            }
        }
    }

    /// Whether all these blocks have been given to contents.
    pub(crate) fn owns(&self, run: Run) -> bool {
        self.disk.used().covers(run.start, run.blocks)
            && !self.base.intersects(run.start, run.blocks)
    }

    /// Write the tree and everything else. All contents in it must be this writer's, each in one
    /// file only. What was written and is not in the tree becomes a hole of the disk's file.
    ///
    /// Nothing is synced; that is the caller's choice.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::NoInodes`], [`Error::BadXattr`], [`Error::BadSymlink`],
    /// [`Error::BadDevice`], [`Error::ForeignContent`], [`Error::Io`]. The disk is of no use then.
    pub fn finish(self, tree: &Tree) -> Result<(), Error> {
        finish::finish(self, tree)
    }
}

fn check_supported(superblock: &Superblock) -> Result<Checksum, Error> {
    let unsupported = |what: &str| Err(Error::Unsupported(what.to_owned()));
    if superblock.incompat() & incompat::RECOVER != 0 {
        return Err(Error::NeedsRecovery);
    }
    let known = NEEDED_INCOMPAT | incompat::CSUM_SEED;
    let unknown = unknown_feature(superblock.incompat(), known, incompat::NAMES)
        .or_else(|| unknown_feature(superblock.ro_compat(), NEEDED_RO_COMPAT, ro_compat::NAMES));
    if let Some(unknown) = unknown {
        return Err(Error::Unsupported(unknown));
    }
    let lacks = superblock.incompat() & NEEDED_INCOMPAT != NEEDED_INCOMPAT
        || superblock.ro_compat() & NEEDED_RO_COMPAT != NEEDED_RO_COMPAT;
    let Some(seed) = superblock.seed.filter(|_| !lacks) else {
        return unsupported("too few features");
    };
    if superblock.block_bytes as usize != BLOCK_BYTES
        || usize::from(superblock.inode_bytes) != inode::BYTES
        || usize::from(superblock.descriptor_bytes) != DESCRIPTOR_BYTES
        || !superblock.blocks_per_group.is_multiple_of(64)
        || superblock.blocks_per_group > 8 * superblock.block_bytes
        || !superblock.inodes_per_group.is_multiple_of(16)
    {
        return unsupported("blocks, inodes or groups of another size");
    }
    if superblock.first_inode() != LOST_FOUND {
        return unsupported("another number of reserved inodes");
    }
    Ok(seed)
}

fn made_directory(file: &File, table: u64, number: u32, seed: Checksum) -> Result<Run, Error> {
    let mut raw = [0; inode::BYTES];
    let at = table * BLOCK + u64::from(number - 1) * inode::BYTES as u64;
    file.read_exact_at(&mut raw, at).map_err(Error::Io)?;
    inode::made_directory(&raw, number, seed)
}

fn check_chunks(bytes: u64, chunks: &[(u64, u64)]) -> Result<(), Error> {
    let mut end = 0;
    for (offset, length) in chunks {
        if *offset < end {
            return Err(Error::BadChunks);
        }
        end = offset.checked_add(*length).ok_or(Error::BadChunks)?;
    }
    if end <= bytes { Ok(()) } else { Err(Error::BadChunks) }
}

fn fill(
    filling: &mut Filling<'_>,
    chunks: &[(u64, u64)],
    data: &mut dyn Read,
) -> Result<(), Error> {
    let expected = chunks.iter().map(|(_, length)| length).sum();
    let mut got = 0;
    for (offset, length) in chunks.iter().filter(|(_, length)| *length > 0) {
        filling.skip_to(*offset)?;
        let taken = filling.take(data, *length)?;
        got += taken;
        if taken < *length {
            return Err(Error::Short { expected, got });
        }
    }
    filling.flush()
}
