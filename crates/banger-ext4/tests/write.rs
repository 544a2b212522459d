//! What is written is what e2fsprogs find.

mod support;

use banger_ext4::{Error, Kind, Tree};
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
}
