//! What reading may still take.

use super::Limits;
use crate::error::{Error, Place};

/// What is counted for the structures around each name and attribute.
const OVERHEAD: u64 = 64;

/// What is left of the limits.
#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    left: Limits,
    /// Blocks of directories and of extents: there cannot be more of them than there are blocks.
    blocks: u64,
}

impl Budget {
    pub(super) fn new(limits: Limits, blocks: u64) -> Self {
        Self { limits, left: limits, blocks }
    }

    /// One more file.
    pub(super) fn node(&mut self) -> Result<(), Error> {
        spend(&mut self.left.nodes, 1, "files", self.limits.nodes)
    }

    /// So many bytes, in a structure of their own.
    pub(super) fn memory(&mut self, bytes: usize) -> Result<(), Error> {
        let bytes = (bytes as u64).saturating_add(OVERHEAD);
        spend(&mut self.left.memory, bytes, "bytes of names and other metadata", self.limits.memory)
    }

    /// A file of that size.
    pub(super) fn contents(&mut self, bytes: u64) -> Result<(), Error> {
        spend(&mut self.left.contents, bytes, "bytes in files", self.limits.contents)
    }

    /// One more block that must be read.
    pub(super) fn block(&mut self, number: u64) -> Result<(), Error> {
        let used_twice = Error::corrupt("it is used more than once", Place::Block(number));
        self.blocks = self.blocks.checked_sub(1).ok_or(used_twice)?;
        Ok(())
    }
}

fn spend(left: &mut u64, amount: u64, what: &'static str, limit: u64) -> Result<(), Error> {
    *left = left.checked_sub(amount).ok_or(Error::TooMuch { what, limit })?;
    Ok(())
}
