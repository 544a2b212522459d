//! The work disk: a file system of the VM's own at the default user's home, which survives whatever
//! becomes of `/`.
//!
//! On its first use it gets what the image has in that home, as a volume of a container does: shells
//! and tools find their settings there. When all of that is on the disk, an extended attribute of its
//! root says so; a copy that was cut off is made again. From then on nothing of the image is copied
//! any more, whichever image it is.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink,
};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::ConfigureError;
use crate::boot::disks::{Disk, Ext4Size};
use crate::exec::account::{Account, Accounts};
use crate::files;

/// Where it is mounted if the user has no home that could be a disk.
const ELSEWHERE: &str = "/work";
/// On the root of a disk that has been taken into use. Only root sees it.
const READY: &std::ffi::CStr = c"trusted.banger.ready";
/// What mke2fs makes in the root of every file system.
const LOST_AND_FOUND: &str = "lost+found";
/// A home in one of these belongs to the system.
const SYSTEM: [&str; 12] =
    ["bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr"];
/// How deep directories may lie in each other.
const MOST_LEVELS: usize = 128;

/// Mounts the disk called `name`, as large as it is. Returns warnings.
pub fn mount(name: &str, user: Option<&str>) -> Result<Vec<String>, ConfigureError> {
    let account = Accounts::read()
        .resolve(user.unwrap_or("root"))
        .map_err(|error| ConfigureError::invalid("user", error.to_string()))?;
    let mut warnings = Vec::new();
    let place = place(&account.home);
    if place == Path::new(ELSEWHERE) {
        warnings.push(format!(
            "the work disk is at {ELSEWHERE}: the home of its user is {}",
            account.home
        ));
    }
    files::ensure_dir(&place).map_err(ConfigureError::step("making the work disk's directory"))?;
    // What is below the disk stays reachable through this.
    let below = File::open(&place).map_err(ConfigureError::step("opening the user's home"))?;
    let disk = Disk::find(name).ok_or_else(|| {
        ConfigureError::step("finding the work disk")(io::Error::from(io::ErrorKind::NotFound))
    })?;
    warnings.extend(mount_and_grow(&disk, &place)?);
    if is_ready(&place) {
        let owner = fs::metadata(&place).map_or(account.uid, |found| found.uid());
        if owner != account.uid {
            warnings.push(format!(
                "the work disk belongs to user id {owner}, the VM's user has {}",
                account.uid
            ));
        }
        return Ok(warnings);
    }
    take_into_use(&below, &place, &account)
        .map_err(ConfigureError::step("copying the image's home to the work disk"))?;
    Ok(warnings)
}

fn mount_and_grow(disk: &Disk, place: &Path) -> Result<Option<String>, ConfigureError> {
    let device = disk.path();
    let size = Ext4Size::read(Path::new(&device))
        .map_err(ConfigureError::step("reading the work disk's file system"))?;
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let options = Some("noinit_itable,errors=remount-ro");
    nix::mount::mount(Some(device.as_str()), place, Some("ext4"), flags, options)
        .map_err(ConfigureError::step("mounting the work disk"))?;
    let grown = size.grow(place, disk.sectors);
    Ok(grown.err().map(|error| format!("the work disk keeps its old size: {error}")))
}

/// Where the disk goes.
fn place(home: &str) -> PathBuf {
    let path = Path::new(home);
    let mut parts = path.components();
    let is_rooted = parts.next() == Some(std::path::Component::RootDir);
    let first = parts.next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let plain = path.components().all(|part| part != std::path::Component::ParentDir);
    match first {
        Some(first)
            if is_rooted && plain && !SYSTEM.contains(&first.as_str()) && home != "/var" =>
        {
            path.to_owned()
        }
        _ => PathBuf::from(ELSEWHERE),
    }
}

fn is_ready(place: &Path) -> bool {
    let Ok(root) = File::open(place) else { return false };
    // SAFETY: a NUL-terminated name, and no buffer to write to.
    unsafe { libc::fgetxattr(root.as_raw_fd(), READY.as_ptr(), std::ptr::null_mut(), 0) >= 0 }
}

