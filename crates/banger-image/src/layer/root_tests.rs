//! Tests of whole disks.

use std::os::unix::fs::FileExt;

use banger_api::ErrorCode;
use banger_ext4::{Kind, Reader, Tree};

use super::super::testing::{Member, gzip, paths, short, tar};
use super::*;
use banger_host::sparse::disk_digest;

const IDENTITY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn root(dir: &Path, bytes: u64) -> Root {
    let plan = DiskPlan { label: "test", bytes, journal: false, identity: IDENTITY };
    Root::create(&dir.join("disk"), &plan, &Cancel::new()).expect("mke2fs runs")
}

fn layer<'a>(stream: impl Read + Send + 'a) -> Layer<'a> {
    let (digest, diff_id, stream) = (None, None, Box::new(stream));
    Layer { name: "layer 1 of 1".to_owned(), digest, diff_id, stream }
}

fn apply(root: &mut Root, bytes: &[u8]) -> Result<(), LayerError> {
    root.apply(layer(bytes), &Cancel::new())
}

fn members(text: &str) -> Vec<u8> {
    tar(&text.split_whitespace().map(short).collect::<Vec<_>>())
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("into memory")
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", super::super::testing::sha256(bytes))
}

/// Every file of a disk, and what is in it.
fn listing(disk: &Path) -> Vec<String> {
    let reader = Reader::open(File::open(disk).expect("it is there")).expect("it is ext4");
    let limits = banger_ext4::Limits { nodes: 1000, memory: 1 << 20, contents: 1 << 30 };
    let tree: Tree = reader.tree(&limits).expect("it is sound");
    let mut lines = Vec::new();
    for (path, id) in paths(&tree).into_iter().skip(1) {
        let path = String::from_utf8_lossy(&path).into_owned();
        let mut text = String::new();
        if let Kind::File(content) = &tree.node(id).kind {
            reader.contents(content).read_to_string(&mut text).expect("it can be read");
            text = format!("={} bytes, {}", text.len(), &sha256(text.as_bytes())[..15]);
        }
        lines.push(format!("{path}{text}"));
    }
    lines
}

#[test]
fn layers_become_a_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut root = root(dir.path(), 16 << 20);
    let text = "lorem ipsum ".repeat(20_000);
    let first = tar(&[short("etc/"), short("etc/old=x"), Member::file("etc/large", &text)]);
    apply(&mut root, &gzip(&first)).expect("gzip");
    apply(&mut root, &zstd(&members("etc/.wh.old= etc/new:=etc/large"))).expect("zstd");
    apply(&mut root, &members("etc/hosts=127.0.0.1")).expect("plain");
    root.finish(&Cancel::new()).expect("it is sound");
    let digest = &sha256(text.as_bytes())[..15];
    let want = [
        "etc".to_owned(),
        "etc/hosts=9 bytes, sha256:12ca17b4".to_owned(),
        format!("etc/large=240000 bytes, {digest}"),
        format!("etc/new=240000 bytes, {digest}"),
    ];
    assert_eq!(listing(&dir.path().join("disk")), want);
}

#[test]
fn the_same_layers_become_the_same_disk() {
    let make = || {
        let dir = tempfile::tempdir().expect("a directory");
        let plan = DiskPlan { label: "x", bytes: 8 << 30, journal: true, identity: IDENTITY };
        let disk = dir.path().join("disk");
        let mut root = Root::create(&disk, &plan, &Cancel::new()).expect("mke2fs runs");
        apply(&mut root, &members("a=1 b/ b/c=2 l->b")).expect("it is good");
        apply(&mut root, &members(".wh.a= b/d=3")).expect("it is good");
        root.finish(&Cancel::new()).expect("it is sound");
        let taken = banger_host::files::allocated_bytes(&disk).expect("measure");
        assert!(taken < 8 << 20, "{taken}");
        // The clock would have a say only here, in the time at which the file system was made.
        let mut made = [0; 4];
        let file = File::open(&disk).expect("it is there");
        file.read_exact_at(&mut made, 1024 + 0x108).expect("it has a superblock");
        assert_eq!(u32::from_le_bytes(made), 1_686_355_200);
        disk_digest(&disk).expect("read")
    };
    assert_eq!(make(), make());
}

#[test]
fn digests_are_checked() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut root = root(dir.path(), 16 << 20);
    let plain = members("a=1");
    let packed = gzip(&plain);
    let with = |digest: String, diff_id: String| Layer {
        digest: Some(digest),
        diff_id: Some(diff_id),
        ..layer(&packed[..])
    };
    let cancel = Cancel::new();
    root.apply(with(sha256(&packed), sha256(&plain)), &cancel).expect("both are right");
    for wrong in [with(sha256(b""), sha256(&plain)), with(sha256(&packed), sha256(b""))] {
        let error = root.apply(wrong, &cancel).expect_err("one is wrong");
        assert_eq!(error.code(), ErrorCode::ImageInvalid);
        assert!(error.to_string().contains("its digest is sha256:"), "{error}");
    }
}

