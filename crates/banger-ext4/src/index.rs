//! Directories with an index: the kernel finds a name in them by its hash, in one or two steps.
//!
//! The first block has the index, or its upper level; then come the blocks of the lower level, if
//! there is one, and then the entries, sorted by the hashes of their names.

use crate::BLOCK_BYTES;
use crate::checksum::Checksum;
use crate::directory::{Entry, EntryBlock, put_entry};
use crate::fields::{set_u16, set_u32};
use crate::name_hash::NameHash;

/// The hash function that the index is made with: half of MD4.
pub(crate) const HASH_VERSION: u8 = 1;

const POINTER_BYTES: usize = 8;
/// What the checksum takes in a block of the index.
const TAIL_BYTES: usize = 8;
/// Where pointers start in the first block: after `.`, `..` and what describes the index.
const ROOT_POINTERS_AT: usize = 32;
/// Where they start in the others.
const NODE_POINTERS_AT: usize = 8;
const ROOT_POINTERS: usize = pointers(ROOT_POINTERS_AT);
const NODE_POINTERS: usize = pointers(NODE_POINTERS_AT);
/// How full blocks are made. The rest is for names that are added later: else each of them would
/// have to split a block first.
const FILL_BYTES: usize = BLOCK_BYTES / 5 * 4;

const fn pointers(start: usize) -> usize {
    (BLOCK_BYTES - start - TAIL_BYTES) / POINTER_BYTES
}

/// The first hash that is in a block, and which block of the directory it is.
#[derive(Debug, Clone, Copy)]
struct Pointer {
    hash: u32,
    block: u32,
}

/// The blocks of a directory with an index, from the entries for itself and its parent and all
/// others; None if there are too many entries for one.
pub(crate) fn indexed(
    dots: &[Entry<'_>; 2],
    entries: &[Entry<'_>],
    hash: &NameHash,
    inode_seed: Checksum,
) -> Option<Vec<u8>> {
    let leaves = leaves(entries, hash);
    let nodes = match leaves.len() {
        0..=ROOT_POINTERS => 0,
        count => count.div_ceil(NODE_POINTERS),
    };
    if nodes > ROOT_POINTERS {
        return None;
    }
    let block = |at: usize| u32::try_from(at).expect("at most 507 times 510");
    let mut pointers: Vec<Pointer> = leaves
        .iter()
        .enumerate()
        .map(|(at, leaf)| Pointer { hash: leaf.hash, block: block(1 + nodes + at) })
        .collect();
    let mut blocks = vec![0; BLOCK_BYTES];
    if nodes > 0 {
        let mut above = Vec::with_capacity(nodes);
        for (at, part) in pointers.chunks(NODE_POINTERS).enumerate() {
            blocks.extend_from_slice(&node(part, inode_seed));
            above.push(Pointer { hash: part[0].hash, block: block(1 + at) });
        }
        pointers = above;
    }
    let root = root(dots, &pointers, u8::from(nodes > 0), inode_seed);
    blocks[..BLOCK_BYTES].copy_from_slice(&root);
    for leaf in leaves {
        blocks.extend_from_slice(&leaf.block.seal(inode_seed));
    }
    Some(blocks)
}

/// A block of entries.
struct Leaf {
    /// The smallest hash in it; odd if the block before has names of that hash too.
    hash: u32,
    block: EntryBlock,
}

fn leaves(entries: &[Entry<'_>], hash: &NameHash) -> Vec<Leaf> {
    let mut sorted: Vec<(u32, &Entry<'_>)> =
        entries.iter().map(|entry| (hash.of(entry.name), entry)).collect();
    sorted.sort_unstable_by_key(|(hash, entry)| (*hash, entry.name));
    let mut leaves: Vec<Leaf> = Vec::new();
    let mut before = None;
    for (hash, entry) in sorted {
        match leaves.last_mut() {
            Some(leaf) if leaf.block.len() + entry.bytes() <= FILL_BYTES => leaf.block.push(entry),
            last => {
                let continued = u32::from(before == Some(hash));
                // Everything below the first hash of the second block is in the first.
                let hash = if last.is_some() { hash | continued } else { 0 };
                let mut leaf = Leaf { hash, block: EntryBlock::new() };
                leaf.block.push(entry);
                leaves.push(leaf);
            }
        }
        before = Some(hash);
    }
    leaves
}

fn root(
    [dot, dot_dot]: &[Entry<'_>; 2],
    pointers: &[Pointer],
    levels: u8,
    inode_seed: Checksum,
) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    put_entry(&mut bytes, 0, dot.bytes(), dot);
    // To who knows nothing of indices, all the rest of the block belongs to this entry.
    put_entry(&mut bytes, dot.bytes(), BLOCK_BYTES, dot_dot);
    let description = ROOT_POINTERS_AT - 8;
    bytes[description + 4] = HASH_VERSION;
    bytes[description + 5] = 8;
    bytes[description + 6] = levels;
    put_pointers(&mut bytes, ROOT_POINTERS_AT, pointers, inode_seed);
    bytes
}

fn node(pointers: &[Pointer], inode_seed: Checksum) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    // An empty entry.
    set_u16(&mut bytes, 4, 4096);
    put_pointers(&mut bytes, NODE_POINTERS_AT, pointers, inode_seed);
    bytes
}

fn put_pointers(
    bytes: &mut [u8; BLOCK_BYTES],
    start: usize,
    list: &[Pointer],
    inode_seed: Checksum,
) {
    let count = |number: usize| u16::try_from(number).expect("at most 510");
    for (at, pointer) in (start..).step_by(POINTER_BYTES).zip(list) {
        set_u32(bytes, at, pointer.hash);
        set_u32(bytes, at + 4, pointer.block);
    }
    // The first needs no hash: how many there can be and are stands there.
    set_u16(bytes, start, count(pointers(start)));
    set_u16(bytes, start + 2, count(list.len()));
    let used = start + list.len() * POINTER_BYTES;
    let tail = BLOCK_BYTES - TAIL_BYTES;
    let checksum = inode_seed.with(&bytes[..used]).with(&[0; TAIL_BYTES]);
    set_u32(bytes, tail + 4, checksum.value());
}
