//! One inode: metadata, and what kind of file it is.

use super::Reader;
use super::budget::Budget;
use crate::checksum::Checksum;
use crate::error::{Error, Place};
use crate::fields::{set_u16, u16_at, u32_at, u64_of};
use crate::inode::{SMALL_BYTES, flags, format};
use crate::tree::{Metadata, Timestamp};
use crate::xattr::{self, Damage};

/// An inode that has been checked.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) number: u32,
    /// Type, without permissions.
    pub(super) format: u16,
    pub(super) bytes: u64,
    /// Where the checksums of its blocks start; None if there are none.
    pub(super) seed: Option<Checksum>,
    /// Whether blocks are mapped by extents.
    pub(super) has_extents: bool,
    /// The roots of the extents, a short symbolic link, or a device number.
    pub(super) map: [u8; 60],
    raw: Vec<u8>,
}

impl Inode {
    pub(super) fn read(reader: &Reader, number: u32) -> Result<Self, Error> {
        let raw = reader.read_inode(number)?;
        let corrupt = |what| Error::corrupt(what, Place::Inode(number));
        let seed = reader.superblock.seed.map(|seed| seed.of_inode(number, u32_at(&raw, 0x64)));
        if seed.is_some_and(|seed| !checksum_is_right(&raw, seed)) {
            return Err(corrupt("its checksum is wrong"));
        }
        if u16_at(&raw, 0x1a) == 0 {
            return Err(corrupt("it has been deleted"));
        }
        let bits = u32_at(&raw, 0x20);
        for (flag, what) in [
            (flags::ENCRYPTED, "encrypted files"),
            (flags::XATTR_VALUE, "attributes in files of their own"),
            (flags::INLINE_DATA, "files whose contents are in their inodes"),
        ] {
            if bits & flag != 0 {
                return Err(Error::Unsupported(what.to_owned()));
            }
        }
        let mut map = [0; 60];
        map.copy_from_slice(&raw[0x28..0x64]);
        Ok(Self {
            number,
            format: u16_at(&raw, 0x0) & format::MASK,
            bytes: u64_of(&raw, 0x4, 0x6c),
            seed,
            has_extents: bits & flags::EXTENTS != 0,
            map,
            raw,
        })
    }

    pub(super) fn corrupt(&self, what: &'static str) -> Error {
        Error::corrupt(what, Place::Inode(self.number))
    }

    /// Its metadata, with the attributes.
    pub(super) fn metadata(&self, reader: &Reader, budget: &mut Budget) -> Result<Metadata, Error> {
        let raw = &self.raw;
        let halves = |low, high| u32::from(u16_at(raw, low)) | u32::from(u16_at(raw, high)) << 16;
        let mut metadata = Metadata {
            mode: u16_at(raw, 0x0) & !format::MASK,
            uid: halves(0x2, 0x78),
            gid: halves(0x18, 0x7a),
            mtime: self.mtime(),
            xattrs: std::collections::BTreeMap::new(),
        };
        let damaged = |damage| match damage {
            Damage::Wrong(what) => self.corrupt(what),
            Damage::ValueInInode => {
                Error::Unsupported("attributes in files of their own".to_owned())
            }
        };
        let end = SMALL_BYTES + self.extra_bytes();
        let region = raw.get(end..).unwrap_or_default();
        xattr::read_inode(region, &mut metadata.xattrs).map_err(damaged)?;
        let block = u64::from(u32_at(raw, 0x68)) | u64::from(u16_at(raw, 0x76)) << 32;
        if block != 0 {
            let mut bytes = vec![0; reader.superblock.block_bytes as usize];
            reader.read_block(block, &mut bytes)?;
            if let Some(seed) = reader.superblock.seed
                && !xattr::block_is_sound(&bytes, block, seed)
            {
                return Err(Error::corrupt("its checksum is wrong", Place::Block(block)));
            }
            xattr::read_block(&bytes, &mut metadata.xattrs).map_err(damaged)?;
        }
        for (name, value) in &metadata.xattrs {
            budget.memory(name.len() + value.len())?;
        }
        Ok(metadata)
    }

    /// How much after the first 128 bytes has fields.
    fn extra_bytes(&self) -> usize {
        if self.raw.len() > SMALL_BYTES + 2 { usize::from(u16_at(&self.raw, 0x80)) } else { 0 }
    }

    fn mtime(&self) -> Timestamp {
        // It was counted as signed before there were more bits.
        let seconds = i64::from(u32_at(&self.raw, 0x10).cast_signed());
        if self.extra_bytes() < 12 || self.raw.len() < SMALL_BYTES + 12 {
            return Timestamp { seconds, nanoseconds: 0 };
        }
        let extra = u32_at(&self.raw, 0x88);
        Timestamp {
            seconds: seconds + (i64::from(extra & 3) << 32),
            nanoseconds: (extra >> 2).min(999_999_999),
        }
    }

    /// The device number that it stands for: major and minor.
    pub(super) fn device(&self) -> (u32, u32) {
        let (old, new) = (u32_at(&self.map, 0), u32_at(&self.map, 4));
        if old != 0 {
            (old >> 8 & 0xff, old & 0xff)
        } else {
            (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00)
        }
    }
}

fn checksum_is_right(raw: &[u8], seed: Checksum) -> bool {
    let mut zeroed = raw.to_vec();
    set_u16(&mut zeroed, 0x7c, 0);
    // The upper half is among the extra fields, if there are so many.
    let has_upper = raw.len() > SMALL_BYTES && u16_at(raw, 0x80) >= 4;
    let mut stored = u32::from(u16_at(raw, 0x7c));
    if has_upper {
        set_u16(&mut zeroed, 0x82, 0);
        stored |= u32::from(u16_at(raw, 0x82)) << 16;
    }
    let checksum = seed.with(&zeroed).value();
    stored == if has_upper { checksum } else { checksum & 0xffff }
}
