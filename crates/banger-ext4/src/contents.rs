//! Streaming the contents of a file into blocks.

use std::io::{self, Read};

use crate::disk::{Disk, Run};
use crate::error::Error;
use crate::fields::index;
use crate::tree::{Content, Extent};
use crate::{BLOCK, BLOCK_BYTES};

/// How much is read at once.
pub(crate) const INPUT_BYTES: usize = 1 << 20;

/// A block of zeros.
const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// The contents of one file on their way to the disk.
pub(crate) struct Filling<'a> {
    disk: &'a mut Disk,
    input: &'a mut [u8],
    /// How much of the input is filled.
    filled: usize,
    /// Block of the file at which the input starts.
    logical: u64,
    extents: Vec<Extent>,
}

impl<'a> Filling<'a> {
    /// `input` holds whole blocks.
    pub(crate) fn new(disk: &'a mut Disk, input: &'a mut [u8]) -> Self {
        Self { disk, input, filled: 0, logical: 0, extents: Vec::new() }
    }

    /// Position in the file.
    fn position(&self) -> u64 {
        self.logical * BLOCK + self.filled as u64
    }

    /// Take exactly that many bytes, or answer how many came.
    pub(crate) fn take(&mut self, source: &mut dyn Read, bytes: u64) -> Result<u64, Error> {
        let mut left = bytes;
        while left > 0 {
            if self.filled == self.input.len() {
                self.store()?;
            }
            let end = self.input.len().min(index((self.filled as u64).saturating_add(left)));
            match source.read(&mut self.input[self.filled..end]) {
                Ok(0) => break,
                Ok(count) => {
                    self.filled += count;
                    left -= count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Source(error)),
            }
        }
        Ok(bytes - left)
    }

    /// Go on at that position, which is not before the present one; between are zeros.
    pub(crate) fn skip_to(&mut self, position: u64) -> Result<(), Error> {
        let ahead = position - self.position();
        if ahead < (self.input.len() - self.filled) as u64 {
            let end = self.filled + index(ahead);
            self.input[self.filled..end].fill(0);
            self.filled = end;
            return Ok(());
        }
        self.pad();
        self.store()?;
        self.logical = position / BLOCK;
        self.filled = index(position % BLOCK);
        self.input[..self.filled].fill(0);
        Ok(())
    }

    fn pad(&mut self) {
        let end = self.filled.next_multiple_of(BLOCK_BYTES);
        self.input[self.filled..end].fill(0);
        self.filled = end;
    }

    /// Write the rest.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.pad();
        self.store()
    }

    /// Where it all is, after a flush.
    pub(crate) fn into_content(mut self, bytes: u64) -> Content {
        self.extents.shrink_to_fit();
        Content { bytes, extents: self.extents }
    }

    /// Give all blocks back.
    pub(crate) fn abandon(self) {
        for extent in self.extents {
            self.disk.free_run(Run { start: extent.physical, blocks: extent.blocks.into() });
        }
    }

    /// Write the blocks that are in the input, those of zeros excepted.
    fn store(&mut self) -> Result<(), Error> {
        debug_assert_eq!(self.filled % BLOCK_BYTES, 0);
        let (blocks, _) = self.input[..self.filled].as_chunks::<BLOCK_BYTES>();
        let count = blocks.len();
        let mut at = 0;
        while at < count {
            let (blocks, _) = self.input[..self.filled].as_chunks::<BLOCK_BYTES>();
            let data = |block: &&[u8; BLOCK_BYTES]| **block != ZEROS;
            let zeros = blocks[at..].iter().take_while(|block| !data(block)).count();
            let run = blocks[at + zeros..].iter().take_while(data).count();
            self.store_run(at + zeros, run)?;
            at += zeros + run;
        }
        self.logical += count as u64;
        self.filled = 0;
        Ok(())
    }

    /// Write that many blocks of the input from a block of it on.
    fn store_run(&mut self, mut first: usize, mut count: usize) -> Result<(), Error> {
        while count > 0 {
            let run = self.disk.allocate(count as u64).ok_or_else(|| self.disk.full())?;
            self.remember(self.logical + first as u64, run)?;
            let blocks = index(run.blocks);
            let bytes = &self.input[first * BLOCK_BYTES..(first + blocks) * BLOCK_BYTES];
            self.disk.put(run.start, bytes)?;
            first += blocks;
            count -= blocks;
        }
        Ok(())
    }

    fn remember(&mut self, logical: u64, run: Run) -> Result<(), Error> {
        let too_large = |_| Error::TooLarge { bytes: logical * BLOCK };
        let logical = u32::try_from(logical).map_err(too_large)?;
        let blocks = u32::try_from(run.blocks).map_err(too_large)?;
        if let Some(last) = self.extents.last_mut()
            && u64::from(last.logical) + u64::from(last.blocks) == u64::from(logical)
            && last.physical + u64::from(last.blocks) == run.start
            && let Some(together) = last.blocks.checked_add(blocks)
        {
            last.blocks = together;
        } else {
            self.extents.push(Extent { logical, physical: run.start, blocks });
        }
        Ok(())
    }
}
