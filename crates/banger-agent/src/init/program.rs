//! Which program of an image is its init.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Where images have it. The first is a link to the real one in most.
const PLACES: [&str; 3] = ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// An image's init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// Its path, as the kernel would be given it.
    pub path: &'static str,
    /// It is systemd, which says when it has started everything.
    pub is_systemd: bool,
}

impl Program {
    /// The image's init, if it has one.
    pub fn find() -> Option<Self> {
        Self::find_in(Path::new("/"))
    }

    fn find_in(root: &Path) -> Option<Self> {
        PLACES.into_iter().find_map(|path| {
            let place = root.join(path.trim_start_matches('/'));
            let real = fs::canonicalize(place).ok()?;
            let found = fs::metadata(&real).ok()?;
            let runs = found.is_file() && found.permissions().mode() & 0o111 != 0;
            let is_systemd = real.file_name() == Some(OsStr::new("systemd"));
            runs.then_some(Self { path, is_systemd })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn put(root: &Path, path: &str, mode: u32) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(&path, "").expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
    }

    #[test]
    fn systemd_is_known_behind_its_link() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        assert_eq!(Program::find_in(root), None);
        put(root, "lib/systemd/systemd", 0o755);
        let found = Program::find_in(root).expect("without /sbin/init");
        assert_eq!((found.path, found.is_systemd), ("/lib/systemd/systemd", true));
        fs::create_dir(root.join("sbin")).expect("a directory");
        symlink("../lib/systemd/systemd", root.join("sbin/init")).expect("a link");
        let found = Program::find_in(root).expect("a link");
        assert_eq!((found.path, found.is_systemd), ("/sbin/init", true));
    }

    #[test]
    fn what_cannot_run_is_no_init() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        put(root, "sbin/init", 0o644);
        assert_eq!(Program::find_in(root), None);
        put(root, "sbin/init", 0o755);
        let found = Program::find_in(root).expect("a program");
        assert_eq!((found.path, found.is_systemd), ("/sbin/init", false));
        fs::remove_file(root.join("sbin/init")).expect("removed");
        fs::create_dir(root.join("sbin/init")).expect("a directory");
        assert_eq!(Program::find_in(root), None);
        fs::remove_dir(root.join("sbin/init")).expect("removed");
        symlink("nowhere", root.join("sbin/init")).expect("a link");
        assert_eq!(Program::find_in(root), None);
    }
}
