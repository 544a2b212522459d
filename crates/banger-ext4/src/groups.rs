//! Block groups, for writing: their descriptors and bitmaps.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::bitmap::Bitmap;
use crate::checksum::Checksum;
use crate::error::{Error, Place};
use crate::fields::{index, set_u16, set_u32_halves, u16_at, u64_of};
use crate::superblock::Superblock;
use crate::{BLOCK, BLOCK_BYTES};

/// Size of a descriptor with the feature `64bit`.
pub(crate) const DESCRIPTOR_BYTES: usize = 64;

const INODES_UNINITIALISED: u16 = 0x1;
const BLOCKS_UNINITIALISED: u16 = 0x2;
const INODE_TABLE_ZEROED: u16 = 0x4;

/// The descriptor of a block group.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    raw: [u8; DESCRIPTOR_BYTES],
}

/// The inodes in use in a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct GroupInodes {
    /// How many: all from the first on.
    pub(crate) used: u32,
    /// How many of them are directories.
    pub(crate) directories: u32,
}

impl Group {
    pub(crate) fn block_bitmap(&self) -> u64 {
        u64_of(&self.raw, 0x0, 0x20)
    }

    pub(crate) fn inode_bitmap(&self) -> u64 {
        u64_of(&self.raw, 0x4, 0x24)
    }

    pub(crate) fn inode_table(&self) -> u64 {
        u64_of(&self.raw, 0x8, 0x28)
    }

    fn flags(&self) -> u16 {
        u16_at(&self.raw, 0x12)
    }

    fn clear_flags(&mut self, flags: u16) {
        let flags = self.flags() & !flags;
        set_u16(&mut self.raw, 0x12, flags);
    }

    fn checksum(&self, seed: Checksum, number: u32) -> u16 {
        let mut raw = self.raw;
        set_u16(&mut raw, 0x1e, 0);
        low_half(seed.with(&number.to_le_bytes()).with(&raw).value())
    }
}

/// All groups of a file system.
#[derive(Debug)]
pub(crate) struct Groups {
    groups: Vec<Group>,
    seed: Checksum,
    blocks: u64,
    blocks_per_group: u64,
    inodes_per_group: u32,
}

impl Groups {
    /// Read the descriptors of a file system with 4 KiB blocks, and its block bitmaps into one.
    pub(crate) fn read(
        file: &File,
        superblock: &Superblock,
        seed: Checksum,
    ) -> Result<(Self, Bitmap), Error> {
        let count = index(superblock.groups());
        let mut raw = vec![0; count * DESCRIPTOR_BYTES];
        file.read_exact_at(&mut raw, BLOCK).map_err(Error::Io)?;
        let (descriptors, _) = raw.as_chunks::<DESCRIPTOR_BYTES>();
        let groups = Self {
            groups: descriptors.iter().map(|raw| Group { raw: *raw }).collect(),
            seed,
            blocks: superblock.blocks,
            blocks_per_group: superblock.blocks_per_group.into(),
            inodes_per_group: superblock.inodes_per_group,
        };
        groups.check(superblock)?;
        let used = groups.read_bitmaps(file, superblock)?;
        Ok((groups, used))
    }

    fn check(&self, superblock: &Superblock) -> Result<(), Error> {
        for (number, group) in (0_u32..).zip(&self.groups) {
            let corrupt = |what| Err(Error::corrupt(what, Place::Group(number.into())));
            if group.checksum(self.seed, number) != u16_at(&group.raw, 0x1e) {
                return corrupt("its checksum is wrong");
            }
            if group.flags() & INODE_TABLE_ZEROED == 0 {
                return Err(Error::Unsupported("inode tables that are not zeroed".to_owned()));
            }
            let table = group.inode_table();
            let last = table.checked_add(self.table_blocks());
            let places = [Some(group.block_bitmap()), Some(group.inode_bitmap()), last];
            if places.iter().any(|place| place.is_none_or(|at| at >= superblock.blocks)) {
                return corrupt("its parts are beyond the end");
            }
        }
        Ok(())
    }

    fn read_bitmaps(&self, file: &File, superblock: &Superblock) -> Result<Bitmap, Error> {
        let mut used = Bitmap::new(self.blocks);
        for (number, group) in (0_u64..).zip(&self.groups) {
            let start = number * self.blocks_per_group;
            if group.flags() & BLOCKS_UNINITIALISED != 0 {
                let overhead = descriptor_copy_blocks(superblock, number).min(self.len_of(number));
                used.insert(start, overhead);
                continue;
            }
            let mut bytes = [0; BLOCK_BYTES];
            let at = group.block_bitmap() * BLOCK;
            file.read_exact_at(&mut bytes, at).map_err(Error::Io)?;
            let bytes = &bytes[..index(self.blocks_per_group / 8)];
            if self.seed.with(bytes).value() != bitmap_checksum_at(&group.raw, 0x18, 0x38) {
                return Err(Error::corrupt("its block bitmap is damaged", Place::Group(number)));
            }
            for block in 0..self.len_of(number) {
                if bytes[index(block / 8)] & 1 << (block % 8) != 0 {
                    used.insert(start + block, 1);
                }
            }
        }
        // Bitmaps and inode tables may be in another group, whose own bitmap does not exist yet.
        for group in &self.groups {
            used.insert(group.block_bitmap(), 1);
            used.insert(group.inode_bitmap(), 1);
            used.insert(group.inode_table(), self.table_blocks());
        }
        Ok(used)
    }

