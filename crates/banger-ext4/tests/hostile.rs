//! Disks that somebody damaged, or made to do harm: reading them ends, with an answer or an error.

mod support;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use banger_ext4::{Content, Error, Kind, Limits, NodeId, Reader, Tree};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::{Disk, Making};

const ROOT: NodeId = Tree::ROOT;
const BLOCK: u64 = 4096;
/// Little more than the disk holds.
const TIGHT: Limits = Limits { nodes: 2000, memory: 1 << 20, contents: 64 << 20 };

/// A disk with something of everything.
fn disk() -> Disk {
    let disk = Disk::without_journal(8 << 10);
    let mut making = Making::new(&disk);
    let dir = making.directory(ROOT, "dir");
    let index = making.directory(dir, "index");
    for number in 0..300 {
        making.add(index, &format!("{number:0>60}"), Kind::Fifo);
    }
    let file = making.file(dir, "file", &[7; 10_000]);
    making.tree.link(ROOT, b"link", file).expect("it is free");
    // Every other block is a hole, so that there are many extents.
    let chunks: Vec<(u64, u64)> = (0..400).map(|number| (number * 2 * BLOCK, BLOCK)).collect();
    let data = [1; 400 * 4096];
    let content = making.writer.write_sparse(801 * BLOCK, &chunks, &mut &data[..]).expect("room");
    making.add(dir, "sparse", Kind::File(content));
    making.add(dir, "short", Kind::Symlink(b"file"[..].into()));
    making.add(dir, "long", Kind::Symlink(vec![b'x'; 300].into()));
    making.add(dir, "null", Kind::CharacterDevice { major: 1, minor: 3 });
    for (name, length) in [("user.small", 10), ("user.large", 2000), ("security.capability", 20)] {
        let xattrs = &mut making.tree.metadata_mut(file).xattrs;
        xattrs.insert(name.as_bytes().into(), vec![9; length].into());
    }
    making.finish().expect("there is room");
    disk.check();
    disk
}

/// The blocks that are not all zeros and not the contents of files: the metadata.
fn metadata_blocks(file: &File) -> Vec<u64> {
    let mut block = [0; 4096];
    let blocks = file.metadata().expect("it is there").len() / BLOCK;
    (0..blocks)
        .filter(|number| {
            file.read_exact_at(&mut block, number * BLOCK).expect("it is there");
            !block.iter().all(|byte| *byte == block[0])
        })
        .collect()
}

/// Read everything, of files no more than the disk is large.
fn read_all(file: &File) -> Result<(), Error> {
    let reader = Reader::open(file.try_clone().expect("it is open"))?;
    let tree = reader.tree(&TIGHT)?;
    assert!(tree.len() <= 2000);
    let mut pending = vec![ROOT];
    let mut sizes = 0;
    while let Some(id) = pending.pop() {
        pending.extend(tree.entries(id).into_iter().flatten().map(|(_, id)| *id));
        if let Kind::File(content) = &tree.node(id).kind {
            let read = std::io::copy(&mut reader.contents(content), &mut std::io::sink());
            let Ok(read) = read else { continue };
            assert_eq!(read, content.bytes);
            let data: u64 = reader.chunks(content).iter().map(|(_, length)| length).sum();
            sizes += data;
        }
        // Hard links are found more than once.
        assert!(sizes <= 4 * (8 << 20), "{sizes}");
    }
    Ok(())
}

#[derive(Debug, Clone)]
enum Edit {
    Byte(u8),
    Number(u32),
    /// The number of a block of metadata.
    Block(prop::sample::Index),
    /// What is somewhere else.
    Copy(prop::sample::Index),
}

fn edit() -> impl Strategy<Value = (prop::sample::Index, u64, Edit)> {
    let numbers = prop::sample::select(vec![0, 1, 2, 4, 11, 0x7fff, 0x8000, 0xffff, u32::MAX]);
    let edit = prop_oneof![
        any::<u8>().prop_map(Edit::Byte),
        prop_oneof![numbers, any::<u32>()].prop_map(Edit::Number),
        any::<prop::sample::Index>().prop_map(Edit::Block),
        any::<prop::sample::Index>().prop_map(Edit::Copy),
    ];
    // Structures are at the beginning of their blocks more often than at the end.
    let offset = prop_oneof![0..64_u64, 0..BLOCK];
    (any::<prop::sample::Index>(), offset, edit)
}

fn apply(file: &File, blocks: &[u64], (block, offset, edit): &(prop::sample::Index, u64, Edit)) {
    let block = blocks[block.index(blocks.len())];
    let at = block * BLOCK + offset;
    let aligned = block * BLOCK + offset / 4 * 4;
    let write = |bytes: &[u8], at| file.write_all_at(bytes, at).expect("it is ours");
    match edit {
        Edit::Byte(byte) => write(&[*byte], at),
        Edit::Number(number) => write(&number.to_le_bytes(), aligned),
        Edit::Block(other) => {
            let other = u32::try_from(blocks[other.index(blocks.len())]).expect("it is small");
            write(&other.to_le_bytes(), aligned);
        }
        Edit::Copy(other) => {
            let mut bytes = [0; 4096];
            let other = blocks[other.index(blocks.len())] * BLOCK;
            file.read_exact_at(&mut bytes, other).expect("it is there");
            write(&bytes, block * BLOCK);
        }
    }
}

