//! The tables of inodes, written from the first inode to the last.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::error::Error;
use crate::groups::{GroupInodes, Groups};
use crate::numbers::LOST_FOUND;
use crate::{BLOCK, BLOCK_BYTES, inode};

/// How much is written at once.
const WINDOW_BYTES: usize = 1 << 20;
/// Inodes in a block.
const PER_BLOCK: u32 = 16;

/// Writes inodes in the order of their numbers.
#[derive(Debug)]
pub(crate) struct TableWriter {
    /// Where the table of each group is.
    starts: Vec<u64>,
    per_group: u32,
    groups: Vec<GroupInodes>,
    /// The inodes that have not been written yet, in whole blocks.
    window: Vec<u8>,
    /// The first of them, counted from 0.
    first: u32,
}

impl TableWriter {
    /// Begin with the inodes that `mke2fs` has made.
    pub(crate) fn new(file: &File, groups: &Groups, per_group: u32) -> Result<Self, Error> {
        let starts: Vec<u64> = (0..groups.len()).map(|number| groups.inode_table(number)).collect();
        let mut used = vec![GroupInodes::default(); starts.len()];
        used[0].used = LOST_FOUND - 1;
        let mut window = Vec::with_capacity(WINDOW_BYTES);
        // It has all of them.
        window.resize(BLOCK_BYTES, 0);
        file.read_exact_at(&mut window, starts[0] * BLOCK).map_err(Error::Io)?;
        Ok(Self { starts, per_group, groups: used, window, first: 0 })
    }

    /// Count an inode, and write it unless it is to stay as it is.
    pub(crate) fn put(
        &mut self,
        file: &File,
        number: u32,
        is_directory: bool,
        raw: Option<&[u8; inode::BYTES]>,
    ) -> Result<(), Error> {
        let at = number - 1;
        let group = &mut self.groups[(at / self.per_group) as usize];
        group.used = group.used.max(at % self.per_group + 1);
        group.directories += u32::from(is_directory);
        let Some(raw) = raw else { return Ok(()) };
        let within = (at - self.first) as usize * inode::BYTES;
        let within = if within >= self.window.len() { self.extend(file, at)? } else { within };
        self.window[within..within + inode::BYTES].copy_from_slice(raw);
        Ok(())
    }

    /// Make room for an inode that comes after all others. Answers where it goes.
    fn extend(&mut self, file: &File, at: u32) -> Result<usize, Error> {
        let same_group = at / self.per_group == self.first / self.per_group;
        if !same_group || self.window.len() == WINDOW_BYTES {
            self.flush(file)?;
            self.first = at - at % PER_BLOCK;
        }
        self.window.resize(self.window.len() + BLOCK_BYTES, 0);
        Ok((at - self.first) as usize * inode::BYTES)
    }

    fn flush(&mut self, file: &File) -> Result<(), Error> {
        let start = self.starts[(self.first / self.per_group) as usize] * BLOCK;
        let within = u64::from(self.first % self.per_group) * inode::BYTES as u64;
        file.write_all_at(&self.window, start + within).map_err(Error::Io)?;
        self.window.clear();
        Ok(())
    }

    /// Write the rest. Answers what is in use in each group.
    pub(crate) fn end(mut self, file: &File) -> Result<Vec<GroupInodes>, Error> {
        self.flush(file)?;
        Ok(self.groups)
    }
}
