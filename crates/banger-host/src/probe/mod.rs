//! Looking at the host, for the doctor. Nothing here changes anything or judges what it finds.

mod apt;
mod id_ranges;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_api::Problem;
use banger_core::doctor::{DaemonFacts, Device, Facts, Kvm, Space, Stored};
use nix::unistd::{User, geteuid};

use crate::command::{Cancel, Tool, find_program};
use crate::config::Config;
use crate::engine::kvm::{self, KvmUsability};
use crate::files;
use crate::paths::{Programs, StateDirs};

/// The programs that the doctor asks about.
const PROGRAMS: [&str; 11] = [
    "apt-get",
    "dpkg-deb",
    "git",
    "gpgv",
    "mke2fs",
    "mmdebstrap",
    "newgidmap",
    "newuidmap",
    "nft",
    "pasta",
    "qemu-system-x86_64",
];

/// What the caller knows and the probe cannot tell.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    /// Where the state is.
    pub dirs: &'a StateDirs,
    /// Name of the default image.
    pub image: &'a str,
    /// Name of the default kernel.
    pub kernel: &'a str,
    /// What the daemon says.
    pub daemon: DaemonFacts,
}

/// Gathers all facts. Starts a few programs, and takes some tens of milliseconds.
#[must_use]
pub fn facts(known: Known<'_>) -> Facts {
    let uid = geteuid();
    let user = User::from_uid(uid).ok().flatten();
    let user = user.map_or_else(|| uid.to_string(), |user| user.name);
    let uid = uid.as_raw();
    let programs: BTreeSet<String> = PROGRAMS
        .into_iter()
        .filter(|program| find_program(program).is_some())
        .map(str::to_owned)
        .collect();
    let dirs = known.dirs;
    Facts {
        architecture: std::env::consts::ARCH.to_owned(),
        missing_part: Programs::locate().err().map(|error| error.to_string()),
        settings: settings(&dirs.config),
        user_namespaces: try_namespaces(),
        apparmor_restricts_namespaces: switch("kernel/apparmor_restrict_unprivileged_userns")
            == Some(1),
        unprivileged_namespaces: switch("kernel/unprivileged_userns_clone").map(|on| on == 1),
        max_user_namespaces: switch("user/max_user_namespaces"),
        subuid: id_ranges::largest(Path::new("/etc/subuid"), &user, uid),
        subgid: id_ranges::largest(Path::new("/etc/subgid"), &user, uid),
        jail_user: User::from_name(crate::jail::SYSTEM_USER).ok().flatten().is_some(),
        kvm: kvm_facts(kvm::usability()),
        is_amd: fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("AuthenticAMD")),
        tun: open(Path::new("/dev/net/tun")),
        qemu_version: programs.contains("qemu-system-x86_64").then(qemu_version).flatten(),
        has_apt_sources: apt::has_source(Path::new("/etc/apt")),
        image: stored(&dirs.images(), known.image),
        kernel: stored(&dirs.kernels(), known.kernel),
        space: space(&dirs.data),
        runtime_dir: dirs.runtime.display().to_string(),
        runtime_dir_state: usable(&dirs.runtime, uid),
        runtime_dir_is_logind: dirs.runtime.starts_with("/run/user"),
        lingers: lingers(&user),
        daemon: known.daemon,
        programs,
        user,
        uid,
    }
}

fn settings(config_dir: &Path) -> Result<(), String> {
    let unusable = |error| Problem::from(error).causes.join(": ");
    Config::load(config_dir).map(drop).map_err(unusable)
}

/// Makes the namespaces that a VM needs, with a program that has nothing to do in them.
fn try_namespaces() -> Result<(), String> {
    let words = ["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "true"];
    let tried = Tool::new("unshare").args(words).run(&Cancel::new());
    tried.map(drop).map_err(|error| match error.stderr().last() {
        Some(line) => line.clone(),
        None => error.to_string(),
    })
}

/// A number of the kernel's settings; None where this kernel has no such setting.
fn switch(name: &str) -> Option<u64> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

fn kvm_facts(usability: KvmUsability) -> Kvm {
    match usability {
        KvmUsability::Usable => Kvm::Usable,
        KvmUsability::NoDevice => Kvm::NoDevice,
        KvmUsability::NotPermitted => Kvm::NotPermitted,
        KvmUsability::NoHardware => Kvm::NoHardware,
        KvmUsability::Broken(error) => Kvm::Broken(error),
    }
}

fn open(device: &Path) -> Device {
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Device::Usable,
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Device::Missing,
            io::ErrorKind::PermissionDenied => Device::NotPermitted,
            // The node is there and the module is not: ENODEV or ENXIO.
            _ if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
                Device::Missing
            }
            _ => Device::Broken(error.to_string()),
        },
    }
}

fn qemu_version() -> Option<String> {
    let asked = Tool::new("qemu-system-x86_64").arg("--version").run(&Cancel::new());
    asked.ok()?.text().lines().next().map(str::to_owned)
}

fn stored(dir: &Path, name: &str) -> Stored {
    Stored { name: name.to_owned(), is_local: dir.join("by-name").join(name).exists() }
}

/// The space where the directory is or will be.
fn space(dir: &Path) -> Option<Space> {
    let existing = dir.ancestors().find(|place| place.exists())?;
    let free_bytes = files::free_bytes(existing).ok()?;
    Some(Space { path: existing.display().to_string(), free_bytes })
}

/// Whether the directory is the user's, or can be made.
fn usable(dir: &Path, uid: u32) -> Result<(), String> {
    match fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() && found.uid() == uid => Ok(()),
        Ok(_) => Err("it is not a directory of this user".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let existing = dir.ancestors().find(|place| place.exists());
            let writable = existing.is_some_and(|place| {
                nix::unistd::access(place, nix::unistd::AccessFlags::W_OK).is_ok()
            });
            if writable { Ok(()) } else { Err("it cannot be made".to_owned()) }
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Whether logind keeps the user's things; None where there is no logind.
fn lingers(user: &str) -> Option<bool> {
    Path::new("/run/systemd/users").is_dir().then(|| crate::systemd::lingers(user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_can_be_looked_at() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let place = |name: &str| tmp.path().join(name);
        let dirs =
            StateDirs { data: place("data"), runtime: place("run"), config: place("config") };
        fs::create_dir_all(dirs.images().join("by-name/here")).expect("writable");
        let known =
            Known { dirs: &dirs, image: "here", kernel: "there", daemon: DaemonFacts::Down };
        let facts = facts(known);
        assert!(facts.image.is_local);
        assert!(!facts.kernel.is_local);
        assert_eq!(facts.runtime_dir_state, Ok(()));
        assert!(facts.space.is_some_and(|space| space.free_bytes > 0));
        assert!(!dirs.runtime.exists(), "looking makes nothing");
    }

    #[test]
    fn devices_are_there_or_not() {
        assert_eq!(open(Path::new("/dev/null")), Device::Usable);
        assert_eq!(open(Path::new("/dev/no-such-device")), Device::Missing);
        assert!(matches!(open(Path::new("/proc/self")), Device::Broken(_)));
    }
}
