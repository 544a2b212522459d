//! Much of everything.

mod support;

use banger_ext4::{Content, Error, Kind, NodeId, Tree};
use banger_host::command::{Cancel, Tool};
use support::{Disk, Making, contents, describe, metadata, read};

const ROOT: NodeId = Tree::ROOT;

/// A file of blocks that all differ from each other and from zero.
fn blocks(first: u32, count: u32) -> Vec<u8> {
    (first..first + count).flat_map(|number| (number + 1).to_le_bytes().repeat(1024)).collect()
}

#[test]
fn a_directory_of_a_hundred_thousand_names() {
    let disk = Disk::new(8 << 20);
    let mut making = Making::new(&disk);
    let dir = making.directory(ROOT, "dir");
    let target = making.file(dir, "target", b"x");
    for number in 0..100_000 {
        let name = format!("name {number} \u{e4}");
        // Links, because so many inodes would take long in debug builds.
        if number % 3 == 0 && making.tree.link(dir, name.as_bytes(), target).is_ok() {
            continue;
        }
        making.add(dir, &name, Kind::Fifo);
    }
    let tree = making.finish().expect("there is room");
    disk.check();
    let stat = disk.debugfs("stat /dir");
    assert!(stat.contains("Flags: 0x81000"), "{stat}");
    let index = disk.debugfs_start("htree_dump /dir", 400);
    assert!(index.contains("Indirect levels: 1"), "{index}");
    let (_, found) = read(&disk);
    let no_contents = |_: &Content| Vec::new();
    assert!(describe(&tree, &no_contents) == describe(&found, &no_contents));
}

#[test]
fn names_are_found_by_their_hashes() {
    // e2fsck checks that every name is where its hash says; this checks the other way round that
    // directories of all sizes around the limits of blocks are sound.
    let disk = Disk::new(300 << 10);
    let mut making = Making::new(&disk);
    for count in [0, 1, 14, 15, 16, 17, 30, 45, 100, 1000] {
        let dir = making.directory(ROOT, &format!("{count} names"));
        for number in 0..count {
            making.add(dir, &format!("{number:0>250}"), Kind::Fifo);
        }
    }
    making.finish().expect("there is room");
    disk.check();
    assert!(disk.debugfs("stat \"/15 names\"").contains("Flags: 0x80000"));
    assert!(disk.debugfs("stat \"/16 names\"").contains("Flags: 0x81000"));
}

#[test]
fn more_subdirectories_than_links_can_count() {
    // One inode for each 4096 bytes.
    let disk = Disk::with(400 << 10, &["-i", "4096"], &support::features("^has_journal"));
    let mut making = Making::new(&disk);
    let dir = making.directory(ROOT, "many");
    for number in 0..64_999 {
        making.directory(dir, &number.to_string());
    }
    making.finish().expect("there is room");
    disk.check();
    let stat = disk.debugfs("stat /many");
    assert!(stat.contains("Links: 1 "), "{stat}");
    let (_, found) = read(&disk);
    assert_eq!(found.len(), 65_001);
}

#[test]
fn deep_directories() {
    let disk = Disk::without_journal(128 << 10);
    let mut making = Making::new(&disk);
    let mut parent = ROOT;
    for _ in 0..5000 {
        parent = making.directory(parent, "d");
    }
    making.finish().expect("there is room");
    disk.check();
    assert_eq!(read(&disk).1.len(), 5001);
}

#[test]
fn released_blocks_are_used_again_in_many_pieces() {
    // Not a multiple of eight blocks.
    let disk = Disk::without_journal((64 << 10) + 12);
    let mut making = Making::new(&disk);
    // Fill the disk with files of one block, and remove every other one.
    let mut number = 0;
    loop {
        let bytes = blocks(number, 1);
        let Ok(content) = making.writer.write(&mut &bytes[..], 4096) else { break };
        let name = format!("{number:05}");
        making
            .tree
            .insert(ROOT, name.as_bytes(), metadata(0o600), Kind::File(content))
            .expect("free");
        number += 1;
    }
    let kept = number / 2;
    for odd in (1..number).step_by(2) {
        assert!(making.tree.remove(ROOT, format!("{odd:05}").as_bytes()));
    }
    let dropped = making.tree.take_dropped();
    making.writer.release(dropped);
    // Some must stay free for directories, and for the blocks of extents.
    let count = kept - 400;
    let bytes = blocks(1 << 20, count);
    let big = making.file(ROOT, "big", &bytes);
    let Kind::File(Content { extents, .. }) = &making.tree.node(big).kind else { panic!("a file") };
    assert!(extents.len() > 340 * 4, "{} extents", extents.len());
    // Inodes are fewer than blocks: the small files that are left would be too many.
    let files: Vec<_> = making.tree.entries(ROOT).expect("a directory").keys().cloned().collect();
    for name in files.iter().filter(|name| ***name != *b"big").skip(1000) {
        making.tree.remove(ROOT, name);
    }
    let dropped = making.tree.take_dropped();
    making.writer.release(dropped);
    let taken = disk.taken();
    making.finish().expect("there is room");
    disk.check();
    let (reader, tree) = read(&disk);
    let big = tree.child(ROOT, b"big").expect("it is there");
    let Kind::File(content) = &tree.node(big).kind else { panic!("a file") };
    assert!(contents(&reader, content) == bytes);
    let first = tree.child(ROOT, b"00002").expect("it is there");
    let Kind::File(content) = &tree.node(first).kind else { panic!("a file") };
    assert!(contents(&reader, content) == blocks(2, 1));
    // What was released and not used again is a hole.
    assert!(disk.taken() + 4096 * u64::from(kept - 1100) < taken, "{} of {taken}", disk.taken());
}

