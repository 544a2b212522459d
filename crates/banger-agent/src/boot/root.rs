//! The root disk: the image, which is never written, under the VM's own copy-on-write file.
//!
//! | device | what |
//! |---|---|
//! | `vda` | the image, read-only |
//! | `vdb` | the exception store of the snapshot |
//! | `banger-origin` | only if the root is larger than the image: the image, then zeros |
//! | `banger-root` | the snapshot that is mounted as `/` |

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, io};

use banger_api::agent::ROOT_SECTORS_ARG;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::arguments;
use super::device_mapper::{DeviceMapper, MapError, Target};
use super::disks::{Disk, Ext4Size};
use super::mounts;
use super::uevents::Uevents;

const IMAGE: &str = "vda";
const STORE: &str = "vdb";
/// Where the root is mounted until it becomes `/`.
const NEW_ROOT: &str = "/root-disk";
/// How long a disk may take to appear once its driver is loaded.
const DISK_WAIT: Duration = Duration::from_secs(10);
/// Size of a copied piece in sectors: 4 KiB, a page and a block of ext4.
const CHUNK_SECTORS: u32 = 8;

/// Why there is no root disk.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The host did not attach it, or its driver is missing.
    #[error("the disk {0} does not appear")]
    NoDisk(&'static str),
    /// The disks cannot be joined.
    #[error("the image and the VM's own disk cannot be joined")]
    Map(#[from] MapError),
    /// There is no file system, or not an ext4.
    #[error("the root file system cannot be read")]
    Superblock(#[source] io::Error),
    /// The kernel does not mount it.
    #[error("the root file system cannot be mounted")]
    Mount(#[source] io::Error),
    /// Leaving the initramfs failed.
    #[error("the root file system cannot become /")]
    Switch(#[source] io::Error),
    /// `/proc`, `/sys` or `/dev` cannot be mounted in it.
    #[error("the kernel's file systems cannot be mounted in the root")]
    Furnish(#[source] io::Error),
    /// The main thread is gone, so nobody will ever use the root.
    #[error("the port to the host was not opened")]
    NoPort,
}

/// Sets up the root disk and makes it this process's `/`, once the port is open. Returns warnings.
pub fn set_up(port_opened: &mpsc::Receiver<()>) -> Result<Vec<String>, RootError> {
    let uevents = Uevents::listen();
    let find =
        |name| uevents.wait_for(DISK_WAIT, || Disk::find(name)).ok_or(RootError::NoDisk(name));
    let (image, store) = (find(IMAGE)?, find(STORE)?);
    let root = join(&image, &store, wanted_sectors(&image))?;
    let size = Ext4Size::read(Path::new(&root.path())).map_err(RootError::Superblock)?;
    mount_root().map_err(RootError::Mount)?;
    let mut warnings = Vec::new();
    if let Err(error) = size.grow(Path::new(NEW_ROOT), root.sectors) {
        warnings.push(format!("the root file system keeps its old size: {error}"));
    }
    port_opened.recv().map_err(|_| RootError::NoPort)?;
    switch_root().map_err(RootError::Switch)?;
    warnings.extend(mounts::furnish_root().map_err(RootError::Furnish)?);
    Ok(warnings)
}

/// The size that the host asks for; never less than the image, which cannot be cut.
fn wanted_sectors(image: &Disk) -> u64 {
    let wanted = arguments::value(ROOT_SECTORS_ARG).and_then(|value| value.parse().ok());
    wanted.unwrap_or(0).max(image.sectors)
}

fn join(image: &Disk, store: &Disk, sectors: u64) -> Result<Disk, MapError> {
    let mapper = DeviceMapper::open()?;
    let origin = if sectors > image.sectors {
        mapper.make("banger-origin", &origin_table(image, sectors), true)?
    } else {
        image.clone()
    };
    mapper.make("banger-root", &[snapshot_target(&origin, store, sectors)], false)
}

/// The image, and zeros up to the wanted size.
fn origin_table(image: &Disk, sectors: u64) -> [Target; 2] {
    let linear = Target {
        start: 0,
        sectors: image.sectors,
        kind: "linear",
        parameters: format!("{} 0", image.number),
    };
    let zero = Target {
        start: image.sectors,
        sectors: sectors - image.sectors,
        kind: "zero",
        parameters: String::new(),
    };
    [linear, zero]
}

/// `PO`: persistent, and an overflow of the store fails writes instead of the whole disk.
fn snapshot_target(origin: &Disk, store: &Disk, sectors: u64) -> Target {
    let parameters = format!("{} {} PO {CHUNK_SECTORS}", origin.number, store.number);
    Target { start: 0, sectors, kind: "snapshot", parameters }
}

fn mount_root() -> io::Result<()> {
    fs::create_dir_all(NEW_ROOT)?;
    // Without access times, reading a file costs nothing of the copy-on-write file; without the
    // background thread that zeroes inode tables, nor does an image that leaves that to the kernel.
    let options = "noinit_itable,errors=remount-ro";
    let source = "/dev/mapper/banger-root";
    mount(Some(source), NEW_ROOT, Some("ext4"), MsFlags::MS_NOATIME, Some(options))?;
    Ok(())
}

/// Makes the mounted root `/` of this process, of its threads and of the kernel's own helpers.
fn switch_root() -> io::Result<()> {
    mounts::unmount_initial();
    chdir(NEW_ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(number: &str, sectors: u64) -> Disk {
        Disk { name: String::new(), number: number.to_owned(), sectors }
    }

    #[test]
    fn a_larger_root_is_the_image_and_zeros() {
        let [linear, zero] = origin_table(&disk("254:0", 100), 250);
        assert_eq!((linear.start, linear.sectors), (0, 100));
        assert_eq!(linear.parameters, "254:0 0");
        assert_eq!((zero.start, zero.sectors), (100, 150));
    }

    #[test]
    fn the_snapshot_is_persistent_and_overflow_aware() {
        let target = snapshot_target(&disk("253:0", 100), &disk("254:16", 9), 250);
        assert_eq!(target.parameters, "253:0 254:16 PO 8");
        assert_eq!((target.start, target.sectors), (0, 250));
    }
}
