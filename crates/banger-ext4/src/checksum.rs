//! The checksums of ext4: CRC-32C without the inversions at its beginning and end, so that one can
//! be continued with more bytes.

use crate::fields::u32_at;

/// A checksum of what has been added to it so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checksum(u32);

impl Checksum {
    /// Of nothing.
    pub(crate) const START: Self = Self(!0);

    /// One that a superblock says to go on from.
    pub(crate) fn seed(value: u32) -> Self {
        Self(value)
    }

    /// Of these bytes too.
    #[must_use]
    pub(crate) fn with(self, bytes: &[u8]) -> Self {
        Self(!crc32c::crc32c_append(!self.0, bytes))
    }

    /// Where the checksums of an inode, and of the blocks that are only its own, start.
    #[must_use]
    pub(crate) fn of_inode(self, number: u32, generation: u32) -> Self {
        self.with(&number.to_le_bytes()).with(&generation.to_le_bytes())
    }

    pub(crate) fn value(self) -> u32 {
        self.0
    }

    /// Whether it is the one stored at that place.
    pub(crate) fn is_at(self, bytes: &[u8], at: usize) -> bool {
        u32_at(bytes, at) == self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_crc32c_and_can_be_continued() {
        // The check value of the catalogue of CRCs, which has the final inversion.
        assert_eq!(!Checksum::START.with(b"123456789").value(), 0xe306_9283);
        assert_eq!(
            Checksum::START.with(b"1234").with(b"56789"),
            Checksum::START.with(b"123456789")
        );
    }
}
