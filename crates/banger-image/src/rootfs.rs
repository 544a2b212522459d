//! From a directory tree to an ext4 disk, and what all of banger's disks are like.
//!
//! The tree may belong to subordinate ids, so everything that reads it runs in the namespaces of
//! [`Isolation::Root`].

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use banger_host::command::{Cancel, Isolation, Tool, ToolError};
use sha2::{Digest, Sha256};

use crate::error::PullError;
use crate::layer::{Layer, Root};
use banger_host::sparse::release_unwritten;

/// The features of the disks, spelled out, so that the host's `mke2fs.conf` has no say: everything
/// that e2fsprogs 1.47 and the kernels since 5.10 both have and ext4 has by default.
pub(crate) const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
                        flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// Files made later than this (Debian 12's first release) count as made then when a tree is
/// measured: when a file was written says nothing about what it is.
const NEWEST_MTIME: &str = "@1686355200";
/// Size of a disk's journal. The default for 8 GiB is 64; guests write little metadata.
pub(crate) const JOURNAL_MIB: u64 = 32;

/// How much of a disk there is for each file that it can hold.
pub(crate) const BYTES_PER_INODE: u64 = 16384;

/// What a disk shall be like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskPlan<'a> {
    /// Name of the file system.
    pub(crate) label: &'a str,
    /// Size of the disk; the file is sparse.
    pub(crate) bytes: u64,
    /// Whether it will ever be written to.
    pub(crate) journal: bool,
    /// 64 hex digits that identify its contents: its UUID comes from them.
    pub(crate) identity: &'a str,
}

/// The sha256, in hex, of the tree in a normal form: a tar in the order of names, with numeric
/// owners, extended attributes and no times but those of files older than [`NEWEST_MTIME`].
pub(crate) fn tree_digest(root: &Path, cancel: &Cancel) -> Result<String, PullError> {
    let mut sha = Sha256::new();
    tar_of(root)
        .arg("--clamp-mtime")
        .arg(format!("--mtime={NEWEST_MTIME}"))
        .arg(".")
        .run_streaming(cancel, &mut |bytes| sha.update(bytes))
        .map_err(PullError::tool("measuring the root filesystem"))?;
    Ok(hex::encode(sha.finalize()))
}

/// A tar of a tree, always the same of the same tree.
fn tar_of(root: &Path) -> Tool {
    Tool::new("tar")
        .args(["--create", "--file=-", "--format=posix", "--sort=name", "--numeric-owner"])
        .args(["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"])
        .args(["--xattrs", "--xattrs-include=*", "--one-file-system"])
        .arg("--directory")
        .arg(root)
        .isolation(Isolation::Root)
}

/// Make the disk `file` with the contents of the directory `root`, and check it.
///
/// `mke2fs -d` could do that too. This way, there is one way for files to get onto a disk, and the
/// same tree makes the same disk, which mke2fs does not promise.
pub(crate) fn make_root_disk(
    root: &Path,
    file: &Path,
    plan: &DiskPlan<'_>,
    cancel: &Cancel,
) -> Result<(), PullError> {
    let mut disk = Root::create(file, plan, cancel)?;
    let tool = tar_of(root).arg("--sparse").arg(".");
    let name = "the root filesystem".to_owned();
    stream(tool, cancel, |stream| {
        let (digest, diff_id, stream) = (None, None, Box::new(stream));
        Ok(disk.apply(Layer { name, digest, diff_id, stream }, cancel)?)
    })?;
    disk.finish(cancel)
}

