//! Writing the small files by which a guest knows who it is.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Most bytes the agent reads of any file of the image.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// Puts `contents` at `path` as a regular file.
///
/// Whatever is there is replaced, not followed: an image's `/etc/resolv.conf` is often a link to
/// nowhere. Nothing is written if the file already says so, which saves a restarted VM the disk
/// space. Missing parent directories are made.
pub fn put(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    if is_already(path, contents) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let beside = beside(path);
    let _ = fs::remove_file(&beside);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(contents)?;
    drop(file);
    match fs::rename(&beside, path) {
        // Something is mounted on the file, so its name cannot be given to another one.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            fs::remove_file(&beside)?;
            fs::write(path, contents)
        }
        other => other,
    }
}

/// Reads at most a few megabytes of a file as text; bytes that are not UTF-8 are replaced.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_already(path: &Path, contents: &[u8]) -> bool {
    let regular = fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_file() && usize::try_from(found.len()) == Ok(contents.len()));
    regular && fs::read(path).is_ok_and(|found| found == contents)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".banger-new");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_dangling_link_becomes_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("etc/resolv.conf");
        fs::create_dir(dir.path().join("etc")).expect("etc");
        symlink("../run/nowhere", &path).expect("a link");

        put(&path, b"nameserver 1.2.3.4\n", 0o644).expect("written");

        assert!(fs::symlink_metadata(&path).expect("there").is_file());
        assert_eq!(read_text(&path).expect("read"), "nameserver 1.2.3.4\n");
        assert!(!dir.path().join("run").exists());
    }

    #[test]
    fn what_is_already_there_is_not_written_again() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("hostname");
        put(&path, b"box\n", 0o644).expect("written");
        let before = fs::metadata(&path).expect("there").ino();
        put(&path, b"box\n", 0o644).expect("left alone");
        assert_eq!(fs::metadata(&path).expect("there").ino(), before);
        put(&path, b"fox\n", 0o644).expect("replaced");
        assert_eq!(read_text(&path).expect("read"), "fox\n");
    }
}
