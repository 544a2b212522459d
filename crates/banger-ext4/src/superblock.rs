//! The superblock: how large everything is, and which features are in use.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::checksum::Checksum;
use crate::error::{Error, Place};
use crate::fields::{set_u32, set_u64_halves, u16_at, u32_at, u64_of};
use crate::index::HASH_VERSION;
use crate::name_hash::NameHash;

/// Size of a superblock.
const BYTES: usize = 1024;
/// Where the first one is.
const OFFSET: u64 = 1024;
const MAGIC: u16 = 0xef53;
const CHECKSUM_AT: usize = 0x3fc;

/// A feature that nobody needs to know: directories may have indices.
const DIR_INDEX: u32 = 0x20;

/// Features that a program must know to read the file system.
pub(crate) mod incompat {
    pub(crate) const FILETYPE: u32 = 0x2;
    pub(crate) const RECOVER: u32 = 0x4;
    pub(crate) const META_BG: u32 = 0x10;
    pub(crate) const EXTENTS: u32 = 0x40;
    pub(crate) const BIT64: u32 = 0x80;
    pub(crate) const FLEX_BG: u32 = 0x200;
    pub(crate) const CSUM_SEED: u32 = 0x2000;
    pub(crate) const LARGEDIR: u32 = 0x4000;
    pub(crate) const NAMES: &[(u32, &str)] = &[
        (0x1, "compression"),
        (0x8, "journal_dev"),
        (META_BG, "meta_bg"),
        (0x100, "mmp"),
        (0x400, "ea_inode"),
        (0x1000, "dirdata"),
        (CSUM_SEED, "metadata_csum_seed"),
        (LARGEDIR, "large_dir"),
        (0x8000, "inline_data"),
        (0x1_0000, "encrypt"),
        (0x2_0000, "casefold"),
    ];
}

/// Features that a program must know to write to the file system.
pub(crate) mod ro_compat {
    pub(crate) const SPARSE_SUPER: u32 = 0x1;
    pub(crate) const LARGE_FILE: u32 = 0x2;
    pub(crate) const HUGE_FILE: u32 = 0x8;
    pub(crate) const UNINIT_BG: u32 = 0x10;
    pub(crate) const DIR_NLINK: u32 = 0x20;
    pub(crate) const EXTRA_ISIZE: u32 = 0x40;
    pub(crate) const METADATA_CSUM: u32 = 0x400;
    pub(crate) const QUOTA: u32 = 0x100;
    pub(crate) const READONLY: u32 = 0x1000;
    pub(crate) const PROJECT: u32 = 0x2000;
    pub(crate) const VERITY: u32 = 0x8000;
    pub(crate) const ORPHAN_PRESENT: u32 = 0x1_0000;
    pub(crate) const NAMES: &[(u32, &str)] = &[
        (0x4, "btree_dir"),
        (UNINIT_BG, "uninit_bg"),
        (0x80, "snapshot"),
        (QUOTA, "quota"),
        (0x200, "bigalloc"),
        (0x800, "replica"),
        (READONLY, "read-only"),
        (PROJECT, "project"),
        (0x4000, "shared_blocks"),
        (VERITY, "verity"),
        (ORPHAN_PRESENT, "orphan_present"),
    ];
}

/// A superblock that makes sense.
#[derive(Debug, Clone)]
pub(crate) struct Superblock {
    raw: [u8; BYTES],
    pub(crate) block_bytes: u32,
    pub(crate) blocks: u64,
    /// The first block that belongs to a group: 1 if blocks have 1024 bytes.
    pub(crate) first_block: u32,
    pub(crate) blocks_per_group: u32,
    pub(crate) inodes: u32,
    pub(crate) inodes_per_group: u32,
    pub(crate) inode_bytes: u16,
    pub(crate) descriptor_bytes: u16,
    /// Where the checksums of everything but the superblock start; None if there are none.
    pub(crate) seed: Option<Checksum>,
}