/// Run a tool while `read` reads what it writes.
fn stream(
    tool: Tool,
    cancel: &Cancel,
    read: impl FnOnce(ToolOutput) -> Result<(), PullError>,
) -> Result<(), PullError> {
    let doing = PullError::tool("reading the root filesystem");
    let (reader, writer) = match io::pipe() {
        Ok(pipe) => pipe,
        Err(source) => return Err(doing(ToolError::Streams { program: "tar".to_owned(), source })),
    };
    let tool = tool.stdout_to(File::from(OwnedFd::from(writer)));
    let ended = Arc::new(AtomicBool::new(false));
    let output = ToolOutput { pipe: reader, ended: Arc::clone(&ended) };
    thread::scope(|scope| {
        // The tool ends with the thread that has started it, so that one waits for it.
        let running = scope.spawn(|| tool.run(cancel));
        // Whatever happens in there, the pipe is closed afterwards, and that ends the tool.
        let outcome = read(output);
        match (outcome, running.join().expect("it does not panic")) {
            (outcome, Ok(_)) => outcome,
            // It could not go on only because nobody read any further.
            (Err(error), Err(_)) if !ended.load(Ordering::Acquire) => Err(error),
            // Half a tree is worth nothing, even if it looks like a whole one.
            (_, Err(error)) => Err(doing(error)),
        }
    })
}

/// What a tool writes, and whether that has ended.
struct ToolOutput {
    pipe: io::PipeReader,
    ended: Arc<AtomicBool>,
}

impl Read for ToolOutput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.pipe.read(buffer)?;
        if count == 0 {
            self.ended.store(true, Ordering::Release);
        }
        Ok(count)
    }
}

/// Make an empty file system in a new file `file`.
pub(crate) fn format_disk(
    file: &Path,
    plan: &DiskPlan<'_>,
    cancel: &Cancel,
) -> Result<(), PullError> {
    mke2fs(plan)
        .arg(file)
        .arg(format!("{}k", plan.bytes / 1024))
        .run(cancel)
        .map_err(PullError::tool("formatting the disk"))?;
    release_unwritten(file).map_err(PullError::io("make sparse", file))
}

/// Check a file system.
pub(crate) fn check_disk(file: &Path, cancel: &Cancel) -> Result<(), PullError> {
    Tool::new("e2fsck")
        .args(["-f", "-n"])
        .arg(file)
        .run(cancel)
        .map_err(PullError::tool("checking the disk"))?;
    Ok(())
}

/// Make the disk `file` with the contents of `root`, and check it, with `mke2fs` alone.
pub(crate) fn make_disk(
    root: &Path,
    file: &Path,
    plan: &DiskPlan<'_>,
    cancel: &Cancel,
) -> Result<(), PullError> {
    mke2fs(plan)
        .arg("-d")
        .arg(root)
        .arg(file)
        .arg(format!("{}k", plan.bytes / 1024))
        .isolation(Isolation::Root)
        .run(cancel)
        .map_err(PullError::tool("making the disk"))?;
    release_unwritten(file).map_err(PullError::io("make sparse", file))?;
    check_disk(file, cancel)
}

fn mke2fs(plan: &DiskPlan<'_>) -> Tool {
    let uuid = uuid_of(plan.identity);
    let features =
        if plan.journal { FEATURES.to_owned() } else { format!("{FEATURES},^has_journal") };
    let mut tool = Tool::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256"]);
    if plan.journal {
        tool = tool.arg("-J").arg(format!("size={JOURNAL_MIB}"));
    }
    tool.arg("-i")
        .arg(BYTES_PER_INODE.to_string())
        .args(["-m", "0", "-O", &features, "-L", plan.label, "-U", &uuid])
        // Inode tables and journal are initialised now: a guest would write all that to its own
        // disk. The zeros become holes again afterwards.
        .arg("-E")
        .arg(format!("hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"))
        // Of a disk, too, it says nothing when it was made: the same again is the same.
        .env("E2FSPROGS_FAKE_TIME", NEWEST_MTIME.trim_start_matches('@'))
        .env("SOURCE_DATE_EPOCH", NEWEST_MTIME.trim_start_matches('@'))
}

