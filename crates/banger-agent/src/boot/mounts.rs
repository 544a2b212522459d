//! The file systems of every guest that are not on a disk.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::{fs, io};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{console, files};

/// A file system of the kernel and where it goes.
struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const DEV: Mount =
    Mount { kind: "devtmpfs", target: "/dev", flags: MsFlags::MS_NOSUID, options: "mode=0755" };
const PROC: Mount = Mount { kind: "proc", target: "/proc", flags: NO_PROGRAMS, options: "" };
const SYS: Mount = Mount { kind: "sysfs", target: "/sys", flags: NO_PROGRAMS, options: "" };

/// What the root gets, outer before inner. The group 5 is `tty` in every distribution.
const IN_ROOT: [Mount; 7] = [
    PROC,
    SYS,
    DEV,
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: "mode=0620,gid=5,ptmxmode=0666",
    },
    Mount { kind: "tmpfs", target: "/dev/shm", flags: NO_DEVICES, options: "mode=1777" },
    Mount { kind: "tmpfs", target: "/run", flags: NO_DEVICES, options: "mode=0755" },
    Mount { kind: "cgroup2", target: "/sys/fs/cgroup", flags: NO_PROGRAMS, options: "nsdelegate" },
];

/// Links that programs expect in `/dev` and that the kernel does not make.
const DEV_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Kernel settings that distributions make at boot: no tricks with links in shared directories, and
/// `ping` for everybody.
const SETTINGS: [(&str, &str); 3] = [
    ("/proc/sys/fs/protected_hardlinks", "1"),
    ("/proc/sys/fs/protected_symlinks", "1"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

/// Mounts in the initramfs what is needed to find devices. A failure shows in what comes next.
pub fn mount_initial() {
    for it in [&DEV, &PROC, &SYS] {
        if let Err(error) = mount_one(it) {
            console::say(&format!("{} cannot be mounted: {error}", it.target));
        }
    }
}

/// Takes those away again, so that nothing of the initramfs stays reachable.
pub fn unmount_initial() {
    for it in [&SYS, &PROC, &DEV] {
        let _ = umount2(it.target, MntFlags::MNT_DETACH);
    }
}

/// Mounts and makes what every guest has, in the new root. Returns one line for each thing that is
/// missing and that most programs can do without.
pub fn furnish_root() -> io::Result<Vec<String>> {
    let mut warnings = Vec::new();
    for it in &IN_ROOT {
        let mounted = mount_one(it);
        let essential = [PROC.target, SYS.target, DEV.target].contains(&it.target);
        match mounted {
            Err(error) if essential => return Err(error),
            Err(error) => warnings.push(format!("{} is not mounted: {error}", it.target)),
            Ok(()) => {}
        }
    }
    for (target, link) in DEV_LINKS {
        // May be there from before: there is only one devtmpfs.
        let _ = symlink(target, link);
    }
    for (path, mode) in [("/tmp", 0o1777), ("/run/lock", 0o1777)] {
        ensure_dir(path, mode);
    }
    for (path, value) in SETTINGS {
        let _ = fs::write(path, value);
    }
    Ok(warnings)
}

/// Makes a directory with that mode, unless there is one.
fn ensure_dir(path: &str, mode: u32) {
    if !Path::new(path).is_dir() && files::ensure_dir(Path::new(path)).is_ok() {
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode));
    }
}

/// The mount point is made where the image has none: it then lies on the VM's own part of the disk.
fn mount_one(it: &Mount) -> io::Result<()> {
    files::ensure_dir(Path::new(it.target))?;
    match mount(Some(it.kind), it.target, Some(it.kind), it.flags, Some(it.options)) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
