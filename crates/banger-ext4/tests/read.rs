//! File systems that others made are read, or refused with the reason.

mod support;

use banger_ext4::{Content, Error, Extent, Kind, NodeId, Place, Reader, Tree};
use banger_host::command::{Cancel, Tool};
use support::{Disk, Making, contents, read};

const ROOT: NodeId = Tree::ROOT;

/// What `debugfs -w` does to a disk.
fn change(disk: &Disk, request: &str) {
    let changed =
        Tool::new("debugfs").args(["-w", "-R", request]).arg(disk.path()).run(&Cancel::new());
    changed.expect("debugfs runs");
}

/// A disk with a file and directories that mke2fs copied from the host.
fn copied(kib: u64, options: &[&str]) -> Disk {
    let source = tempfile::tempdir().expect("a directory");
    std::fs::create_dir_all(source.path().join("a/b")).expect("create");
    std::fs::write(source.path().join("a/b/file"), vec![5; 100_000]).expect("write");
    std::fs::write(source.path().join("small"), "small").expect("write");
    std::os::unix::fs::symlink("a/b", source.path().join("link")).expect("link");
    for number in 0..300 {
        std::fs::write(source.path().join(format!("a/{number:0>40}")), "").expect("write");
    }
    Disk::made_by(|path| {
        Tool::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4"])
            .args(options)
            .arg("-d")
            .arg(source.path())
            .arg(path)
            .arg(format!("{kib}k"))
            .run(&Cancel::new())
            .expect("mke2fs makes a disk");
    })
}

fn find(tree: &Tree, path: &str) -> NodeId {
    path.split('/').fold(ROOT, |id, name| tree.child(id, name.as_bytes()).expect(path))
}

