//! The drives beyond the root disk, in device order from `vdc` on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_api::agent::Drive;
use nix::mount::{MsFlags, mount};

use super::{ConfigureError, work_disk};
use crate::boot::Uevents;
use crate::boot::disks::Disk;
use crate::files;

/// The first drive after the two that make up the root.
const FIRST: u8 = b'c';
/// Bytes of what disks are counted in.
const SECTOR: u64 = 512;
/// How long the kernel may take to notice another disk's size.
const SIZE_LIMIT: Duration = Duration::from_secs(10);
/// `vdc` to `vdz`; the machine has fewer slots than that.
const MOST: usize = 24;

/// Mounts what is to be mounted; `user` is the default one. What is mounted already stays.
pub fn mount_all(
    drives: &[Drive],
    user: Option<&str>,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigureError> {
    if drives.len() > MOST {
        return Err(ConfigureError::invalid("drives", "there are more than the machine can have"));
    }
    for (letter, drive) in (FIRST..).map(char::from).zip(drives) {
        match drive {
            Drive::Unused => {}
            Drive::Work { bytes } => {
                let name = format!("vd{letter}");
                wait_for_size(&name, *bytes)?;
                if !is_mounted(&format!("/dev/{name}")) {
                    warnings.extend(work_disk::mount(&name, user)?);
                }
            }
            Drive::Modules { release } => {
                mount_modules(&format!("/dev/vd{letter}"), release, warnings)?;
            }
        }
    }
    Ok(())
}

/// Waits until the kernel knows how large a disk is that has just taken the place of another.
fn wait_for_size(name: &str, bytes: Option<u64>) -> Result<(), ConfigureError> {
    let Some(wanted) = bytes.map(|bytes| bytes / SECTOR) else { return Ok(()) };
    let uevents = Uevents::listen();
    let has_size = || Disk::find(name).filter(|disk| disk.sectors >= wanted).map(drop);
    uevents.wait_for(SIZE_LIMIT, has_size).ok_or_else(|| {
        let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
        ConfigureError::step("waiting for the work disk")(late)
    })
}

fn mount_modules(
    device: &str,
    release: &str,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigureError> {
    let target = modules_dir(release)?;
    if nix::sys::utsname::uname().is_ok_and(|running| running.release() != release) {
        warnings.push(format!("the modules are of kernel {release}, which does not run"));
    }
    files::ensure_dir(&target).map_err(ConfigureError::step("making /lib/modules"))?;
    if is_mounted(device) {
        return Ok(());
    }
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount(Some(device), &target, Some("ext4"), flags, None::<&str>)
        .map_err(ConfigureError::step("mounting the kernel's modules"))
}

fn modules_dir(release: &str) -> Result<PathBuf, ConfigureError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._+~".contains(&byte);
    let is_name = !release.is_empty() && release.len() <= 64 && !release.starts_with('.');
    if !is_name || !release.bytes().all(allowed) {
        let reason = format!("{release:?} is not a kernel release");
        return Err(ConfigureError::invalid("drives.release", reason));
    }
    Ok(Path::new("/lib/modules").join(release))
}

fn is_mounted(device: &str) -> bool {
    let table = files::read_text(Path::new("/proc/self/mounts")).unwrap_or_default();
    table.lines().any(|line| line.split(' ').next() == Some(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_one_name() {
        let dir = modules_dir("6.1.0-56-cloud-amd64").expect("fine");
        assert_eq!(dir, Path::new("/lib/modules/6.1.0-56-cloud-amd64"));
        for bad in ["", ".", "..", "../etc", "a/b", "a b", &"a".repeat(65)] {
            assert!(modules_dir(bad).is_err(), "{bad}");
        }
    }
}