/// A UUID made of a digest.
pub(crate) fn uuid_of(identity: &str) -> String {
    let part = |from: usize, to: usize| identity.get(from..to).unwrap_or_default();
    // Version 8: made by the maker's own rules.
    let variant =
        ["8", "9", "a", "b"][usize::from(identity.as_bytes().get(16).copied().unwrap_or(0)) % 4];
    format!(
        "{}-{}-8{}-{variant}{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

    use banger_api::ErrorCode;
    use banger_ext4::{Kind, Limits, Reader, Tree};

    use super::*;
    use banger_host::sparse::disk_digest;

    const IDENTITY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const PLAN: DiskPlan<'_> =
        DiskPlan { label: "test", bytes: 16 << 20, journal: false, identity: IDENTITY };

    #[test]
    fn a_uuid_comes_from_the_digest() {
        assert_eq!(uuid_of(IDENTITY), "01234567-89ab-8def-8123-456789abcdef");
    }

    /// A directory with a bit of everything.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        fs::create_dir(root.join("bin")).expect("create");
        fs::write(root.join("bin/tool"), "tool").expect("write");
        let mode = fs::Permissions::from_mode(0o4755);
        fs::set_permissions(root.join("bin/tool"), mode).expect("chmod");
        fs::hard_link(root.join("bin/tool"), root.join("bin/other")).expect("link");
        symlink("bin/tool", root.join("link")).expect("link");
        let sparse = File::create(root.join("sparse")).expect("create");
        sparse.write_all_at(b"end", 100 << 20).expect("write");
        dir
    }

    #[test]
    fn a_directory_becomes_a_disk() {
        let (dir, out) = (tree(), tempfile::tempdir().expect("a directory"));
        let disk = out.path().join("disk");
        let cancel = Cancel::new();
        make_root_disk(dir.path(), &disk, &PLAN, &cancel).expect("it is made");
        let reader = Reader::open(File::open(&disk).expect("it is there")).expect("it is ext4");
        let limits = Limits { nodes: 100, memory: 1 << 20, contents: 1 << 30 };
        let tree = reader.tree(&limits).expect("it is sound");
        let bin = tree.child(Tree::ROOT, b"bin").expect("it is there");
        let tool = tree.child(bin, b"tool").expect("it is there");
        assert_eq!(tree.child(bin, b"other"), Some(tool));
        assert_eq!(tree.node(tool).metadata.mode, 0o4755);
        let sparse = tree.child(Tree::ROOT, b"sparse").expect("it is there");
        let Kind::File(content) = &tree.node(sparse).kind else { panic!("a file") };
        assert_eq!(content.bytes, (100 << 20) + 3);
        assert_eq!(content.extents.iter().map(|extent| extent.blocks).sum::<u32>(), 1);
        let first = disk_digest(&disk).expect("read");
        fs::remove_file(&disk).expect("remove");
        make_root_disk(dir.path(), &disk, &PLAN, &cancel).expect("it is made");
        assert_eq!(disk_digest(&disk).expect("read"), first);
        let digest = tree_digest(dir.path(), &cancel).expect("it can be read");
        fs::write(dir.path().join("new"), "").expect("write");
        assert_ne!(tree_digest(dir.path(), &cancel).expect("it can be read"), digest);
    }

    #[test]
    fn whatever_fails_first_is_told() {
        let (dir, out) = (tree(), tempfile::tempdir().expect("a directory"));
        let make = |root: &Path, name: &str| {
            make_root_disk(root, &out.path().join(name), &PLAN, &Cancel::new())
        };
        // A directory that cannot be read is not an empty one.
        let error = make(&dir.path().join("missing"), "a").expect_err("it is not there");
        assert!(matches!(error, PullError::Tool { .. }), "{error}");
        // tar is interrupted because the disk is full, not the other way round.
        fs::write(dir.path().join("large"), vec![7; 20 << 20]).expect("write");
        let error = make(dir.path(), "b").expect_err("it does not fit");
        assert_eq!(error.code(), ErrorCode::ImageInvalid, "{error}");
        let cancel = Cancel::new();
        cancel.cancel();
        let made = make_root_disk(dir.path(), &out.path().join("c"), &PLAN, &cancel);
        assert!(matches!(made, Err(PullError::Cancelled)));
    }
}