#[test]
fn bombs_do_not_go_off() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut root = root(dir.path(), 16 << 20);
    // A file of zeros takes no room, however large it is.
    let small = Member { data: vec![0; 20 << 20], ..Member::new("zeros", b'0') };
    apply(&mut root, &gzip(&tar(&[small]))).expect("it is a hole");
    let mut header = Member::file("bomb", "").header(0);
    header[124..136].copy_from_slice(b"77777777777\0");
    super::super::testing::seal(&mut header);
    let zeros = io::repeat(0).take(8 << 30);
    let error = root.apply(layer(header.as_slice().chain(zeros)), &Cancel::new());
    let error = error.expect_err("it is too much");
    assert_eq!(error.code(), ErrorCode::ImageInvalid);
    assert!(error.to_string().contains("layer 1 of 1: it unpacks to more than 128 MiB"), "{error}");
    // So is what follows the end of the tar.
    let dir = tempfile::tempdir().expect("a directory");
    let mut root = self::root(dir.path(), 16 << 20);
    let error = root.apply(layer(io::repeat(0)), &Cancel::new()).expect_err("it is too much");
    assert!(error.to_string().contains("unpacks to more than"), "{error}");
}

#[test]
fn what_does_not_fit_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut root = root(dir.path(), 16 << 20);
    let large = Member { data: vec![7; 20 << 20], ..Member::new("large", b'0') };
    let error = apply(&mut root, &tar(&[large])).expect_err("it does not fit");
    assert_eq!(error.code(), ErrorCode::ImageInvalid);
    let cause = std::error::Error::source(&error).expect("the disk's").to_string();
    assert!(cause.contains("full"), "{cause}");
    // Nor do more files than there are inodes: 16 MiB have 1024.
    let dir = tempfile::tempdir().expect("a directory");
    let mut root = self::root(dir.path(), 16 << 20);
    let many: Vec<Member> = (0..1100).map(|at| Member::file(format!("f{at}"), "")).collect();
    let error = apply(&mut root, &tar(&many)).expect_err("too many").to_string();
    assert_eq!(error, "layer 1 of 1: f1013: there are more than 1013 files");
}

#[test]
fn as_many_files_as_are_allowed_fit() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut root = root(dir.path(), 16 << 20);
    let many: Vec<Member> = (0..1013).map(|at| Member::file(format!("f{at}"), "")).collect();
    apply(&mut root, &tar(&many)).expect("there are as many inodes");
    root.finish(&Cancel::new()).expect("it is sound");
}

#[test]
fn entries_are_limited_and_errors_name_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut root = root(dir.path(), 16 << 20);
    root.limit(|limits| limits.entries = 3);
    apply(&mut root, &members("a=1 a=2")).expect("they are few");
    let error = apply(&mut root, &members("a=1 b=2")).expect_err("they are too many").to_string();
    assert_eq!(error, "layer 1 of 1: b: there are more than 3 entries");
    let error = apply(&mut root, &members("../x=1")).expect_err("it is bad").to_string();
    assert!(error.starts_with("layer 1 of 1: ../x: "), "{error}");
    let cut = &members("a=1234")[..514];
    let error = apply(&mut self::root(dir.path(), 16 << 20), cut).expect_err("it is cut");
    assert_eq!(error.code(), ErrorCode::ImageInvalid);
    assert_eq!(error.to_string(), "layer 1 of 1: it ends too early");
}

#[test]
fn work_is_called_off_in_the_middle_of_a_file() {
    /// Turns the switch after a while, and never ends.
    struct Endless<'a>(&'a Cancel, u64);
    impl Read for Endless<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(0);
            self.1 += buffer.len() as u64;
            if self.1 > 1 << 20 {
                self.0.cancel();
            }
            Ok(buffer.len())
        }
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut root = root(dir.path(), 16 << 20);
    let mut header = Member::file("endless", "").header(0);
    header[124..136].copy_from_slice(b"77777777777\0");
    super::super::testing::seal(&mut header);
    let cancel = Cancel::new();
    let error = root.apply(layer(header.as_slice().chain(Endless(&cancel, 0))), &cancel);
    assert!(matches!(error, Err(LayerError::Cancelled)), "{error:?}");
}

#[test]
fn a_stream_that_breaks_is_not_the_layers_fault() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(5))
        }
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut root = root(dir.path(), 16 << 20);
    let whole = gzip(&tar(&[Member::file("a", vec![7; 100_000])]));
    let error = root.apply(layer(whole[..50].chain(Broken)), &Cancel::new()).expect_err("broken");
    assert_eq!(error.code(), ErrorCode::PullFailed);
    assert_eq!(error.to_string(), "cannot read layer 1 of 1");
}

/// A tar that is made while it is read, so that nobody has to hold it.
struct Generated<I> {
    members: I,
    ready: io::Cursor<Vec<u8>>,
}

impl<I: Iterator<Item = Member>> Read for Generated<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.ready.read(buffer)? {
            0 => {}
            count => return Ok(count),
        }
        let Some(member) = self.members.next() else { return Ok(0) };
        self.ready = io::Cursor::new(member.bytes());
        self.ready.read(buffer)
    }
}

/// The most memory that this process has ever had, in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is told");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib >> 10
}

#[test]
fn many_files_take_little_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut root = root(dir.path(), 4 << 30);
    let members = (0..200_000).map(|at| {
        Member::file(
            format!("usr/lib/directory-{:03}/file-{at:06}.js", at / 500),
            "twenty bytes of text",
        )
    });
    let stream = Generated { members, ready: io::Cursor::default() };
    root.apply(layer(stream), &Cancel::new()).expect("they are allowed");
    root.finish(&Cancel::new()).expect("it is sound");
    assert!(peak_mib() < 100, "{} MiB", peak_mib());
}
