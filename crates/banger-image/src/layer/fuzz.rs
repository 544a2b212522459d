//! Fuzz targets of layers: a tree in memory, and contents that go nowhere.

use std::io::{self, Read};

use banger_ext4::{Content, Error, NodeId, Tree};

use super::Limits;
use super::compression::decompress;
use super::merge::{Contents, Merge};
use super::sparse::Chunks;
use super::tar::{EntryKind, Stream, TarReader};
use crate::fuzz::UNPACKED;

/// Little, so that the limits are met.
const LIMITS: Limits =
    Limits { bytes: UNPACKED, entries: 500, files: 100, path: 1 << 10, depth: 16, text: 32 << 10 };

/// Takes contents as a disk does, and keeps nothing.
struct Nowhere;

impl Contents for Nowhere {
    fn put(&mut self, data: &mut dyn Read, bytes: u64) -> Result<Content, Error> {
        let read = io::copy(&mut data.take(bytes), &mut io::sink()).map_err(Error::Io)?;
        if read < bytes {
            return Err(Error::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(Content { bytes, extents: Vec::new() })
    }

    fn put_sparse(
        &mut self,
        data: &mut dyn Read,
        bytes: u64,
        chunks: &Chunks,
    ) -> Result<Content, Error> {
        let mut end = 0;
        for (at, length) in chunks {
            assert!(*at >= end && at + length <= bytes, "chunks are in order and in the file");
            end = at + length;
            let read = io::copy(&mut (&mut *data).take(*length), &mut io::sink());
            if read.map_err(Error::Io)? < *length {
                return Err(Error::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(Content { bytes, extents: Vec::new() })
    }

    fn release(&mut self, _: Vec<Content>) {}
}

/// Layers, the lowest first, each with its length before it.
pub(crate) fn layers(data: &[u8]) {
    let (mut tree, mut text) = (Tree::new(), 0);
    let mut rest = data;
    for _ in 0..3 {
        let Some((length, after)) = rest.split_first_chunk::<2>() else { break };
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (layer, after) = after.split_at(length);
        rest = after;
        if apply(layer, &mut tree, &mut text).is_none() {
            break;
        }
    }
    check(&tree);
}

fn apply(layer: &[u8], tree: &mut Tree, text: &mut u64) -> Option<()> {
    let (_, stream) = decompress(layer).ok()?;
    let mut tar = TarReader::new(Stream::new(stream.take(LIMITS.bytes)));
    let mut nowhere = Nowhere;
    let mut merge = Merge::new(tree, &mut nowhere, &LIMITS, text);
    for _ in 0..LIMITS.entries {
        let Some(entry) = tar.next_entry().ok()? else { break };
        merge.entry(entry, &mut tar.data()).ok()?;
    }
    merge.finish();
    Some(())
}

/// Every name leads somewhere, no name is a path, and it all ends within the limits.
fn check(tree: &Tree) {
    assert!(tree.len() <= LIMITS.files + 2, "{} files", tree.len());
    let mut pending: Vec<(NodeId, usize)> = vec![(Tree::ROOT, 0)];
    while let Some((id, depth)) = pending.pop() {
        assert!(depth <= LIMITS.depth + 1, "a directory that is {depth} deep");
        for (name, child) in tree.entries(id).into_iter().flatten() {
            assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0), "a path");
            assert!(**name != *b"." && **name != *b"..", "a way out");
            pending.push((*child, depth + 1));
        }
    }
}

/// The members of a tar.
pub(crate) fn tar(data: &[u8]) {
    let mut tar = TarReader::new(Stream::new(data));
    while let Ok(Some(entry)) = tar.next_entry() {
        if let EntryKind::File { bytes, chunks: Some(chunks) } = &entry.kind {
            let mut end = 0;
            for (at, length) in chunks {
                assert!(*at >= end && at + length <= *bytes, "chunks are in order and in the file");
                end = at + length;
            }
        }
        let read = io::copy(&mut tar.data(), &mut io::sink());
        assert!(read.is_ok_and(|read| read <= data.len() as u64) || tar.take_failure().is_some());
    }
}
