//! Where programs are, and which Debian package has the ones that are not there.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Directories that an ordinary user's `PATH` may lack.
const SBIN: [&str; 5] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// The Debian package of every program that banger may start.
const PACKAGES: [(&str, &str); 21] = [
    ("apt-cache", "apt"),
    ("apt-config", "apt"),
    ("apt-get", "apt"),
    ("buildah", "buildah"),
    ("debugfs", "e2fsprogs"),
    ("depmod", "kmod"),
    ("dpkg-deb", "dpkg"),
    ("e2fsck", "e2fsprogs"),
    ("git", "git"),
    ("gpgv", "gpgv"),
    ("ip", "iproute2"),
    ("mke2fs", "e2fsprogs"),
    ("mmdebstrap", "mmdebstrap"),
    ("newgidmap", "uidmap"),
    ("newuidmap", "uidmap"),
    ("nft", "nftables"),
    ("pasta", "passt"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("ssh", "openssh-client"),
    ("tar", "tar"),
    ("unshare", "util-linux"),
];

/// The Debian package that has `program`, if it is one that banger may start.
#[must_use]
pub fn package_of(program: &str) -> Option<&'static str> {
    PACKAGES.iter().find(|(name, _)| *name == program).map(|(_, package)| *package)
}

/// The path of a program: searched in `PATH`, then in the `sbin` directories. A name with a slash is
/// taken as it is.
#[must_use]
pub fn find_program(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| is_executable(path));
    }
    search_dirs(path_variable().as_deref())
        .into_iter()
        .map(|dir| dir.join(program))
        .find(|path| is_executable(path))
}

/// `PATH` with the `sbin` directories at its end, for the programs that a tool starts in turn.
pub(super) fn search_path() -> OsString {
    let dirs = search_dirs(path_variable().as_deref());
    // A directory with a colon in its name cannot be in PATH, so joining what was split cannot fail.
    env::join_paths(dirs).unwrap_or_else(|_| OsString::from(SBIN.join(":")))
}

#[expect(clippy::disallowed_methods, reason = "this crate reads the environment")]
fn path_variable() -> Option<OsString> {
    env::var_os("PATH")
}

fn search_dirs(path: Option<&OsStr>) -> Vec<PathBuf> {
    let own = path.map(|path| env::split_paths(path).collect::<Vec<_>>()).unwrap_or_default();
    let mut dirs: Vec<PathBuf> = Vec::new();
    // An empty or relative entry means the current directory, which is no place to take programs from.
    for dir in own.into_iter().filter(|dir| dir.is_absolute()).chain(SBIN.map(PathBuf::from)) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sbin_is_searched_even_if_path_lacks_it() {
        let dirs = search_dirs(Some(OsStr::new("/opt/x:relative::/usr/bin")));
        let want = ["/opt/x", "/usr/bin", "/usr/local/sbin", "/usr/sbin", "/sbin", "/bin"];
        assert_eq!(dirs, want.map(PathBuf::from));
        assert_eq!(search_dirs(None), SBIN.map(PathBuf::from));
    }

    #[test]
    fn programs_are_found_and_missing_ones_are_not() {
        assert!(find_program("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find_program("no-such-program-anywhere"), None);
        assert_eq!(find_program("/etc/passwd"), None, "not executable");
    }

    #[test]
    fn packages_are_known() {
        assert_eq!(package_of("mke2fs"), Some("e2fsprogs"));
        assert_eq!(package_of("frobnicate"), None);
    }
}
