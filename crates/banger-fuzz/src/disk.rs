//! Disks that a guest has written.
//!
//! Their bytes would be too many for a corpus, so the input says what is painted on an empty disk:
//! records of a little-endian 32-bit offset, a 16-bit length, and that many bytes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use banger_ext4::{Kind, Limits, Reader, Tree};
use banger_host::cow;

/// Size of a painted file system.
const DISK: u64 = 512 << 10;
/// Size of the disk whose store is painted.
const COW_DISK: u64 = 1 << 20;
/// Little more than the file system holds.
const LIMITS: Limits = Limits { nodes: 2000, memory: 1 << 20, contents: 16 << 20 };

fn paint(file: &File, size: u64, mut data: &[u8]) -> io::Result<()> {
    file.set_len(size)?;
    while let Some((head, rest)) = data.split_first_chunk::<6>() {
        let at = u64::from(u32::from_le_bytes([head[0], head[1], head[2], head[3]])) % size;
        let length = usize::from(u16::from_le_bytes([head[4], head[5]])).min(rest.len());
        let room = usize::try_from(size - at).unwrap_or(0);
        file.write_all_at(&rest[..length.min(room)], at)?;
        data = &rest[length..];
    }
    Ok(())
}

/// An ext4 file system.
pub(crate) fn ext4(data: &[u8]) {
    let file = tempfile::tempfile().expect("a file");
    paint(&file, DISK, data).expect("a disk");
    let Ok(reader) = Reader::open(file) else { return };
    let Ok(tree) = reader.tree(&LIMITS) else { return };
    assert!(tree.len() <= 2000, "{} files", tree.len());
    let (mut pending, mut seen) = (vec![Tree::ROOT], 0);
    while let Some(id) = pending.pop() {
        seen += 1;
        assert!(seen <= 100_000, "the tree has no end");
        for (name, child) in tree.entries(id).into_iter().flatten() {
            assert!(!name.contains(&b'/') && **name != *b".." && **name != *b".", "a way out");
            pending.push(*child);
        }
        if let Kind::File(content) = &tree.node(id).kind
            && let Ok(read) = io::copy(&mut reader.contents(content), &mut io::sink())
        {
            assert_eq!(read, content.bytes, "a file is as long as it says");
        }
    }
}

/// A copy-on-write store: its header, and the disk that it makes of an image.
pub(crate) fn cow(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
    create(&at("image")).and_then(|image| image.set_len(COW_DISK)).expect("an image");
    let store = create(&at("store")).expect("a store");
    paint(&store, cow::store_bytes(COW_DISK), data).expect("a store");
    if cow::check_and_repair(&at("store"), COW_DISK).is_ok() {
        let again = cow::check_and_repair(&at("store"), COW_DISK).expect("it was usable");
        assert_ne!(again, cow::Header::Repaired, "a repair lasts");
    }
    if cow::flatten(&at("image"), &at("store"), COW_DISK, &at("disk")).is_ok() {
        let size = std::fs::metadata(at("disk")).expect("it was made").len();
        assert_eq!(size, COW_DISK, "a disk keeps its size");
    }
}