impl Superblock {
    /// Read the first superblock, check that it makes sense and that the file holds all its blocks.
    pub(crate) fn read(file: &File) -> Result<Self, Error> {
        let mut raw = [0; BYTES];
        match file.read_exact_at(&mut raw, OFFSET) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(corrupt("there is no ext4 file system"));
            }
            other => other.map_err(Error::Io)?,
        }
        let superblock = Self::parse(raw)?;
        let length = file.metadata().map_err(Error::Io)?.len();
        let needed = superblock.blocks.checked_mul(u64::from(superblock.block_bytes));
        if needed.is_none_or(|needed| needed > length) {
            return Err(corrupt("the file is shorter than its file system"));
        }
        Ok(superblock)
    }

    fn parse(raw: [u8; BYTES]) -> Result<Self, Error> {
        if u16_at(&raw, 0x38) != MAGIC {
            return Err(corrupt("there is no ext4 file system"));
        }
        let is = |mask| move |features: u32| features & mask != 0;
        let incompat = u32_at(&raw, 0x60);
        let checksums = is(ro_compat::METADATA_CSUM)(u32_at(&raw, 0x64));
        if checksums && !Checksum::START.with(&raw[..CHECKSUM_AT]).is_at(&raw, CHECKSUM_AT) {
            return Err(corrupt("its checksum is wrong"));
        }
        let wide = is(incompat::BIT64)(incompat);
        let log_block_bytes = u32_at(&raw, 0x18);
        let revision = u32_at(&raw, 0x4c);
        if log_block_bytes > 6 || revision == 0 {
            return Err(corrupt("its block size or its revision is unknown"));
        }
        let seed = match is(incompat::CSUM_SEED)(incompat) {
            true => Checksum::seed(u32_at(&raw, 0x270)),
            false => Checksum::START.with(&raw[0x68..0x78]),
        };
        let superblock = Self {
            block_bytes: 1024 << log_block_bytes,
            blocks: if wide { u64_of(&raw, 0x4, 0x150) } else { u64::from(u32_at(&raw, 0x4)) },
            first_block: u32_at(&raw, 0x14),
            blocks_per_group: u32_at(&raw, 0x20),
            inodes: u32_at(&raw, 0x0),
            inodes_per_group: u32_at(&raw, 0x28),
            inode_bytes: u16_at(&raw, 0x58),
            descriptor_bytes: if wide { u16_at(&raw, 0xfe) } else { 32 },
            seed: checksums.then_some(seed),
            raw,
        };
        superblock.check()?;
        Ok(superblock)
    }

    fn check(&self) -> Result<(), Error> {
        let bytes = self.block_bytes;
        let power = |number: u16, least, most: u32| {
            number.is_power_of_two() && number >= least && u32::from(number) <= most
        };
        let sound = power(self.inode_bytes, 128, bytes)
            && power(self.descriptor_bytes, 32, 1024)
            && (self.incompat() & incompat::BIT64 == 0 || self.descriptor_bytes >= 64)
            && self.blocks > u64::from(self.first_block)
            && self.first_block <= 1
            // Bitmaps have one block.
            && (1..=bytes * 8).contains(&self.inodes_per_group)
            && self.blocks_per_group > 0
            && self.groups().checked_mul(u64::from(self.inodes_per_group))
                == Some(u64::from(self.inodes));
        if sound { Ok(()) } else { Err(corrupt("its sizes contradict each other")) }
    }

    pub(crate) fn incompat(&self) -> u32 {
        u32_at(&self.raw, 0x60)
    }

    pub(crate) fn ro_compat(&self) -> u32 {
        u32_at(&self.raw, 0x64)
    }

    /// How many block groups there are.
    pub(crate) fn groups(&self) -> u64 {
        (self.blocks - u64::from(self.first_block)).div_ceil(u64::from(self.blocks_per_group))
    }

    /// How many blocks there are for more group descriptors.
    pub(crate) fn reserved_descriptor_blocks(&self) -> u16 {
        u16_at(&self.raw, 0xce)
    }

    /// The first block group whose descriptors are in that group.
    pub(crate) fn first_meta_group(&self) -> u32 {
        u32_at(&self.raw, 0x104)
    }

    /// The first inode that may be any file's.
    pub(crate) fn first_inode(&self) -> u32 {
        u32_at(&self.raw, 0x54)
    }

    /// How names are hashed for the indices of directories. None if there are no indices, or not of
    /// a kind that is known.
    pub(crate) fn name_hash(&self) -> Option<NameHash> {
        let is_known = u32_at(&self.raw, 0x5c) & DIR_INDEX != 0 && self.raw[0xfc] == HASH_VERSION;
        // What the kernel that makes the first index would find out otherwise: whether bytes are
        // signed on its machine.
        let signed = match u32_at(&self.raw, 0x160) & 3 {
            1 => true,
            2 => false,
            _ => return None,
        };
        let seed = [0xec, 0xf0, 0xf4, 0xf8].map(|at| u32_at(&self.raw, at));
        is_known.then(|| NameHash::new(seed, signed))
    }

    pub(crate) fn free_inodes(&self) -> u32 {
        u32_at(&self.raw, 0x10)
    }

    /// Write it with other counts of what is free.
    pub(crate) fn write(&mut self, file: &File, blocks: u64, inodes: u32) -> Result<(), Error> {
        set_u64_halves(&mut self.raw, 0xc, 0x158, blocks);
        set_u32(&mut self.raw, 0x10, inodes);
        let checksum = Checksum::START.with(&self.raw[..CHECKSUM_AT]);
        set_u32(&mut self.raw, CHECKSUM_AT, checksum.value());
        file.write_all_at(&self.raw, OFFSET).map_err(Error::Io)
    }
}

/// The name of a feature that is there and not known.
pub(crate) fn unknown_feature(
    features: u32,
    known: u32,
    names: &[(u32, &'static str)],
) -> Option<String> {
    let unknown = features & !known;
    (unknown != 0).then(|| {
        let mask = 1 << unknown.trailing_zeros();
        let name = names.iter().find(|(feature, _)| *feature == mask);
        name.map_or_else(
            || format!("a feature without a name ({mask:#x})"),
            |(_, name)| format!("the feature {name}"),
        )
    })
}

fn corrupt(what: &'static str) -> Error {
    Error::corrupt(what, Place::Superblock)
}
