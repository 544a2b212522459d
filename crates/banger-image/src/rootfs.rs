//! From a directory tree to an ext4 disk.
//!
//! The tree may belong to subordinate ids, so everything that reads it runs in the namespaces of
//! [`Isolation::Root`]. `mke2fs -d` keeps owners, modes, extended attributes and file capabilities.

use std::path::Path;

use banger_host::command::{Cancel, Isolation, Tool};
use sha2::{Digest, Sha256};

use crate::error::PullError;
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
    Tool::new("tar")
        .args(["--create", "--file=-", "--format=posix", "--sort=name", "--numeric-owner"])
        .args(["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"])
        .args(["--xattrs", "--xattrs-include=*", "--clamp-mtime"])
        .arg(format!("--mtime={NEWEST_MTIME}"))
        .arg("--directory")
        .arg(root)
        .arg(".")
        .isolation(Isolation::Root)
        .run_streaming(cancel, &mut |bytes| sha.update(bytes))
        .map_err(PullError::tool("measuring the root filesystem"))?;
    Ok(hex::encode(sha.finalize()))
}

/// Make the disk `file` with the contents of `root`, and check it.
pub(crate) fn make_disk(
    root: &Path,
    file: &Path,
    plan: &DiskPlan<'_>,
    cancel: &Cancel,
) -> Result<(), PullError> {
    let uuid = uuid_of(plan.identity);
    let features =
        if plan.journal { FEATURES.to_owned() } else { format!("{FEATURES},^has_journal") };
    let mut tool = Tool::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256"]);
    if plan.journal {
        tool = tool.arg("-J").arg(format!("size={JOURNAL_MIB}"));
    }
    tool.args(["-i", "16384", "-m", "0", "-O", &features, "-L", plan.label, "-U", &uuid])
        // Inode tables and journal are initialised now: a guest would write all that to its own
        // disk. The zeros become holes again below.
        .arg("-E")
        .arg(format!("hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"))
        .arg("-d")
        .arg(root)
        .arg(file)
        .arg(format!("{}k", plan.bytes / 1024))
        .isolation(Isolation::Root)
        .run(cancel)
        .map_err(PullError::tool("making the disk"))?;
    release_unwritten(file).map_err(PullError::io("make sparse", file))?;
    Tool::new("e2fsck")
        .args(["-f", "-n"])
        .arg(file)
        .run(cancel)
        .map_err(PullError::tool("checking the disk"))?;
    Ok(())
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