#[test]
fn large_and_sparse_files() {
    let disk = Disk::new(8 << 20);
    let before = disk.taken();
    let mut making = Making::new(&disk);
    let data = blocks(0, 600);
    // Chunks that begin and end within blocks, and one at the end of what ext4 can do.
    let end = (1_u64 << 44) - 4096;
    let chunks = [(100, 50), (150, 4000), (1 << 20, 1 << 20), (5 << 40, 12_345), (end - 10, 10)];
    let total = chunks.iter().map(|(_, length)| length).sum::<u64>();
    let total = usize::try_from(total).expect("it is small");
    let content = making.writer.write_sparse(end, &chunks, &mut &data[..total]).expect("room");
    making.add(ROOT, "sparse", Kind::File(content));
    // More than one extent can map.
    let mut repeated = std::io::Read::take(Ones, 200 << 20);
    let content = making.writer.write(&mut repeated, 200 << 20).expect("there is room");
    assert_eq!(content.extents.len(), 2, "one before the next copy of the superblock, one after");
    making.add(ROOT, "large", Kind::File(content));
    making.finish().expect("there is room");
    disk.check();
    assert!(disk.taken() < before + (202 << 20), "{} to {}", before, disk.taken());
    let (reader, tree) = read(&disk);
    let content = |name: &[u8]| match &tree.node(tree.child(ROOT, name).expect("there")).kind {
        Kind::File(content) => content.clone(),
        _ => panic!("a file"),
    };
    let sparse = content(b"sparse");
    assert_eq!(sparse.bytes, end);
    let mut start = vec![0; 3 << 20];
    std::io::Read::read_exact(&mut reader.contents(&sparse), &mut start).expect("it is there");
    assert!(start[..100].iter().all(|byte| *byte == 0));
    assert_eq!(start[100..4150], data[..4050]);
    assert!(start[1 << 20..2 << 20] == data[4050..4050 + (1 << 20)]);
    assert!(start[2 << 20..].iter().all(|byte| *byte == 0));
    let chunks = reader.chunks(&sparse);
    let expected = [(0, 8192), (1 << 20, 1 << 20), (5 << 40, 16_384), (end - 4096, 4096)];
    assert_eq!(chunks, expected);
    let large = content(b"large");
    assert_eq!(large.bytes, 200 << 20);
    let mut reading = reader.contents(&large);
    let copied = std::io::copy(&mut reading, &mut OnesOnly).expect("it is there");
    assert_eq!(copied, 200 << 20);
}

struct Ones;

impl std::io::Read for Ones {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        buffer.fill(1);
        Ok(buffer.len())
    }
}

struct OnesOnly;

impl std::io::Write for OnesOnly {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        assert!(bytes.iter().all(|byte| *byte == 1));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    let disk = Disk::without_journal(16 << 10);
    let mut making = Making::new(&disk);
    let before = making.file(ROOT, "before", b"before");
    let error = making.writer.write(&mut Ones, 64 << 20).expect_err("it is too much");
    assert!(matches!(error, Error::NoSpace { bytes } if bytes == 16 << 20), "{error}");
    // What had been written of it is free again.
    let most = making.content(&vec![1; 14 << 20]);
    making.writer.release(vec![most]);
    // Directories need blocks too.
    let mut content = Content::default();
    for bytes in (0..64).rev().map(|part| part * (1 << 18) + 4096) {
        if let Ok(fits) = making.writer.write(&mut Ones, bytes) {
            content = fits;
            break;
        }
    }
    making.add(ROOT, "big", Kind::File(content));
    for number in 0..200 {
        making.tree.link(ROOT, format!("{number:0>250}").as_bytes(), before).expect("it is free");
        making.directory(ROOT, &format!("dir{number}"));
    }
    assert!(matches!(making.finish(), Err(Error::NoSpace { .. })));
}

#[test]
fn more_files_than_inodes_are_refused() {
    let disk = Disk::without_journal(16 << 10);
    let inodes = 1024;
    for (count, fits) in [(inodes - 11, true), (inodes - 10, false)] {
        let disk = if fits { &disk } else { &Disk::without_journal(16 << 10) };
        let mut making = Making::new(disk);
        for number in 0..count {
            making.add(ROOT, &number.to_string(), Kind::Fifo);
        }
        match making.finish() {
            Ok(_) => assert!(fits),
            Err(Error::NoInodes { inodes, files }) => {
                assert_eq!((fits, inodes, files), (false, 1013, 1014));
            }
            Err(error) => panic!("{error}"),
        }
    }
    disk.check();
}

#[test]
fn a_filled_disk_can_grow() {
    let disk = Disk::new(8 << 20);
    let mut making = Making::new(&disk);
    let dir = making.directory(ROOT, "dir");
    for number in 0..20_000 {
        making.file(dir, &number.to_string(), &blocks(number, 1));
    }
    let tree = making.finish().expect("there is room");
    disk.file().set_len(16 << 30).expect("it is sparse");
    Tool::new("resize2fs").arg(disk.path()).run(&Cancel::new()).expect("it can grow");
    disk.check();
    let (reader, found) = read(&disk);
    let contents = |content: &Content| contents(&reader, content);
    // It has moved nothing.
    assert!(describe(&tree, &contents) == describe(&found, &contents));
}
