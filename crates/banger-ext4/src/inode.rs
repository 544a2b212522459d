//! Inodes as they are on disk.

use crate::checksum::Checksum;
use crate::disk::Run;
use crate::error::{Error, Place};
use crate::fields::{
    set_u16, set_u32, set_u32_halves, set_u48_parts, set_u64_halves, u16_at, u32_at,
};
use crate::tree::{Metadata, Timestamp};

/// Size of the inodes that are written.
pub(crate) const BYTES: usize = 256;
/// What there is of an inode in every file system.
pub(crate) const SMALL_BYTES: usize = 128;
/// How much of the rest has fields: attributes come after it.
const EXTRA_BYTES: u16 = 32;
/// Where the attributes in the inode begin.
const XATTRS_AT: usize = SMALL_BYTES + EXTRA_BYTES as usize;
/// How much room there is for them.
pub(crate) const XATTR_BYTES: usize = BYTES - XATTRS_AT;

/// The types in a mode.
pub(crate) mod format {
    pub(crate) const MASK: u16 = 0o17_0000;
    pub(crate) const FIFO: u16 = 0o01_0000;
    pub(crate) const CHARACTER: u16 = 0o02_0000;
    pub(crate) const DIRECTORY: u16 = 0o04_0000;
    pub(crate) const BLOCK: u16 = 0o06_0000;
    pub(crate) const FILE: u16 = 0o10_0000;
    pub(crate) const SYMLINK: u16 = 0o12_0000;
    pub(crate) const SOCKET: u16 = 0o14_0000;
}

/// Flags of an inode.
pub(crate) mod flags {
    /// The directory has an index.
    pub(crate) const INDEX: u32 = 0x1000;
    pub(crate) const ENCRYPTED: u32 = 0x800;
    pub(crate) const XATTR_VALUE: u32 = 0x20_0000;
    pub(crate) const INLINE_DATA: u32 = 0x1000_0000;
    /// Blocks are mapped by extents.
    pub(crate) const EXTENTS: u32 = 0x8_0000;
}

/// An inode to be written.
#[derive(Debug, Clone)]
pub(crate) struct Inode {
    /// Type and permissions.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) bytes: u64,
    pub(crate) links: u16,
    /// Blocks of the file system that it takes, with those that say where the others are.
    pub(crate) blocks: u64,
    pub(crate) flags: u32,
    /// The roots of the extents, a short symbolic link, or a device number.
    pub(crate) map: [u8; 60],
    pub(crate) time: Timestamp,
    pub(crate) xattrs: [u8; XATTR_BYTES],
    /// The block with more attributes, or 0.
    pub(crate) xattr_block: u64,
}

impl Inode {
    /// An inode without a type, contents and attributes.
    pub(crate) fn new(metadata: &Metadata, links: u16) -> Self {
        Self {
            mode: metadata.mode & 0o7777,
            uid: metadata.uid,
            gid: metadata.gid,
            bytes: 0,
            links,
            blocks: 0,
            flags: 0,
            map: [0; 60],
            time: metadata.mtime,
            xattrs: [0; XATTR_BYTES],
            xattr_block: 0,
        }
    }

    /// Its bytes as inode `number`.
    pub(crate) fn encode(&self, number: u32, seed: Checksum) -> [u8; BYTES] {
        let mut raw = [0; BYTES];
        set_u16(&mut raw, 0x0, self.mode);
        set_u32_halves(&mut raw, 0x2, 0x78, self.uid);
        set_u32_halves(&mut raw, 0x18, 0x7a, self.gid);
        set_u64_halves(&mut raw, 0x4, 0x6c, self.bytes);
        set_u16(&mut raw, 0x1a, self.links);
        // In units of 512 bytes.
        set_u48_parts(&mut raw, 0x1c, 0x74, self.blocks * (crate::BLOCK / 512));
        set_u32(&mut raw, 0x20, self.flags);
        raw[0x28..0x64].copy_from_slice(&self.map);
        set_u48_parts(&mut raw, 0x68, 0x76, self.xattr_block);
        set_u16(&mut raw, 0x80, EXTRA_BYTES);
        let (seconds, extra) = encode_time(self.time);
        // Change, modification, access, creation: there is one time, and no clock has a say.
        for (at, extra_at) in [(0xc, 0x84), (0x10, 0x88), (0x8, 0x8c), (0x90, 0x94)] {
            set_u32(&mut raw, at, seconds);
            set_u32(&mut raw, extra_at, extra);
        }
        raw[XATTRS_AT..].copy_from_slice(&self.xattrs);
        let checksum = seed.of_inode(number, 0).with(&raw);
        set_u32_halves(&mut raw, 0x7c, 0x82, checksum.value());
        raw
    }
}

/// The lower 32 bits of the seconds, and a field with two more and the nanoseconds. What is before
/// 1901 or after 2446 becomes the nearest that can be said.
fn encode_time(time: Timestamp) -> (u32, u32) {
    let first = i64::from(i32::MIN);
    let seconds = time.seconds.clamp(first, first + (1 << 34) - 1);
    let low = seconds.to_le_bytes();
    let low = u32::from_le_bytes([low[0], low[1], low[2], low[3]]);
    // The lower half counts as signed, so these are the steps of 2^32 from it to the time.
    let epochs = u32::try_from((seconds - first) >> 32).expect("clamped to two bits");
    (low, time.nanoseconds.min(999_999_999) << 2 | epochs)
}

/// Where the blocks of a directory are that `mke2fs` has made, from its inode.
pub(crate) fn made_directory(raw: &[u8; BYTES], number: u32, seed: Checksum) -> Result<Run, Error> {
    let mut zeroed = *raw;
    set_u32_halves(&mut zeroed, 0x7c, 0x82, 0);
    let generation = u32_at(raw, 0x64);
    let checksum = u32::from(u16_at(raw, 0x7c)) | u32::from(u16_at(raw, 0x82)) << 16;
    if seed.of_inode(number, generation).with(&zeroed).value() != checksum {
        return Err(Error::corrupt("its checksum is wrong", Place::Inode(number)));
    }
    let (map, depth, extents) = (&raw[0x28..0x64], u16_at(raw, 0x2e), u16_at(raw, 0x2a));
    let plain = u32_at(raw, 0x20) == flags::EXTENTS && (extents, depth) == (1, 0);
    if u16_at(raw, 0x0) & format::MASK != format::DIRECTORY || !plain {
        return Err(Error::NotEmpty);
    }
    let start = u64::from(u16_at(map, 0x12)) << 32 | u64::from(u32_at(map, 0x14));
    Ok(Run { start, blocks: u16_at(map, 0x10).into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_34_bits() {
        let encode = |seconds| encode_time(Timestamp { seconds, nanoseconds: 5 });
        let cases = [
            (0, (0, 0)),
            (-1, (0xffff_ffff, 0)),
            (0x7fff_ffff, (0x7fff_ffff, 0)),
            (0x8000_0000, (0x8000_0000, 1)),
            (-0x8000_0000, (0x8000_0000, 0)),
            (0x3_7fff_ffff, (0x7fff_ffff, 3)),
            (i64::MAX, (0x7fff_ffff, 3)),
            (i64::MIN, (0x8000_0000, 0)),
        ];
        for (seconds, (low, epochs)) in cases {
            assert_eq!(encode(seconds), (low, 5 << 2 | epochs), "{seconds}");
        }
    }
}
