//! Streaming the contents of a file from the disk.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::fields::index;
use crate::tree::{Content, Extent};

/// The contents of a file, holes as zeros.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    file: &'a File,
    block_bytes: u64,
    content: &'a Content,
    position: u64,
    /// The first extent that does not end before the position.
    next: usize,
}

impl<'a> Contents<'a> {
    pub(super) fn new(file: &'a File, block_bytes: u32, content: &'a Content) -> Self {
        Self { file, block_bytes: block_bytes.into(), content, position: 0, next: 0 }
    }

    /// From where to where in the file an extent is.
    fn range(&self, extent: &Extent) -> (u64, u64) {
        let start = u64::from(extent.logical) * self.block_bytes;
        (start, start + u64::from(extent.blocks) * self.block_bytes)
    }
}

impl Read for Contents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.content.bytes.saturating_sub(self.position);
        let extents = &self.content.extents;
        while extents.get(self.next).is_some_and(|extent| self.range(extent).1 <= self.position) {
            self.next += 1;
        }
        let extent = extents.get(self.next);
        let (start, end) = extent.map_or((u64::MAX, u64::MAX), |extent| self.range(extent));
        let most = left.min(buffer.len() as u64);
        let count = match extent {
            Some(extent) if start <= self.position => {
                let part = &mut buffer[..index(most.min(end - self.position))];
                let offset = extent.physical.checked_mul(self.block_bytes);
                let offset = offset.and_then(|at| at.checked_add(self.position - start));
                let count = self.file.read_at(part, offset.ok_or(io::ErrorKind::InvalidInput)?)?;
                if count == 0 && !part.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                count
            }
            _ => {
                let part = &mut buffer[..index(most.min(start - self.position))];
                part.fill(0);
                part.len()
            }
        };
        self.position += count as u64;
        Ok(count)
    }
}

/// The parts of a file that are not holes, as offset and length in bytes.
pub(super) fn chunks(block_bytes: u32, content: &Content) -> Vec<(u64, u64)> {
    let in_bytes = |blocks: u32| u64::from(blocks) * u64::from(block_bytes);
    content
        .extents
        .iter()
        .map(|extent| {
            let start = in_bytes(extent.logical);
            (start, in_bytes(extent.blocks).min(content.bytes.saturating_sub(start)))
        })
        .filter(|(_, length)| *length > 0)
        .collect()
}

/// The contents of a file without its holes.
#[derive(Debug)]
pub(super) struct Data<'a> {
    contents: Contents<'a>,
    chunks: std::vec::IntoIter<(u64, u64)>,
    /// How much of the present chunk is left.
    left: u64,
}

impl<'a> Data<'a> {
    pub(super) fn new(contents: Contents<'a>, chunks: Vec<(u64, u64)>) -> Self {
        Self { contents, chunks: chunks.into_iter(), left: 0 }
    }
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let Some((offset, length)) = self.chunks.next() else { return Ok(0) };
            self.contents.position = offset;
            self.left = length;
        }
        let most = index(self.left.min(buffer.len() as u64));
        let count = self.contents.read(&mut buffer[..most])?;
        self.left -= count as u64;
        Ok(count)
    }
}
