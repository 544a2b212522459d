//! Files that are either as they were or as they shall be, whatever happens in between.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// A new file without a name in `dir`: it is gone when the last who has it open is. Mode 0600.
///
/// # Errors
/// Of the file system.
pub fn nameless(dir: &Path) -> io::Result<File> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    Ok(open(dir, flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
}

/// Makes `path` hold `bytes`, durably: a reader sees the old contents or the new, also after a
/// power cut. Mode 0600.
///
/// # Errors
/// Of the file system; the old contents are then still there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, 0o600, true)
}

/// Like [`write_atomic`] with mode 0444: what every VMM may read, also one that is another user,
/// and nobody shall change.
///
/// # Errors
/// Of the file system; the old contents are then still there.
pub fn publish(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, 0o444, true)
}

/// Like [`write_atomic`], but a power cut may lose the new contents (never mix them). For what is
/// worthless after a power cut anyway.
///
/// # Errors
/// Of the file system; the old contents are then still there.
pub fn write_replacing(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, 0o600, false)
}

fn replace(path: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    // One process per file is the rule everywhere, and here its threads take turns, so a fixed name
    // is right: what a killed writer left behind is replaced instead of piling up.
    name.push(".tmp");
    let temporary = dir.join(name);
    let _turn = Turn::take(&temporary);
    // A killed writer's file may be one already that nobody can write any more.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.set_permissions(PermissionsExt::from_mode(mode))?;
    if durable {
        file.sync_all()?;
    }
    std::fs::rename(&temporary, path)?;
    if durable { sync_dir(dir) } else { Ok(()) }
}

/// The files that threads of this process are writing.
static BEING_WRITTEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
/// Told when one of them is done.
static WRITTEN: Condvar = Condvar::new();

/// Keeps other threads from writing the same file. Without it one of two would truncate what the
/// other is about to rename, or find it gone.
struct Turn<'a>(&'a Path);

impl<'a> Turn<'a> {
    fn take(path: &'a Path) -> Self {
        let mut busy = BEING_WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
        while !busy.insert(path.to_owned()) {
            busy = WRITTEN.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        Self(path)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        BEING_WRITTEN.lock().unwrap_or_else(PoisonError::into_inner).remove(self.0);
        WRITTEN.notify_all();
    }
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// Of the file system.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates `dir` and its missing parents with mode 0700.
///
/// # Errors
/// Of the file system.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Removes a directory and all below it. A missing one is fine.
///
/// # Errors
/// Of the file system.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a file at least `bytes` long, durably. What is new of it is a hole; a longer one stays.
///
/// # Errors
/// Of the file system; `NotFound` if there is none.
pub fn grow(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() >= bytes {
        return Ok(());
    }
    file.set_len(bytes)?;
    file.sync_all()
}

/// Makes a file, which another user may have written, this process's own.
///
/// # Errors
/// Of the file system.
pub fn take(path: &Path) -> io::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let found = std::fs::symlink_metadata(path)?;
    if (found.uid(), found.gid()) == (uid, gid) {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))
}

/// Host disk that a file, or everything below a directory, really takes, in bytes. Symbolic links
/// are not followed. What vanishes meanwhile counts as nothing.
///
/// # Errors
/// Of the file system.
pub fn allocated_bytes(path: &Path) -> io::Result<u64> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            bytes += allocated_bytes(&entry?.path())?;
        }
    }
    Ok(bytes)
}

/// Free space for this user on the file system that holds `path`, in bytes.
///
/// # Errors
/// Of the file system.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_no_obstacle_and_not_written_to() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file.tmp"), "half").expect("write");
        std::fs::hard_link(path("file.tmp"), path("other")).expect("link");
        publish(&path("file"), b"whole").expect("publish");
        assert_eq!(std::fs::read(path("file")).expect("read"), b"whole");
        assert_eq!(std::fs::read(path("other")).expect("read"), b"half");
        assert!(!path("file.tmp").exists());
    }

    #[test]
    fn a_file_grows_and_never_shrinks() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("disk");
        assert_eq!(grow(&path, 9).expect_err("none").kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, "data").expect("write");
        for (asked, bytes) in [(3, 4), (1 << 20, 1 << 20), (9, 1 << 20)] {
            grow(&path, asked).expect("grow");
            assert_eq!(std::fs::metadata(&path).expect("stat").len(), bytes);
        }
        assert!(std::fs::read(&path).expect("read").starts_with(b"data\0"));
    }

    #[test]
    fn a_write_replaces_the_whole_file_and_nothing_stays_behind() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("status.json");
        write_atomic(&path, b"a longer first text").expect("write");
        write_atomic(&path, b"second").expect("write");
        assert_eq!(std::fs::read(&path).expect("read"), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1);
        assert_eq!(path.metadata().expect("stat").mode() & 0o777, 0o600);
    }

    #[test]
    fn a_sparse_file_takes_what_it_takes() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = File::create(dir.path().join("sparse")).expect("create");
        file.set_len(1 << 30).expect("extend");
        assert!(allocated_bytes(dir.path()).expect("measure") < 1 << 20);
    }

    #[test]
    fn threads_that_write_one_file_take_turns() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file");
        let contents = |writer: u8| vec![writer; 50_000 + 10_000 * usize::from(writer)];
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let (path, contents) = (&path, contents(writer));
                scope.spawn(move || {
                    for _ in 0..50 {
                        write_replacing(path, &contents).expect("nobody takes it away");
                        let read = std::fs::read(path).expect("it is there");
                        let whole = vec![read[0]; 50_000 + 10_000 * usize::from(read[0])];
                        assert!(read == whole, "{} bytes of {}", read.len(), read[0]);
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(dir.path()).expect("ours").count(), 1);
    }
}
