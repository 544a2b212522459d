//! From a directory tree to an ext4 disk, and what all of banger's disks are like.
//!
//! The tree may belong to subordinate ids, so everything that reads it runs in the namespaces of
//! [`Isolation::Root`].

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

use banger_host::command::{Cancel, Isolation, Tool, ToolError};
use sha2::{Digest, Sha256};

use crate::error::PullError;
use crate::layer::{Layer, Root};
use crate::sparse::release_unwritten;

/// The features of the disks, spelled out, so that the host's `mke2fs.conf` has no say: everything
/// that e2fsprogs 1.47 and the kernels since 5.10 both have and ext4 has by default.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
                        flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// Files made later than this (Debian 12's first release) count as made then when a tree is
/// measured: when a file was written says nothing about what it is.
const NEWEST_MTIME: &str = "@1686355200";
/// Size of a disk's journal. The default for 8 GiB is 64; guests write little metadata.
const JOURNAL_MIB: u64 = 32;

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
    read: impl FnOnce(io::PipeReader) -> Result<(), PullError>,
) -> Result<(), PullError> {
    let failed = |source| ToolError::Streams { program: "tar".to_owned(), source };
    let doing = PullError::tool("reading the root filesystem");
    thread::scope(|scope| {
        let (reader, writer) = match io::pipe() {
            Ok(pipe) => pipe,
            Err(error) => return Err(doing(failed(error))),
        };
        let tool = tool.stdout_to(File::from(OwnedFd::from(writer)));
        // The tool ends with the thread that has started it, so that one waits for it.
        let running = scope.spawn(|| tool.run(cancel));
        // Whatever happens in there, the pipe is closed afterwards, and that ends the tool.
        let outcome = read(reader);
        let ended = running.join().expect("it does not panic");
        match (outcome, ended) {
            (Ok(()), Ok(_)) => Ok(()),
            // Half a tree is worth nothing, even if it looks like a whole one.
            (Ok(()), Err(error)) => Err(doing(error)),
            // That the tool could not go on, or was not there, is why there was too little.
            (Err(error), Ok(_)) => Err(error),
            (Err(error), Err(tool)) if is_broken_pipe(&tool) => Err(error),
            (Err(_), Err(tool)) => Err(doing(tool)),
        }
    })
}

/// Whether a tool ended only because nobody read on.
fn is_broken_pipe(error: &ToolError) -> bool {
    use std::os::unix::process::ExitStatusExt;
    const SIGPIPE: i32 = 13;
    match error {
        ToolError::Failed { status, stderr, .. } => {
            // Under `unshare`, which tells of the signal of its child in a number.
            status.signal() == Some(SIGPIPE)
                || status.code() == Some(128 + SIGPIPE)
                || stderr.iter().any(|line| line.contains("Broken pipe"))
        }
        _ => false,
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
    use super::*;

    #[test]
    fn a_uuid_comes_from_the_digest() {
        let digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        assert_eq!(uuid_of(digest), "01234567-89ab-8def-8123-456789abcdef");
    }
}