    /// How many blocks a group has: the last one may have fewer than the others.
    fn len_of(&self, number: u64) -> u64 {
        self.blocks_per_group.min(self.blocks - number * self.blocks_per_group)
    }

    fn table_blocks(&self) -> u64 {
        (u64::from(self.inodes_per_group) * crate::inode::BYTES as u64).div_ceil(BLOCK)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The block where the table of a group's inodes starts.
    pub(crate) fn inode_table(&self, number: usize) -> u64 {
        self.groups[number].inode_table()
    }

    /// Write the bitmaps that have changed, and all descriptors.
    pub(crate) fn write(
        &mut self,
        file: &File,
        (before, used): (&Bitmap, &Bitmap),
        inodes: &[GroupInodes],
    ) -> Result<(), Error> {
        for (number, inodes) in (0_u32..).zip(inodes) {
            self.write_blocks(file, number, (before, used), inodes.used > 0)?;
            self.write_inodes(file, number, *inodes)?;
            let group = &mut self.groups[number as usize];
            let checksum = group.checksum(self.seed, number);
            set_u16(&mut group.raw, 0x1e, checksum);
        }
        let raw: Vec<u8> = self.groups.iter().flat_map(|group| group.raw).collect();
        file.write_all_at(&raw, BLOCK).map_err(Error::Io)
    }

    fn write_blocks(
        &mut self,
        file: &File,
        number: u32,
        (before, used): (&Bitmap, &Bitmap),
        has_inodes: bool,
    ) -> Result<(), Error> {
        let start = u64::from(number) * self.blocks_per_group;
        let len = self.len_of(number.into());
        // A group without a bitmap needs none while nothing has been put into it.
        let mut changed = has_inodes;
        let mut free = 0;
        let mut bytes = [0xff; BLOCK_BYTES];
        for first in (0..len).step_by(8) {
            let within = if len - first < 8 { 0xff >> (8 - (len - first)) } else { 0xff };
            let now = used.byte(start + first) & within;
            changed |= now != before.byte(start + first) & within;
            free += (!now & within).count_ones();
            bytes[index(first / 8)] = now | !within;
        }
        if !changed {
            return Ok(());
        }
        let group = &mut self.groups[number as usize];
        group.clear_flags(BLOCKS_UNINITIALISED);
        let covered = index(self.blocks_per_group / 8);
        let checksum = self.seed.with(&bytes[..covered]).value();
        set_u32_halves(&mut group.raw, 0xc, 0x2c, free);
        set_u32_halves(&mut group.raw, 0x18, 0x38, checksum);
        file.write_all_at(&bytes, group.block_bitmap() * BLOCK).map_err(Error::Io)
    }

    fn write_inodes(&mut self, file: &File, number: u32, inodes: GroupInodes) -> Result<(), Error> {
        if inodes.used == 0 {
            return Ok(());
        }
        let group = &mut self.groups[number as usize];
        let mut bytes = [0; BLOCK_BYTES];
        let outside = inodes.used..self.inodes_per_group;
        for bit in 0..u32::try_from(BLOCK_BYTES * 8).expect("32768") {
            if !outside.contains(&bit) {
                bytes[bit as usize / 8] |= 1 << (bit % 8);
            }
        }
        group.clear_flags(INODES_UNINITIALISED);
        let free = self.inodes_per_group - inodes.used;
        let checksum = self.seed.with(&bytes[..self.inodes_per_group as usize / 8]).value();
        set_u32_halves(&mut group.raw, 0xe, 0x2e, free);
        set_u32_halves(&mut group.raw, 0x10, 0x30, inodes.directories);
        set_u32_halves(&mut group.raw, 0x1c, 0x32, free);
        set_u32_halves(&mut group.raw, 0x1a, 0x3a, checksum);
        file.write_all_at(&bytes, group.inode_bitmap() * BLOCK).map_err(Error::Io)
    }
}

/// How many blocks at the beginning of a group are copies of superblock and descriptors, or are
/// reserved for more descriptors.
fn descriptor_copy_blocks(superblock: &Superblock, number: u64) -> u64 {
    if !has_superblock(number) {
        return 0;
    }
    let descriptors = (superblock.groups() * DESCRIPTOR_BYTES as u64).div_ceil(BLOCK);
    1 + descriptors + u64::from(superblock.reserved_descriptor_blocks())
}

/// `sparse_super`: groups 0 and 1 and the powers of 3, 5 and 7 have copies.
pub(crate) fn has_superblock(number: u64) -> bool {
    let power_of = |base: u64| {
        std::iter::successors(Some(base), |power| power.checked_mul(base))
            .take_while(|power| *power <= number)
            .any(|power| power == number)
    };
    number <= 1 || [3, 5, 7].into_iter().any(power_of)
}

fn bitmap_checksum_at(raw: &[u8], low: usize, high: usize) -> u32 {
    u32::from(u16_at(raw, low)) | u32::from(u16_at(raw, high)) << 16
}

fn low_half(value: u32) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_superblock_are_in_few_groups() {
        let with: Vec<u64> = (0..100).filter(|number| has_superblock(*number)).collect();
        assert_eq!(with, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81]);
    }
}