fn content(tree: &Tree, path: &str) -> Content {
    match &tree.node(find(tree, path)).kind {
        Kind::File(content) => content.clone(),
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn all_usual_layouts_are_read() {
    for options in [
        &[][..],
        &["-b", "4096", "-I", "256"],
        &["-b", "1024", "-I", "128", "-O", "^metadata_csum,^64bit,^flex_bg,^has_journal"],
        &["-b", "2048", "-O", "^metadata_csum,uninit_bg,^64bit,quota,project"],
        &["-b", "1024", "-O", "^resize_inode,meta_bg,^has_journal"],
        &["-b", "65536", "-O", "metadata_csum,metadata_csum_seed,large_dir"],
        &["-b", "4096", "-I", "1024", "-g", "1024", "-O", "sparse_super2,^dir_index"],
    ] {
        let disk = copied(64 << 10, options);
        let (reader, tree) = read(&disk);
        // 300 empty files, 2 with contents, a link, 2 directories, the root.
        assert_eq!(tree.len(), 306, "{options:?}");
        assert!(contents(&reader, &content(&tree, "a/b/file")) == vec![5; 100_000], "{options:?}");
        assert_eq!(contents(&reader, &content(&tree, "small")), b"small", "{options:?}");
        let Kind::Symlink(target) = &tree.node(find(&tree, "link")).kind else { panic!("a link") };
        assert_eq!(**target, *b"a/b");
    }
}

#[test]
fn what_needs_more_than_reading_is_refused() {
    let open =
        |disk: &Disk| Reader::open(disk.file()).expect_err("it is not supported").to_string();
    for (feature, what) in [
        ("inline_data", "the feature inline_data"),
        ("ea_inode", "the feature ea_inode"),
        ("encrypt", "the feature encrypt"),
        ("casefold", "the feature casefold"),
        ("bigalloc", "the feature bigalloc"),
        ("mmp", "the feature mmp"),
    ] {
        let disk = Disk::with(64 << 10, &[], &support::features(feature));
        assert!(open(&disk).contains(what), "{}", open(&disk));
        let refused = banger_ext4::Writer::open(disk.file()).expect_err("it is not supported");
        assert!(refused.to_string().contains(what), "{refused}");
    }
    let disk = Disk::new(64 << 10);
    change(&disk, "feature needs_recovery");
    assert!(matches!(Reader::open(disk.file()), Err(Error::NeedsRecovery)));
    assert!(matches!(banger_ext4::Writer::open(disk.file()), Err(Error::NeedsRecovery)));

    let disk = copied(64 << 10, &["-O", "^extent,^64bit"]);
    let reader = Reader::open(disk.file()).expect("it is ext4");
    let error = reader.tree(&support::LIMITS).expect_err("it is not supported").to_string();
    assert!(error.contains("files in the format of ext2"), "{error}");
}

#[test]
fn only_empty_file_systems_are_filled() {
    let full = copied(64 << 10, &["-b", "4096", "-O", &support::features("64bit")]);
    assert!(matches!(banger_ext4::Writer::open(full.file()), Err(Error::NotEmpty)));
    let other = Disk::with(64 << 10, &[], &support::features("^metadata_csum"));
    let error = banger_ext4::Writer::open(other.file()).expect_err("it is not supported");
    assert!(error.to_string().contains("too few features"), "{error}");
    let disk = Disk::new(64 << 10);
    disk.file().set_len(32 << 20).expect("it is ours");
    let error = banger_ext4::Writer::open(disk.file()).expect_err("it is too short");
    assert!(error.to_string().contains("shorter than its file system"), "{error}");
}

#[test]
fn space_without_data_reads_as_zeros() {
    let disk = Disk::new(64 << 10);
    let mut making = Making::new(&disk);
    making.file(ROOT, "file", &[7; 20_000]);
    making.finish().expect("there is room");
    // Blocks 10 to 19 have space, and the file ends within.
    change(&disk, "fallocate /file 10 19");
    change(&disk, "sif /file size 61440");
    disk.check();
    let (reader, tree) = read(&disk);
    let file = content(&tree, "file");
    assert_eq!((file.bytes, file.extents.len()), (61_440, 1));
    let bytes = contents(&reader, &file);
    assert_eq!(bytes[..20_000], [7; 20_000]);
    assert!(bytes[20_000..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_others_add_to_a_disk_is_read() {
    let disk = Disk::new(64 << 10);
    let mut making = Making::new(&disk);
    let dir = making.directory(ROOT, "dir");
    making.file(dir, "file", b"contents");
    making.finish().expect("there is room");
    for request in [
        "mkdir /dir/new",
        "symlink /dir/link file",
        "ln /dir/file /other",
        "mknod pipe p",
        "ea_set /dir/file user.one 1",
        "ea_set /dir/file user.two 22222222222222222222222222222222222222222222222222222222222222",
        "ea_set /dir user.three 3",
    ] {
        change(&disk, request);
    }
    change(&disk, "sif /dir/file links_count 2");
    let (reader, tree) = read(&disk);
    assert_eq!(find(&tree, "other"), find(&tree, "dir/file"));
    assert_eq!(contents(&reader, &content(&tree, "other")), b"contents");
    assert!(matches!(&tree.node(find(&tree, "pipe")).kind, Kind::Fifo));
    let xattrs = &tree.node(find(&tree, "other")).metadata.xattrs;
    assert_eq!(xattrs[&b"user.one"[..]], b"1"[..].into());
    assert_eq!(xattrs[&b"user.two"[..]].len(), 62);
}

/// A disk with some directories and files, on which debugfs has done something evil.
fn evil(requests: &[&str]) -> Error {
    let disk = Disk::new(64 << 10);
    let mut making = Making::new(&disk);
    let dir = making.directory(ROOT, "dir");
    making.directory(dir, "inner");
    making.file(dir, "one", &[1; 10_000]);
    making.file(dir, "two", &[2; 10_000]);
    making.add(dir, "link", Kind::Symlink(vec![b'x'; 100].into()));
    making.finish().expect("there is room");
    for request in requests {
        change(&disk, request);
    }
    let reader = Reader::open(disk.file()).expect("its superblock is sound");
    reader.tree(&support::LIMITS).expect_err("it is not sound")
}

#[test]
fn evil_disks_are_refused() {
    let corrupt = |requests: &[&str]| match evil(requests) {
        Error::Corrupt { what, place } => (what, place),
        other => panic!("{requests:?}: {other}"),
    };
    // Inodes: 12 is dir, 13 inner, 14 link, 15 one, 16 two.
    assert_eq!(corrupt(&["ln /dir /dir/inner/loop"]).0, "a directory with two names");
    assert_eq!(corrupt(&["ln / /dir/inner/loop"]).0, "a directory with two names");
    assert_eq!(
        corrupt(&["ln <8> /dir/journal"]),
        ("it is reserved and has a name", Place::Inode(8))
    );
    assert_eq!(corrupt(&["ln <4000> /dir/none"]).1, Place::Inode(4000));
    // The extent of one file is that of the other.
    let disk = Disk::new(64 << 10);
    let mut making = Making::new(&disk);
    making.file(ROOT, "one", &[1; 5000]);
    making.finish().expect("there is room");
    let (_, tree) = read(&disk);
    let start = content(&tree, "one").extents[0].physical;
    assert_eq!(
        corrupt(&[
            &format!("sif /dir/two block[5] {start}"),
            &format!("sif /dir/one block[5] {start}")
        ])
        .0,
        "it belongs to two files"
    );
    for (request, what) in [
        ("sif /dir/two block[5] 99999999", "its contents are beyond the end"),
        ("sif /dir/two block[5] 0", "its contents are beyond the end"),
        ("sif /dir/two block[0] 0", "its extents make no sense"),
        ("sif /dir/two block[1] 0x00090004", "its extents are too deep"),
        ("sif /dir/two size 0x7fffffffffffffff", "a file larger than ext4 allows"),
        ("sif /dir/two mode 0170644", "a file of unknown type"),
        ("sif /dir/two links_count 0", "it has been deleted"),
        ("sif /dir/inner size 8192", "a directory with holes"),
        ("sif /dir/inner size 5000", "a directory of odd size"),
        ("sif / mode 0100644", "the root is no directory"),
        ("sif /dir/link size 0", "a symbolic link of impossible length"),
        ("sif /dir/link size 200", "a symbolic link with a zero byte"),
        ("sif /dir/link size 99999", "a symbolic link of impossible length"),
        ("sif /dir/two file_acl 20", "a block of attributes is none"),
    ] {
        let (found, place) = corrupt(&[request]);
        assert!(found == what || found == "its checksum is wrong", "{request}: {found} ({place})");
        if !request.contains("file_acl") {
            assert_eq!(found, what, "{request}");
        }
    }
    assert!(evil(&["sif /dir/two flags 0x10000000"]).to_string().contains("in their inodes"));
    assert!(evil(&["sif /dir/two flags 0x800"]).to_string().contains("encrypted"));
}

#[test]
fn a_disk_is_copied_without_its_holes() {
    let disk = Disk::new(64 << 10);
    let mut making = Making::new(&disk);
    let chunks = [(1 << 40, 5000), (2 << 40, 100)];
    let content = making.writer.write_sparse(3 << 40, &chunks, &mut &[1; 5100][..]).expect("room");
    making.add(ROOT, "sparse", Kind::File(content));
    making.finish().expect("there is room");
    let (reader, tree) = read(&disk);
    let sparse = self::content(&tree, "sparse");
    let other = Disk::new(64 << 10);
    let mut writer = other.writer();
    let copy = writer.copy(&reader, &sparse).expect("there is room");
    let shape = |content: &Content| -> Vec<_> {
        content.extents.iter().map(|Extent { logical, blocks, .. }| (*logical, *blocks)).collect()
    };
    assert_eq!((copy.bytes, shape(&copy)), (sparse.bytes, shape(&sparse)));
}
