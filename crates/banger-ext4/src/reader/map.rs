//! Where the blocks of a file are, from the extents in its inode.

use super::Reader;
use super::budget::Budget;
use super::node::Inode;
use crate::error::{Error, Place};
use crate::extents::{ENTRY_BYTES, HEADER_BYTES, MAGIC, MAX_BLOCKS};
use crate::fields::{u16_at, u32_at};
use crate::tree::Extent;

/// Most levels of blocks under an inode.
const MAX_DEPTH: u16 = 5;
/// The blocks of a file are counted in 32 bits.
const END: u64 = 1 << 32;

/// The blocks that a file has for itself: what may not be another file's too.
#[derive(Debug, Default)]
pub(super) struct Claims(Vec<(u64, u32)>);

impl Claims {
    fn add(&mut self, start: u64, blocks: u32) {
        self.0.push((start, blocks));
    }

    /// Check that no block is claimed twice.
    pub(super) fn check(mut self) -> Result<(), Error> {
        self.0.sort_unstable();
        let mut end = 0;
        for (start, blocks) in self.0 {
            if start < end {
                return Err(Error::corrupt("it belongs to two files", Place::Block(start)));
            }
            end = start + u64::from(blocks);
        }
        Ok(())
    }
}

/// What is needed to find the blocks of files.
pub(super) struct Mapping<'a> {
    pub(super) reader: &'a Reader,
    pub(super) budget: &'a mut Budget,
    pub(super) claims: &'a mut Claims,
}

/// The extents of a file, without those beyond its size and those that read as zeros.
pub(super) fn extents(mapping: Mapping<'_>, inode: &Inode) -> Result<Vec<Extent>, Error> {
    if !inode.has_extents {
        return match inode.map.iter().all(|byte| *byte == 0) {
            true => Ok(Vec::new()),
            false => Err(Error::Unsupported("files in the format of ext2".to_owned())),
        };
    }
    let depth = u16_at(&inode.map, 6);
    if depth > MAX_DEPTH {
        return Err(inode.corrupt("its extents are too deep"));
    }
    let mut mapper = Mapper { mapping, inode, extents: Vec::new() };
    mapper.node(&inode.map, depth, (0, END))?;
    mapper.extents.shrink_to_fit();
    Ok(mapper.extents)
}

/// Reads the extents of one file.
struct Mapper<'a> {
    mapping: Mapping<'a>,
    inode: &'a Inode,
    extents: Vec<Extent>,
}

impl Mapper<'_> {
    /// Read a node of the tree of extents, which maps blocks of that range.
    fn node(&mut self, bytes: &[u8], depth: u16, range: (u64, u64)) -> Result<(), Error> {
        let (count, most) = (usize::from(u16_at(bytes, 2)), usize::from(u16_at(bytes, 4)));
        let entries = bytes[HEADER_BYTES..].as_chunks::<ENTRY_BYTES>().0;
        let sound = u16_at(bytes, 0) == MAGIC
            && u16_at(bytes, 6) == depth
            && count <= most
            && most <= entries.len();
        if !sound {
            return Err(self.inode.corrupt("its extents make no sense"));
        }
        let entries = &entries[..count];
        if depth == 0 {
            return self.leaf(entries, range);
        }
        let starts = entries.iter().map(|entry| u64::from(u32_at(entry, 0)));
        let ends = starts.clone().skip(1).chain([range.1]);
        for ((entry, start), end) in entries.iter().zip(starts).zip(ends) {
            if start < range.0 || start >= end || end > range.1 {
                return Err(self.inode.corrupt("its extents are out of order"));
            }
            let block = u64::from(u32_at(entry, 4)) | u64::from(u16_at(entry, 8)) << 32;
            let bytes = self.block(block)?;
            self.node(&bytes, depth - 1, (start, end))?;
        }
        Ok(())
    }

    fn block(&mut self, number: u64) -> Result<Vec<u8>, Error> {
        let Mapping { reader, budget, claims } = &mut self.mapping;
        budget.block(number)?;
        budget.memory(0)?;
        let mut bytes = vec![0; reader.block_bytes() as usize];
        reader.read_block(number, &mut bytes)?;
        claims.add(number, 1);
        let end = HEADER_BYTES + usize::from(u16_at(&bytes, 4)) * ENTRY_BYTES;
        if let Some(seed) = self.inode.seed
            && (end + 4 > bytes.len() || !seed.with(&bytes[..end]).is_at(&bytes, end))
        {
            return Err(Error::corrupt("its checksum is wrong", Place::Block(number)));
        }
        Ok(bytes)
    }

    fn leaf(
        &mut self,
        entries: &[[u8; ENTRY_BYTES]],
        (mut from, to): (u64, u64),
    ) -> Result<(), Error> {
        let size = self.inode.bytes.div_ceil(u64::from(self.mapping.reader.block_bytes()));
        for entry in entries {
            let (logical, length) = (u32_at(entry, 0), u32::from(u16_at(entry, 4)));
            let physical = u64::from(u32_at(entry, 8)) | u64::from(u16_at(entry, 6)) << 32;
            // Longer ones have space, but nothing has been written there.
            let (blocks, is_written) = match length {
                0..=MAX_BLOCKS => (length, true),
                _ => (length - MAX_BLOCKS, false),
            };
            let start = u64::from(logical);
            let end = start + u64::from(blocks);
            if blocks == 0 || start < from || end > to {
                return Err(self.inode.corrupt("its extents are out of order"));
            }
            let last = physical.checked_add(blocks.into());
            if physical == 0 || last.is_none_or(|last| last > self.mapping.reader.superblock.blocks)
            {
                return Err(self.inode.corrupt("its contents are beyond the end"));
            }
            from = end;
            if is_written && start < size {
                let blocks = u32::try_from((size - start).min(blocks.into())).unwrap_or(blocks);
                self.add(Extent { logical, physical, blocks })?;
            }
        }
        Ok(())
    }

    /// Add an extent, to the one before it if they are one.
    fn add(&mut self, extent: Extent) -> Result<(), Error> {
        self.mapping.claims.add(extent.physical, extent.blocks);
        // The claim takes memory in any case.
        self.mapping.budget.memory(size_of::<Extent>())?;
        if let Some(last) = self.extents.last_mut()
            && end_of(last) == u64::from(extent.logical)
            && last.physical + u64::from(last.blocks) == extent.physical
            && let Some(together) = last.blocks.checked_add(extent.blocks)
        {
            last.blocks = together;
        } else {
            self.extents.push(extent);
        }
        Ok(())
    }
}

/// The blocks of the disk of consecutive blocks of a file, up to that many. None where a hole is.
pub(super) fn blocks_of(extents: &[Extent], count: u64) -> impl Iterator<Item = Option<u64>> {
    let mut at = 0;
    (0..count).map(move |logical| {
        while extents.get(at).is_some_and(|extent| end_of(extent) <= logical) {
            at += 1;
        }
        let extent = extents.get(at).filter(|extent| u64::from(extent.logical) <= logical)?;
        Some(extent.physical + (logical - u64::from(extent.logical)))
    })
}

fn end_of(extent: &Extent) -> u64 {
    u64::from(extent.logical) + u64::from(extent.blocks)
}
