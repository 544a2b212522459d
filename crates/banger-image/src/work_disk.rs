//! Work disks: empty file systems of one VM's own.

use std::fs::File;
use std::path::Path;

use banger_host::command::{Cancel, Tool};

use crate::error::PullError;
use crate::rootfs::{BYTES_PER_INODE, FEATURES, JOURNAL_MIB};

/// Make the new, sparse file `path` an empty ext4 of `bytes`, durably. Its root belongs to root,
/// and has nothing in it but `lost+found`. Mode 0600.
///
/// # Errors
/// See [`PullError`].
pub fn make_work_disk(path: &Path, bytes: u64) -> Result<(), PullError> {
    let file = new_file(path).map_err(PullError::io("create", path))?;
    file.set_len(bytes).map_err(PullError::io("size", path))?;
    Tool::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0"])
        .args(["-O", FEATURES, "-L", "banger-work", "-i", &BYTES_PER_INODE.to_string()])
        .args(["-J", &format!("size={JOURNAL_MIB}")])
        // The holes of the new file are the zeros that would otherwise be written by mke2fs now, or
        // by the guest later: a 64th of the disk.
        .args(["-E", "root_owner=0:0,assume_storage_prezeroed=1"])
        .arg(path)
        .run(&Cancel::new())
        .map_err(PullError::tool("making the work disk"))?;
    file.sync_all().map_err(PullError::io("write", path))
}

fn new_file(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_work_disk_is_sound_sparse_and_never_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("work.ext4");
        let bytes = 40 << 30;
        make_work_disk(&path, bytes).expect("it is made");
        let found = std::fs::metadata(&path).expect("it is there");
        assert!(found.blocks() * 512 < 16 << 20, "{} blocks", found.blocks());
        assert_eq!(found.len(), bytes);
        assert_eq!(found.mode() & 0o777, 0o600);
        let checked = Tool::new("e2fsck").args(["-f", "-n"]).arg(&path).run(&Cancel::new());
        checked.expect("sound");
        make_work_disk(&path, bytes).expect_err("it is there already");
    }
}