/// Clear the feature that everything has a checksum, so that damage is not found by that.
fn without_checksums(file: &File) {
    let mut features = [0; 4];
    file.read_exact_at(&mut features, 1024 + 0x64).expect("it is there");
    let features = u32::from_le_bytes(features) & !0x400;
    file.write_all_at(&features.to_le_bytes(), 1024 + 0x64).expect("it is ours");
}

/// Damage the disk in many ways, and read it each time. Answers how often that went well.
fn damage(checksums: bool, cases: u32) -> u32 {
    let disk = disk();
    let file = disk.file();
    if !checksums {
        without_checksums(&file);
    }
    read_all(&file).expect("it is sound");
    let blocks = metadata_blocks(&file);
    let mut whole = vec![0; 8 << 20];
    file.read_exact_at(&mut whole, 0).expect("it is there");
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let good = std::cell::Cell::new(0);
    let ran = runner.run(&prop::collection::vec(edit(), 1..6), |edits| {
        for edit in &edits {
            apply(&file, &blocks, edit);
        }
        let read = read_all(&file);
        good.set(good.get() + u32::from(read.is_ok()));
        for block in &blocks {
            let at = usize::try_from(block * BLOCK).expect("it is small");
            file.write_all_at(&whole[at..at + 4096], block * BLOCK).expect("it is ours");
        }
        Ok(())
    });
    ran.expect("reading ends");
    good.get()
}

#[test]
fn damage_is_found_or_does_no_harm() {
    let good = damage(true, 500);
    assert!(good < 300, "{good} of 500: it was damaged somewhere else");
}

#[test]
fn damage_without_checksums_does_no_harm() {
    let good = damage(false, 1500);
    assert!(good > 30, "{good} of 1500: it was damaged so much that nothing was tested");
}

#[test]
fn anything_can_be_a_superblock() {
    let disk = disk();
    let file = disk.file();
    let mut good = [0; 1024];
    file.read_exact_at(&mut good, 1024).expect("it is there");
    let fields = prop::collection::vec((0..256_usize, any::<u32>(), 0..3_u8), 1..8);
    let mut runner =
        TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&fields, |fields| {
        let mut bytes = good;
        for (at, value, how) in fields {
            let value = match how {
                0 => value,
                1 => value % 64,
                _ => 1 << (value % 32),
            };
            bytes[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        // Without checksums, and with the features that are known.
        let features = 0x2c2_u32 | u32::from(bytes[0x60]) & 0x10;
        bytes[0x60..0x64].copy_from_slice(&features.to_le_bytes());
        bytes[0x64..0x68].copy_from_slice(&[0; 4]);
        file.write_all_at(&bytes, 1024).expect("it is ours");
        let _ = read_all(&file);
        let _ = banger_ext4::Writer::open(file.try_clone().expect("it is open"));
        Ok(())
    });
    ran.expect("reading ends");
}

proptest! {
    #[test]
    fn anything_can_be_a_disk(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        std::fs::write(&path, bytes).expect("it is ours");
        let error = Reader::open(File::open(path).expect("it is there"));
        let corrupt = matches!(error, Err(Error::Corrupt { .. }));
        prop_assert!(corrupt);
    }
}

#[test]
fn limits_are_kept() {
    let disk = disk();
    let reader = Reader::open(disk.file()).expect("it is sound");
    reader.tree(&TIGHT).expect("it is within the limits");
    let over = |limits: Limits| match reader.tree(&limits) {
        Err(Error::TooMuch { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(over(Limits { nodes: 300, ..TIGHT }), "files");
    assert_eq!(over(Limits { contents: 3 << 20, ..TIGHT }), "bytes in files");
    assert!(over(Limits { memory: 30_000, ..TIGHT }).starts_with("bytes of names"));
}

#[test]
fn contents_of_another_disk_are_an_error() {
    let disk = disk();
    let reader = Reader::open(disk.file()).expect("it is sound");
    let extents = vec![banger_ext4::Extent { logical: 0, physical: u64::MAX, blocks: 1 }];
    let content = Content { bytes: 10, extents };
    let mut bytes = Vec::new();
    assert!(reader.contents(&content).read_to_end(&mut bytes).is_err());
    let extents = vec![banger_ext4::Extent { logical: 0, physical: 1 << 40, blocks: 1 }];
    let content = Content { bytes: 10, extents };
    assert!(reader.contents(&content).read_to_end(&mut bytes).is_err());
}
