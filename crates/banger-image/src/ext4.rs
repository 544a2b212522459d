//! Looking at ext4 disks without mounting them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where the first superblock is.
const SUPERBLOCK_OFFSET: u64 = 1024;
const MAGIC: u16 = 0xef53;

/// What a superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// UUID in the usual notation.
    pub(crate) uuid: String,
    pub(crate) block_bytes: u64,
    pub(crate) blocks: u64,
    pub(crate) blocks_per_group: u64,
}

impl Superblock {
    fn parse(bytes: &[u8; 1024]) -> Option<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let shift = u32_at(0x18);
        if u16_at(0x38) != MAGIC || shift > 6 {
            return None;
        }
        let hex = hex::encode(&bytes[0x68..0x78]);
        Some(Self {
            uuid: [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"),
            block_bytes: 1024 << shift,
            blocks: u64::from(u32_at(0x4)) | u64::from(u32_at(0x150)) << 32,
            blocks_per_group: u64::from(u32_at(0x20)),
        })
    }
}

/// Check that the file is an ext4 disk of exactly `bytes` with that UUID, and whole as far as a few
/// reads can show: the superblock and its copies, which are spread over the disk, are all there.
/// Answers what is wrong.
pub(crate) fn check(path: &Path, bytes: u64, uuid: &str) -> Result<(), String> {
    let file =
        File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if size != bytes {
        return Err(format!("{name} has {size} bytes instead of {bytes}"));
    }
    let first = read(&file, SUPERBLOCK_OFFSET)
        .map_err(|error| format!("cannot read {name}: {error}"))?
        .ok_or_else(|| format!("{name} is no ext4 file system"))?;
    if first.uuid != uuid {
        return Err(format!("{name} is another file system: {} instead of {uuid}", first.uuid));
    }
    if first.blocks * first.block_bytes != size {
        return Err(format!("{name} does not fill its file"));
    }
    for group in backup_groups(&first) {
        let offset = group * first.blocks_per_group * first.block_bytes;
        let copy = read(&file, offset).map_err(|error| format!("cannot read {name}: {error}"))?;
        if copy.is_none_or(|copy| copy.uuid != uuid) {
            return Err(format!("{name} has lost data at byte {offset}"));
        }
    }
    Ok(())
}

fn read(file: &File, offset: u64) -> io::Result<Option<Superblock>> {
    let mut bytes = [0; 1024];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(Superblock::parse(&bytes))
}

/// The groups with a copy of the superblock (`sparse_super`): 1 and the powers of 3, 5 and 7.
fn backup_groups(superblock: &Superblock) -> Vec<u64> {
    let groups = superblock.blocks.div_ceil(superblock.blocks_per_group.max(1));
    let mut backups = vec![1];
    for base in [3_u64, 5, 7] {
        backups.extend(std::iter::successors(Some(base), |power| power.checked_mul(base)).take(40));
    }
    backups.retain(|group| *group < groups);
    backups.sort_unstable();
    backups.dedup();
    backups
}

#[cfg(test)]
mod tests {
    use banger_host::command::{Cancel, Tool};

    use super::*;

    const UUID: &str = "01234567-89ab-8def-8123-456789abcdef";
    const BYTES: u64 = 300 << 20;

    fn disk(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("root.ext4");
        Tool::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-U", UUID])
            .arg(&path)
            .arg("300M")
            .run(&Cancel::new())
            .expect("e2fsprogs is there");
        path
    }

    #[test]
    fn a_good_disk_passes_and_others_are_told_apart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = disk(dir.path());
        check(&path, BYTES, UUID).expect("it is good");
        let wrong = "11234567-89ab-8def-8123-456789abcdef";
        assert!(check(&path, BYTES, wrong).unwrap_err().contains("another file system"));
        let missing = check(&dir.path().join("none"), BYTES, UUID);
        assert!(missing.unwrap_err().contains("cannot open"));
    }

    #[test]
    fn damage_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = disk(dir.path());
        let file = File::options().write(true).open(&path).expect("it is ours");
        file.set_len(200 << 20).expect("truncate");
        assert!(check(&path, BYTES, UUID).unwrap_err().contains("instead of"));
        file.set_len(BYTES).expect("extend with a hole");
        file.write_all_at(&[0; 4096], 128 << 20).expect("overwrite a copy");
        assert!(check(&path, BYTES, UUID).unwrap_err().contains("lost data"));
        file.write_all_at(&[0; 4096], 0).expect("overwrite the first");
        assert!(check(&path, BYTES, UUID).unwrap_err().contains("no ext4"));
    }

    #[test]
    fn copies_are_where_mke2fs_puts_them() {
        let superblock = Superblock {
            uuid: UUID.to_owned(),
            block_bytes: 4096,
            blocks: 2 << 20,
            blocks_per_group: 32768,
        };
        assert_eq!(backup_groups(&superblock), [1, 3, 5, 7, 9, 25, 27, 49]);
    }
}
