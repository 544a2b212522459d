//! Loading the kernel modules that lie in the initramfs, in the order of their file names.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::{fs, io};

use banger_api::agent::BOOT_MODULES_DIR;

/// Loads all of them and frees their files' memory. Returns one line for each that failed; what
/// needs it will fail and say so.
pub fn load_all() -> Vec<String> {
    let mut failures = Vec::new();
    for path in in_order(Path::new(BOOT_MODULES_DIR)) {
        if let Err(error) = load(&path) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            failures.push(format!("kernel module {name} cannot be loaded: {error}"));
        }
        let _ = fs::remove_file(&path);
    }
    failures
}

fn in_order(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn load(path: &Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    // SAFETY: the descriptor is open and the parameters are an empty NUL-terminated string.
    let loaded =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if loaded == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // Built into this kernel, or loaded as a dependency by it.
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["10-c.ko", "00-a.ko", "09-b.ko"] {
            fs::write(dir.path().join(name), "").expect("a file");
        }
        let names: Vec<_> = in_order(dir.path())
            .iter()
            .map(|path| path.file_name().expect("a name").to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["00-a.ko", "09-b.ko", "10-c.ko"]);
        assert!(in_order(&dir.path().join("none")).is_empty());
    }
}
