//! The entries in the blocks of a directory.
//!
//! Directories with an index are read like those without: its blocks look like ones without entries.

use crate::checksum::Checksum;
use crate::directory::{ENTRY_HEADER_BYTES, TAIL_BYTES, TAIL_TYPE};
use crate::fields::{u16_at, u32_at};

/// Call `each` with the inode and the name of every entry but `.` and `..`. None if the block makes
/// no sense.
pub(super) fn read<E>(
    block: &[u8],
    mut each: impl FnMut(u32, &[u8]) -> Result<(), E>,
) -> Option<Result<(), E>> {
    let mut rest = block;
    while !rest.is_empty() {
        let header = rest.first_chunk::<ENTRY_HEADER_BYTES>()?;
        let inode = u32_at(header, 0);
        let length = length(u16_at(header, 4), block.len());
        if length < ENTRY_HEADER_BYTES || !length.is_multiple_of(4) {
            return None;
        }
        let (entry, after) = rest.split_at_checked(length)?;
        rest = after;
        if inode == 0 {
            continue;
        }
        let name = entry[ENTRY_HEADER_BYTES..].get(..usize::from(header[6]))?;
        if name != b"."
            && name != b".."
            && let Err(error) = each(inode, name)
        {
            return Some(Err(error));
        }
    }
    Some(Ok(()))
}

/// The length of an entry: 65536 does not fit into its field.
fn length(field: u16, block_bytes: usize) -> usize {
    match field {
        0 | u16::MAX if block_bytes > usize::from(u16::MAX) => block_bytes,
        _ => usize::from(field),
    }
}

/// Whether the checksum of a block is right. The blocks of an index have theirs elsewhere, and are
/// not read.
pub(super) fn is_sound(block: &[u8], inode_seed: Checksum) -> bool {
    let (entries, tail) = block.split_at(block.len() - TAIL_BYTES);
    let has_tail = u32_at(tail, 0) == 0
        && usize::from(u16_at(tail, 4)) == TAIL_BYTES
        && (tail[6], tail[7]) == (0, TAIL_TYPE);
    !has_tail || inode_seed.with(entries).is_at(tail, 8)
}
