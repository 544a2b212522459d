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
/// space. Missing parent directories are made. An empty directory is replaced, too: images made from
/// running containers have some where a file was mounted.
pub fn put(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    if is_already(path, contents) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        ensure_dir(parent)?;
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
        Err(error) if error.raw_os_error() == Some(libc::EISDIR) => {
            fs::remove_dir(path)?;
            fs::rename(&beside, path)
        }
        other => other,
    }
}

/// The same for a file that is nobody else's: one that a power cut may take, since it is made again at the
/// next boot.
///
/// ext4 writes a file down at once that takes another one's place, so that a power cut leaves one of them. Here
/// that would be the first that a guest does with its disk, and takes an emulated one longer than all else.
pub fn put_anew(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    if is_already(path, contents) {
        return Ok(());
    }
    if fs::remove_file(path).is_ok() || !path.is_symlink() && !path.exists() {
        let made = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        if let Ok(mut file) = made {
            return file.write_all(contents);
        }
    }
    put(path, contents, mode)
}

/// Adds to the end of a regular file; whatever else is there is replaced by a copy of it with the addition.
pub fn append(path: &Path, added: &[u8]) -> io::Result<()> {
    if added.is_empty() {
        return Ok(());
    }
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
        return fs::OpenOptions::new().append(true).open(path)?.write_all(added);
    }
    let whole = [read_text(path).unwrap_or_default().as_bytes(), added].concat();
    put(path, &whole, 0o644)
}

/// Makes a directory and those that it lies in.
///
/// Where an image has a link to nowhere, its target is made. Where it has what can be no directory,
/// that is replaced.
pub fn ensure_dir(path: &Path) -> io::Result<()> {
    if fs::create_dir_all(path).is_ok() {
        return Ok(());
    }
    let mut dir = PathBuf::new();
    for component in path.components() {
        dir.push(component);
        if dir.is_dir() {
            continue;
        }
        if let Ok(target) = fs::read_link(&dir) {
            let from = dir.parent().unwrap_or(Path::new("/"));
            if fs::create_dir_all(from.join(target)).is_ok() && dir.is_dir() {
                continue;
            }
        }
        if fs::symlink_metadata(&dir).is_ok() {
            fs::remove_file(&dir)?;
        }
        fs::create_dir(&dir)?;
    }
    Ok(())
}

/// Reads at most a few megabytes of a file as text; bytes that are not UTF-8 are replaced.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    // An image may have a pipe there, which nobody ever writes to.
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
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
    fn a_directory_is_made_whatever_is_in_its_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        symlink("usr/lib", root.join("lib")).expect("a link to nowhere");
        symlink("loop", root.join("loop")).expect("a loop");
        fs::write(root.join("file"), "").expect("a file");
        for path in ["lib/modules/6.1", "loop/a", "file/b/c", "new/d", "new/d"] {
            ensure_dir(&root.join(path)).expect(path);
            assert!(root.join(path).is_dir(), "{path}");
        }
        assert!(root.join("usr/lib/modules/6.1").is_dir(), "the link is kept");
        assert!(fs::symlink_metadata(root.join("lib")).expect("there").is_symlink());
    }

    #[test]
    fn an_empty_directory_becomes_a_file_and_a_full_one_does_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("hosts");
        fs::create_dir(&path).expect("a directory");
        put(&path, b"x", 0o644).expect("written");
        assert_eq!(read_text(&path).expect("read"), "x");
        let full = dir.path().join("full");
        fs::create_dir_all(full.join("inner")).expect("directories");
        put(&full, b"x", 0o644).expect_err("refused");
        assert!(full.join("inner").is_dir());
    }

    #[test]
    fn what_is_put_anew_takes_the_place_of_anything() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("etc/hostname");
        put_anew(&path, b"new\n", 0o644).expect("its directory is made");
        put_anew(&path, b"newer\n", 0o644).expect("replaced");
        fs::remove_file(&path).expect("removed");
        symlink("nowhere", &path).expect("a link");
        put_anew(&path, b"box\n", 0o644).expect("not followed");
        assert!(fs::symlink_metadata(&path).expect("there").is_file());
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("a directory");
        put_anew(&path, b"box\n", 0o444).expect("an empty directory is replaced");
        assert_eq!(read_text(&path).expect("read"), "box\n");
    }

    #[test]
    fn an_addition_keeps_what_is_there_and_no_link() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, link) = (dir.path().join("hosts"), dir.path().join("link"));
        fs::write(&path, "a\n").expect("a file");
        append(&path, b"").expect("nothing to do");
        append(&path, b"b\n").expect("added");
        assert_eq!(read_text(&path).expect("read"), "a\nb\n");
        symlink("hosts", &link).expect("a link");
        append(&link, b"c\n").expect("added");
        assert_eq!(read_text(&link).expect("read"), "a\nb\nc\n");
        assert_eq!(read_text(&path).expect("read"), "a\nb\n", "the link's target is left alone");
    }

    #[test]
    fn a_pipe_in_place_of_a_file_reads_as_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("passwd");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert_eq!(read_text(&path).expect("read"), "");
        put(&path, b"x", 0o644).expect("replaced");
        assert_eq!(read_text(&path).expect("read"), "x");
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