/// Fills the new disk, hands it over to the user, and notes that this is done.
fn take_into_use(below: &File, place: &Path, account: &Account) -> io::Result<()> {
    // Nobody wants that in a home; whoever repairs the file system makes it again.
    let _ = fs::remove_dir(place.join(LOST_AND_FOUND));
    // The directory itself, not what is mounted on it.
    copy_tree(&PathBuf::from(format!("/proc/self/fd/{}", below.as_raw_fd())), place, 0)?;
    let found = below.metadata()?;
    fs::set_permissions(place, fs::Permissions::from_mode(found.mode() & 0o7777))?;
    lchown(place, Some(account.uid), Some(account.gid))?;
    // Everything is there before it is said to be.
    nix::unistd::sync();
    let root = File::open(place)?;
    let value = b"1";
    // SAFETY: a NUL-terminated name, and a value of the length that is given.
    let done = unsafe {
        libc::fsetxattr(root.as_raw_fd(), READY.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    root.sync_all()
}

/// Copies what is in a directory: files, links and directories, with their owners and modes. What
/// is there already, left by a copy that was cut off, is replaced.
fn copy_tree(from: &Path, to: &Path, level: usize) -> io::Result<()> {
    if level > MOST_LEVELS {
        return Err(io::Error::other("its directories lie too deep in each other"));
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if level == 0 && entry.file_name() == LOST_AND_FOUND {
            continue;
        }
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let found = fs::symlink_metadata(&source)?;
        let kind = found.file_type();
        if kind.is_dir() {
            match fs::DirBuilder::new().mode(0o700).create(&target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            copy_tree(&source, &target, level + 1)?;
        } else {
            match fs::remove_file(&target) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            if kind.is_symlink() {
                symlink(fs::read_link(&source)?, &target)?;
            } else if kind.is_file() {
                copy_file(&source, &target)?;
            } else {
                // Pipes and sockets belong to whoever made them.
                continue;
            }
        }
        lchown(&target, Some(found.uid()), Some(found.gid()))?;
        if !kind.is_symlink() {
            // After the owner: a change of that takes the set-user-id bit away.
            fs::set_permissions(&target, fs::Permissions::from_mode(found.mode() & 0o7777))?;
        }
    }
    Ok(())
}

fn copy_file(source: &Path, target: &Path) -> io::Result<()> {
    let mut from = File::open(source)?;
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
    io::copy(&mut from, &mut to)?;
    to.set_modified(from.metadata()?.modified()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_of_the_systems_own_is_left_alone() {
        let cases = [
            ("/root", "/root"),
            ("/home/dev", "/home/dev"),
            ("/srv/app", "/srv/app"),
            ("/var/lib/postgresql", "/var/lib/postgresql"),
            ("/", ELSEWHERE),
            ("", ELSEWHERE),
            ("relative", ELSEWHERE),
            ("/bin", ELSEWHERE),
            ("/usr/sbin", ELSEWHERE),
            ("/var", ELSEWHERE),
            ("/home/../etc", ELSEWHERE),
        ];
        for (home, want) in cases {
            assert_eq!(place(home), Path::new(want), "{home}");
        }
    }

    #[test]
    fn a_home_is_copied_as_it_is_and_again_over_half_a_copy() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("bin/deep")).expect("directories");
        fs::create_dir(from.join(LOST_AND_FOUND)).expect("a directory");
        fs::write(from.join("bin/tool"), "tool").expect("a file");
        fs::set_permissions(from.join("bin/tool"), fs::Permissions::from_mode(0o751))
            .expect("a mode");
        symlink("bin/tool", from.join("link")).expect("a link");
        fs::create_dir_all(to.join("bin")).expect("half a copy");
        fs::write(to.join("bin/tool"), "to").expect("half a file");
        fs::write(to.join("link"), "").expect("half a link");
        copy_tree(&from, &to, 0).expect("copied");
        assert_eq!(fs::read_to_string(to.join("bin/tool")).expect("read"), "tool");
        assert_eq!(fs::metadata(to.join("bin/tool")).expect("stat").mode() & 0o7777, 0o751);
        assert_eq!(fs::read_link(to.join("link")).expect("a link"), Path::new("bin/tool"));
        assert!(to.join("bin/deep").is_dir());
        assert!(!to.join(LOST_AND_FOUND).exists());
        let modified = |path: PathBuf| fs::metadata(path).expect("stat").modified().expect("time");
        assert_eq!(modified(from.join("bin/tool")), modified(to.join("bin/tool")));
    }
}
