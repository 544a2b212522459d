//! What is written is what e2fsprogs find.

mod support;

use banger_ext4::{Content, Error, Extent, Kind, Tree};
use banger_host::command::{Cancel, Tool};
use support::{Disk, Making};

const ROOT: banger_ext4::NodeId = Tree::ROOT;

#[test]
fn an_empty_tree_is_a_good_file_system() {
    for disk in [Disk::new(300 << 10), Disk::without_journal(64 << 10), Disk::new(8 << 20)] {
        let before = disk.taken();
        Making::new(&disk).finish().expect("there is room");
        disk.check();
        assert!(disk.taken() <= before + (64 << 10), "{} to {}", before, disk.taken());
        assert!(disk.debugfs("ls -l /").contains("lost+found"));
    }
}

#[test]
fn files_of_all_kinds_are_there() {
    let disk = Disk::new(300 << 10);
    let mut making = Making::new(&disk);
    let dir = making.directory(ROOT, "dir");
    let hello = making.file(dir, "hello", b"Hello, world!\n");
    making.tree.link(ROOT, b"also hello", hello).expect("it is free");
    making.file(dir, "empty", b"");
    making.add(ROOT, "short", Kind::Symlink(b"dir/hello"[..].into()));
    making.add(ROOT, "long", Kind::Symlink(vec![b'x'; 1000].into()));
    making.add(ROOT, "null", Kind::CharacterDevice { major: 1, minor: 3 });
    making.add(ROOT, "disk", Kind::BlockDevice { major: 259, minor: 70_000 });
    making.add(ROOT, "fifo", Kind::Fifo);
    making.add(ROOT, "socket", Kind::Socket);
    making.finish().expect("there is room");
    disk.check();
    assert_eq!(disk.debugfs("cat /dir/hello"), "Hello, world!\n");
    let stat = disk.debugfs("stat /dir/hello");
    for part in ["Type: regular", "0640", "User:  1000", "Group: 70000", "Links: 2", "Size: 14"] {
        assert!(stat.contains(part), "{part}: {stat}");
    }
    assert!(stat.contains("mtime: 0x6553f100:1d6f3454"), "{stat}");
    assert!(disk.debugfs("stat /short").contains("Fast link dest: \"dir/hello\""));
    assert!(disk.debugfs("stat /null").contains("number: 01:03"));
    assert!(
        disk.debugfs("stat /disk").contains("number: 259:70000"),
        "{}",
        disk.debugfs("stat /disk")
    );
}

#[test]
fn what_cannot_be_stored_is_refused() {
    let finish = |kind| {
        let disk = Disk::without_journal(16 << 10);
        let mut making = Making::new(&disk);
        making.add(ROOT, "it", kind);
        making.finish().expect_err("it cannot be stored")
    };
    assert!(matches!(finish(Kind::Symlink([].into())), Error::BadSymlink { bytes: 0 }));
    assert!(matches!(finish(Kind::Symlink(vec![1; 4096].into())), Error::BadSymlink { .. }));
    let device = Kind::CharacterDevice { major: 4096, minor: 0 };
    assert!(matches!(finish(device), Error::BadDevice { major: 4096, minor: 0 }));
    let content = Content { bytes: u64::MAX, extents: vec![] };
    assert!(matches!(finish(Kind::File(content)), Error::TooLarge { .. }));
}

#[test]
fn access_control_lists_are_those_that_were_set() {
    let disk = Disk::new(64 << 10);
    let mut making = Making::new(&disk);
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, 1000),
        (4, 4, u32::MAX),
        (16, 6, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    let dir = making.directory(ROOT, "dir");
    let xattrs = &mut making.tree.metadata_mut(dir).xattrs;
    xattrs.insert(b"system.posix_acl_access"[..].into(), list.clone().into());
    xattrs.insert(b"system.posix_acl_default"[..].into(), list.clone().into());
    xattrs.insert(b"user.name"[..].into(), b"value"[..].into());
    making.finish().expect("there is room");
    disk.check();
    // e2fsprogs convert them as the kernel does, except that nobody's id is 0.
    let hex: Vec<String> =
        list.iter().map(|byte| format!("{:02x}", if *byte == 255 { 0 } else { *byte })).collect();
    for which in ["access", "default"] {
        let found = disk.debugfs(&format!("ea_get -x /dir system.posix_acl_{which}"));
        assert!(found.replace('\n', "").contains(&hex.join(" ")), "{found}");
    }
    assert!(disk.debugfs("ea_get /dir user.name").contains("value"));
}

