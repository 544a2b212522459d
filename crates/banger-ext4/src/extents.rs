//! Extents: which blocks of the disk are which blocks of a file.

use crate::BLOCK_BYTES;
use crate::checksum::Checksum;
use crate::disk::Disk;
use crate::error::Error;
use crate::fields::{set_u16, set_u32, set_u32_halves, set_u48_parts};
use crate::tree::Extent;

pub(crate) const MAGIC: u16 = 0xf30a;
pub(crate) const HEADER_BYTES: usize = 12;
pub(crate) const ENTRY_BYTES: usize = 12;
/// Entries in an inode.
const ROOT_ENTRIES: usize = 4;
/// Entries in a block, which has a checksum after them.
const BLOCK_ENTRIES: usize = (BLOCK_BYTES - HEADER_BYTES - 4) / ENTRY_BYTES;
/// Blocks of one extent: more would say that they are not initialised.
pub(crate) const MAX_BLOCKS: u32 = 32_768;

type Entry = [u8; ENTRY_BYTES];

/// Write what an inode needs to find its blocks. Answers what goes into the inode, and how many more
/// blocks it took.
pub(crate) fn write(
    disk: &mut Disk,
    extents: &[Extent],
    inode_seed: Checksum,
) -> Result<([u8; 60], u64), Error> {
    let mut entries: Vec<Entry> = extents.iter().flat_map(pieces).map(leaf_entry).collect();
    let mut depth = 0;
    let mut taken = 0;
    while entries.len() > ROOT_ENTRIES {
        let mut above = Vec::with_capacity(entries.len().div_ceil(BLOCK_ENTRIES));
        for part in entries.chunks(BLOCK_ENTRIES) {
            let block = disk.allocate_one()?;
            disk.put(block, &node_block(part, depth, inode_seed))?;
            above.push(index_entry(part, block));
            taken += 1;
        }
        entries = above;
        depth += 1;
    }
    let mut root = [0; 60];
    node(&mut root, &entries, ROOT_ENTRIES, depth);
    Ok((root, taken))
}

/// The extent in parts that can be written.
fn pieces(extent: &Extent) -> impl Iterator<Item = Extent> {
    let extent = *extent;
    (0..extent.blocks).step_by(MAX_BLOCKS as usize).map(move |from| Extent {
        logical: extent.logical + from,
        physical: extent.physical + u64::from(from),
        blocks: MAX_BLOCKS.min(extent.blocks - from),
    })
}

fn leaf_entry(extent: Extent) -> Entry {
    let mut entry = [0; ENTRY_BYTES];
    set_u32(&mut entry, 0, extent.logical);
    // Not more than 32768. The upper half goes where the next field overwrites it.
    set_u32_halves(&mut entry, 4, 6, extent.blocks);
    set_u48_parts(&mut entry, 8, 6, extent.physical);
    entry
}

fn index_entry(below: &[Entry], block: u64) -> Entry {
    let mut entry = [0; ENTRY_BYTES];
    entry[..4].copy_from_slice(&below[0][..4]);
    set_u48_parts(&mut entry, 4, 8, block);
    entry
}

fn node(bytes: &mut [u8], entries: &[Entry], most: usize, depth: u16) {
    let count = |number: usize| u16::try_from(number).expect("at most 340");
    set_u16(bytes, 0, MAGIC);
    set_u16(bytes, 2, count(entries.len()));
    set_u16(bytes, 4, count(most));
    set_u16(bytes, 6, depth);
    let entries = entries.as_flattened();
    bytes[HEADER_BYTES..HEADER_BYTES + entries.len()].copy_from_slice(entries);
}

fn node_block(entries: &[Entry], depth: u16, inode_seed: Checksum) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    node(&mut bytes, entries, BLOCK_ENTRIES, depth);
    let end = HEADER_BYTES + BLOCK_ENTRIES * ENTRY_BYTES;
    let checksum = inode_seed.with(&bytes[..end]);
    set_u32(&mut bytes, end, checksum.value());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_extents_are_written_in_pieces() {
        let extent = Extent { logical: 5, physical: 1 << 33, blocks: 70_000 };
        let found: Vec<_> = pieces(&extent)
            .map(|piece| (piece.logical, piece.physical - (1 << 33), piece.blocks))
            .collect();
        let expected =
            [(5, 0, 32_768), (32_773, 32_768, 32_768), (65_541, 65_536, 70_000 - 65_536)];
        assert_eq!(found, expected);
    }

    #[test]
    fn fields_are_where_they_should_be() {
        let extent = Extent { logical: 0x0102_0304, physical: 0x0506_0708_090a, blocks: 0x8000 };
        assert_eq!(leaf_entry(extent), [4, 3, 2, 1, 0, 0x80, 6, 5, 10, 9, 8, 7]);
        let index = index_entry(&[leaf_entry(extent)], 0x0506_0708_090a);
        assert_eq!(index, [4, 3, 2, 1, 10, 9, 8, 7, 6, 5, 0, 0]);
    }
}
