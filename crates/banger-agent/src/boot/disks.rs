//! Disks, and the size of the ext4 on them.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its name in `/dev`.
    pub name: String,
    /// Its number as device-mapper tables have it, `major:minor`.
    pub number: String,
    /// Its size in 512-byte sectors.
    pub sectors: u64,
}

impl Disk {
    /// The disk of that name, if the kernel has it and its node is there.
    pub fn find(name: &str) -> Option<Self> {
        let dir = Path::new("/sys/class/block").join(name);
        let number = fs::read_to_string(dir.join("dev")).ok()?.trim().to_owned();
        let sectors = fs::read_to_string(dir.join("size")).ok()?.trim().parse().ok()?;
        let disk = Self { name: name.to_owned(), number, sectors };
        fs::metadata(disk.path()).is_ok().then_some(disk)
    }

    /// Its node.
    pub fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }
}

/// The size of an ext4 file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ext4Size {
    /// How many blocks it has.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
}

impl Ext4Size {
    /// Reads the superblock of the file system on a device.
    pub fn read(device: &Path) -> io::Result<Self> {
        const OFFSET: u64 = 1024;
        let mut superblock = [0; 1024];
        let mut file = fs::File::open(device)?;
        file.seek(SeekFrom::Start(OFFSET))?;
        file.read_exact(&mut superblock)?;
        Self::parse(&superblock)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "there is no ext4 on it"))
    }

    fn parse(superblock: &[u8; 1024]) -> Option<Self> {
        const MAGIC: u16 = 0xef53;
        const HAS_64BIT: u32 = 0x80;
        let long = |at: usize| {
            let bytes = superblock[at..].first_chunk::<4>().copied().unwrap_or_default();
            u32::from_le_bytes(bytes)
        };
        if u16::from_le_bytes([superblock[0x38], superblock[0x39]]) != MAGIC {
            return None;
        }
        let high = if long(0x60) & HAS_64BIT == 0 { 0 } else { u64::from(long(0x150)) };
        let block_bytes = 1024_u64.checked_shl(long(0x18)).filter(|bytes| *bytes <= 65_536)?;
        Some(Self { blocks: high << 32 | u64::from(long(4)), block_bytes })
    }

    /// How many blocks fit on a device of that size.
    pub fn blocks_on(self, sectors: u64) -> u64 {
        sectors / (self.block_bytes / 512)
    }

    /// Grows the file system of this size, which is mounted at `mounted`, to its disk.
    ///
    /// The kernel zeroes the new inode tables either while it grows (`noinit_itable`) or in the
    /// background after it (`init_itable`): for 100 GiB that is more than a gigabyte of the VM's own
    /// disk, and zeros are what lies there anyway. So it is told `init_itable` for as long as it
    /// grows, and the background thread is called off before it begins.
    pub fn grow(self, mounted: &Path, sectors: u64) -> io::Result<()> {
        let blocks = self.blocks_on(sectors);
        if blocks <= self.blocks {
            return Ok(());
        }
        remount(mounted, "init_itable")?;
        let grown = resize(mounted, blocks);
        remount(mounted, "noinit_itable")?;
        grown
    }
}

fn remount(mounted: &Path, option: &str) -> io::Result<()> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOATIME;
    mount(None::<&str>, mounted, None::<&str>, flags, Some(option))?;
    Ok(())
}

fn resize(mounted: &Path, blocks: u64) -> io::Result<()> {
    /// `EXT4_IOC_RESIZE_FS`: _IOW('f', 16, __u64)
    const RESIZE: libc::c_ulong = 0x4008_6610;
    let root = fs::File::open(mounted)?;
    // SAFETY: the call reads one `u64`, which `blocks` is.
    let done = unsafe { libc::ioctl(root.as_raw_fd(), RESIZE, &raw const blocks) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(blocks: u64, log_block: u32, incompatible: u32) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        let parts = blocks.to_le_bytes();
        bytes[4..8].copy_from_slice(&parts[..4]);
        bytes[0x150..0x154].copy_from_slice(&parts[4..]);
        bytes[0x18..0x1c].copy_from_slice(&log_block.to_le_bytes());
        bytes[0x60..0x64].copy_from_slice(&incompatible.to_le_bytes());
        bytes[0x38..0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
        bytes
    }

    #[test]
    fn superblocks_tell_the_size() {
        let size = |blocks, block_bytes| Some(Ext4Size { blocks, block_bytes });
        assert_eq!(Ext4Size::parse(&superblock(1000, 2, 0)), size(1000, 4096));
        assert_eq!(Ext4Size::parse(&superblock(1 << 33, 2, 0x80)), size(1 << 33, 4096));
        assert_eq!(Ext4Size::parse(&superblock(1 << 33 | 7, 0, 0)), size(7, 1024));
        assert_eq!(Ext4Size::parse(&superblock(1, 40, 0)), None);
        assert_eq!(Ext4Size::parse(&superblock(1, u32::MAX, 0)), None);
        assert_eq!(Ext4Size::parse(&[0; 1024]), None);
    }

    #[test]
    fn only_whole_blocks_fit() {
        let size = Ext4Size { blocks: 0, block_bytes: 4096 };
        assert_eq!(size.blocks_on(17), 2);
    }
}