#[test]
fn lost_found_of_the_tree_replaces_that_of_mke2fs() {
    let disk = Disk::new(64 << 10);
    let mut making = Making::new(&disk);
    let dir = making.directory(ROOT, "lost+found");
    making.file(dir, "found", b"found");
    making.finish().expect("there is room");
    disk.check();
    assert!(disk.debugfs("stat /lost+found").starts_with("Inode: 11 "));
    assert_eq!(disk.debugfs("cat /lost+found/found"), "found");
    assert!(support::read(&disk).1.child(ROOT, b"lost+found").is_some());

    let disk = Disk::new(64 << 10);
    let mut making = Making::new(&disk);
    making.file(ROOT, "lost+found", b"no directory");
    making.finish().expect("there is room");
    disk.check();
    assert_eq!(disk.debugfs("cat /lost+found"), "no directory");
}

#[test]
fn names_are_hashed_as_the_superblock_says() {
    for flags in [1, 2] {
        let disk = Disk::new(64 << 10);
        let set = Tool::new("debugfs").args(["-w", "-R", &format!("ssv flags {flags}")]);
        set.arg(disk.path()).run(&Cancel::new()).expect("debugfs runs");
        let mut making = Making::new(&disk);
        for number in 0..500 {
            making.add(ROOT, &format!("\u{fc}\u{20ac} {number}"), Kind::Fifo);
        }
        making.finish().expect("there is room");
        disk.check();
        assert!(disk.debugfs("stat /").contains("Flags: 0x81000"));
    }
}

#[test]
fn the_same_calls_give_the_same_bytes() {
    let make = |disk: &Disk| {
        let mut making = Making::new(disk);
        let dir = making.directory(ROOT, "dir");
        let old = making.file(dir, "old", &[1; 50_000]);
        making.tree.link(dir, b"too", old).expect("it is free");
        for number in 0..300 {
            making.file(dir, &format!("{number:0>50}"), &[3; 5000]);
        }
        making.tree.remove(dir, b"old");
        let dropped = making.tree.take_dropped();
        making.writer.release(dropped);
        making.finish().expect("there is room");
        std::fs::read(disk.path()).expect("it is there")
    };
    let first = Disk::new(32 << 10);
    let empty = std::fs::read(first.path()).expect("it is there");
    let second = Disk::made_by(|path| std::fs::write(path, &empty).expect("it is ours"));
    assert!(make(&first) == make(&second));
}

#[test]
fn contents_must_be_the_writers_own() {
    let finish = |extents: &dyn Fn(Content) -> Vec<Content>| {
        let disk = Disk::new(32 << 10);
        let mut making = Making::new(&disk);
        let content = making.content(&[1; 10_000]);
        for (number, content) in extents(content).into_iter().enumerate() {
            making.add(ROOT, &number.to_string(), Kind::File(content));
        }
        making.finish().map(|_| ())
    };
    let edited = |edit: &dyn Fn(&mut Extent)| {
        finish(&|mut content| {
            edit(&mut content.extents[0]);
            vec![content]
        })
    };
    assert!(finish(&|content| vec![content]).is_ok());
    let foreign = |result| assert!(matches!(result, Err(Error::ForeignContent)), "{result:?}");
    foreign(finish(&|content| vec![content.clone(), content]));
    foreign(finish(&|content| vec![Content { bytes: 100, ..content }]));
    foreign(edited(&|extent| extent.physical = 0));
    foreign(edited(&|extent| extent.physical = u64::MAX));
    foreign(edited(&|extent| extent.physical += 1));
    foreign(edited(&|extent| extent.blocks = 0));
    foreign(edited(&|extent| extent.logical = 1));
}

#[test]
fn contents_that_end_early_or_fail_leave_nothing_behind() {
    let disk = Disk::new(32 << 10);
    let mut making = Making::new(&disk);
    let error = making.writer.write(&mut &[1; 5000][..], 6000).expect_err("it is short");
    assert!(matches!(error, Error::Short { expected: 6000, got: 5000 }), "{error}");
    let chunks = [(0, 4096), (8192, 4096)];
    let error = making.writer.write_sparse(1 << 20, &chunks, &mut &[1; 5000][..]);
    assert!(matches!(error, Err(Error::Short { expected: 8192, got: 5000 })));
    for chunks in [&[(0, 10), (5, 10)][..], &[(10, 5), (0, 5)], &[(0, 21)], &[(u64::MAX, 1)]] {
        let error = making.writer.write_sparse(20, chunks, &mut &[1; 50][..]);
        assert!(matches!(error, Err(Error::BadChunks)), "{chunks:?}");
    }
    let error = making.writer.write_sparse(1 << 60, &[], &mut &[][..]);
    assert!(matches!(error, Err(Error::TooLarge { .. })));
    let mut broken = std::io::Read::chain(&[1; 5000][..], Broken);
    let error = making.writer.write(&mut broken, 6000);
    assert!(matches!(error, Err(Error::Source(_))));
    let before = disk.taken();
    making.finish().expect("there is room");
    disk.check();
    assert!(disk.taken() < before + (64 << 10));
}

struct Broken;

impl std::io::Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
}
