//! Disks to test with, and e2fsprogs to judge them.

#![allow(dead_code, reason = "each test uses some of it")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use banger_ext4::{
    Content, Error, Kind, Limits, Metadata, NodeId, Reader, Timestamp, Tree, Writer,
};
use banger_host::command::{Cancel, Tool};

/// As banger-image makes them.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
                        flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
const UUID: &str = "01234567-89ab-8def-8123-456789abcdef";

/// The usual features, and more or fewer.
pub fn features(changes: &str) -> String {
    format!("{FEATURES},{changes}")
}

/// A disk in a directory of its own.
pub struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// An empty file system of that many KiB.
    pub fn new(kib: u64) -> Self {
        Self::with(kib, &["-J", "size=4"], FEATURES)
    }

    /// One without a journal.
    pub fn without_journal(kib: u64) -> Self {
        Self::with(kib, &[], &features("^has_journal"))
    }

    /// One with other options and features.
    pub fn with(kib: u64, options: &[&str], features: &str) -> Self {
        let extended =
            format!("hash_seed={UUID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0");
        Self::made_by(|path| {
            Tool::new("mke2fs")
                .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0"])
                .args(["-i", "16384", "-O", features])
                .args(options)
                .args(["-L", "test", "-U", UUID, "-E", &extended])
                .arg(path)
                .arg(format!("{kib}k"))
                .run(&Cancel::new())
                .expect("mke2fs makes a disk");
        })
    }

    /// One that something makes in a file.
    pub fn made_by(make: impl FnOnce(&Path)) -> Self {
        let disk = Self { dir: tempfile::tempdir().expect("a directory") };
        make(&disk.path());
        disk
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self) -> File {
        File::options().read(true).write(true).open(self.path()).expect("it is there")
    }

    pub fn writer(&self) -> Writer {
        Writer::open(self.file()).expect("it is as mke2fs makes them")
    }

    /// Have e2fsck judge it.
    pub fn check(&self) {
        let checked = Tool::new("e2fsck").args(["-f", "-n"]).arg(self.path()).run(&Cancel::new());
        if let Err(error) = checked {
            panic!("{error:?}");
        }
    }

    /// What debugfs answers.
    pub fn debugfs(&self, request: &str) -> String {
        let run = Tool::new("debugfs").args(["-R", request]).arg(self.path()).run(&Cancel::new());
        run.expect("debugfs runs").text()
    }

    /// What debugfs answers, until it is enough.
    pub fn debugfs_start(&self, request: &str, bytes: usize) -> String {
        let mut start = Vec::new();
        Tool::new("debugfs")
            .args(["-R", request])
            .arg(self.path())
            .run_streaming(&Cancel::new(), &mut |output| {
                let left = bytes - start.len();
                start.extend(&output[..left.min(output.len())]);
            })
            .expect("debugfs runs");
        String::from_utf8_lossy(&start).into_owned()
    }

    /// How much of the file system's file exists.
    pub fn taken(&self) -> u64 {
        banger_host::files::allocated_bytes(&self.path()).expect("it is there")
    }
}

pub fn metadata(mode: u16) -> Metadata {
    let mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 };
    Metadata { mode, uid: 1000, gid: 70_000, mtime, ..Metadata::default() }
}

pub fn directory() -> Kind {
    Kind::Directory(BTreeMap::new())
}

/// A tree that is being made, with the writer for its contents.
pub struct Making {
    pub tree: Tree,
    pub writer: Writer,
}

impl Making {
    pub fn new(disk: &Disk) -> Self {
        Self { tree: Tree::new(), writer: disk.writer() }
    }

    pub fn content(&mut self, bytes: &[u8]) -> Content {
        self.writer.write(&mut &bytes[..], bytes.len() as u64).expect("there is room")
    }

    pub fn file(&mut self, parent: NodeId, name: &str, bytes: &[u8]) -> NodeId {
        let content = self.content(bytes);
        self.add(parent, name, Kind::File(content))
    }

    pub fn directory(&mut self, parent: NodeId, name: &str) -> NodeId {
        self.add(parent, name, directory())
    }

    pub fn add(&mut self, parent: NodeId, name: &str, kind: Kind) -> NodeId {
        let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { 0o640 };
        self.tree.insert(parent, name.as_bytes(), metadata(mode), kind).expect("it is free")
    }

    pub fn finish(self) -> Result<Tree, Error> {
        self.writer.finish(&self.tree)?;
        Ok(self.tree)
    }
}

/// Limits that no test reaches.
pub const LIMITS: Limits = Limits { nodes: 1 << 20, memory: 1 << 30, contents: 1 << 50 };

/// Read the disk.
pub fn read(disk: &Disk) -> (Reader, Tree) {
    let reader = Reader::open(disk.file()).expect("it is sound");
    let tree = reader.tree(&LIMITS).expect("it is sound");
    (reader, tree)
}

/// What is at a path: metadata, kind, contents, and the first path of the same file.
pub type Described = (Metadata, Kind, Vec<u8>, Vec<u8>);

/// Everything about a tree that can be compared, by path.
pub fn describe(
    tree: &Tree,
    contents: &dyn Fn(&Content) -> Vec<u8>,
) -> BTreeMap<Vec<u8>, Described> {
    let mut described = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut pending = vec![(Vec::new(), Tree::ROOT)];
    while let Some((path, id)) = pending.pop() {
        let node = tree.node(id);
        let (kind, bytes) = match &node.kind {
            Kind::Directory(_) => (directory(), Vec::new()),
            Kind::File(content) => {
                (Kind::File(Content { bytes: content.bytes, extents: vec![] }), contents(content))
            }
            other => (other.clone(), Vec::new()),
        };
        let first = first.entry(id).or_insert_with(|| path.clone()).clone();
        described.insert(path.clone(), (node.metadata.clone(), kind, bytes, first));
        // In the reverse order, so that the first path of a file is the same for equal trees.
        for (name, id) in tree.entries(id).into_iter().flatten().rev() {
            pending.push(([&path[..], b"/", name].concat(), *id));
        }
    }
    described
}

/// Read all of a file.
pub fn contents(reader: &Reader, content: &Content) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.contents(content).read_to_end(&mut bytes).expect("it is on the disk");
    bytes
}
