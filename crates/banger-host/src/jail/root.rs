//! The jail's root directory: a tmpfs with bind mounts, then nothing else.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::{JailSpec, StepError, at, proc_self};

/// The tmpfs holds only mount points; this is plenty.
const ROOT_OPTIONS: &str = "mode=0755,size=1m,nr_inodes=4096";

pub(super) fn mount_root(spec: &JailSpec) -> Result<(), StepError> {
    // Everything in the jail is for its user to read, whatever the caller's habits.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // Private first, or the mounts below would show in the shim.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("jail"), &spec.mount_point, Some("tmpfs"), flags, Some(ROOT_OPTIONS))
        .map_err(at(&spec.mount_point))
}

pub(super) fn show_files(spec: &JailSpec) -> Result<(), StepError> {
    for entry in &spec.mounts {
        let source = fs::canonicalize(&entry.source).map_err(at(&entry.source))?;
        let target = inside(&spec.mount_point, &entry.target);
        make_mount_point(&source, &target).map_err(at(&target))?;
        let forbidden = if entry.writable { MsFlags::empty() } else { MsFlags::MS_RDONLY };
        bind(&source, &target, forbidden | MsFlags::MS_NODEV)?;
    }
    Ok(())
}

pub(super) fn show_devices(spec: &JailSpec) -> Result<(), StepError> {
    for device in &spec.devices {
        match fs::metadata(device) {
            Ok(metadata) if metadata.file_type().is_char_device() => {
                let target = inside(&spec.mount_point, device);
                make_mount_point(device, &target).map_err(at(&target))?;
                bind(device, &target, MsFlags::MS_NOEXEC)?;
            }
            Ok(_) => return Err(at(device)(io::Error::from(io::ErrorKind::InvalidInput))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(device)(error)),
        }
    }
    Ok(())
}

/// Makes the new root the only one, and read-only.
pub(super) fn close(spec: &JailSpec) -> Result<(), StepError> {
    let root = &spec.mount_point;
    proc_self::remember().map_err(at(Path::new("/proc/self")))?;
    std::env::set_current_dir(root).map_err(at(root))?;
    // The old root is stacked upon the new one and taken away: no directory for it is needed.
    nix::unistd::pivot_root(".", ".").map_err(at(root))?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/").map_err(at(Path::new("/")))?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        None::<&str>,
    )?;
    Ok(())
}

fn inside(root: &Path, absolute: &Path) -> PathBuf {
    root.join(absolute.strip_prefix("/").unwrap_or(absolute))
}

fn make_mount_point(source: &Path, target: &Path) -> io::Result<()> {
    if source.is_dir() {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if target.exists() {
        return Ok(());
    }
    File::create(target).map(drop)
}

fn bind(source: &Path, target: &Path, forbid: MsFlags) -> Result<(), StepError> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(at(source))?;
    // Flags of a mount that another user namespace made cannot be cleared, so they are kept.
    let kept = kept_flags(target).map_err(at(target))?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | kept | forbid;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(at(target))
}

fn kept_flags(path: &Path) -> nix::Result<MsFlags> {
    let present = statvfs(path)?.flags();
    let pairs = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    Ok(pairs
        .into_iter()
        .filter(|(statfs, _)| present.contains(*statfs))
        .fold(MsFlags::empty(), |flags, (_, mount)| flags | mount))
}
