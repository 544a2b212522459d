//! Locks that belong to an open file description.
//!
//! A VM's lock is taken by the daemon before it starts the shim, which inherits the descriptor; the
//! VMM gets a share of its own. The kernel frees a lock when the last of its holders is gone, however
//! they went: a locked file means that something may still write the VM's disks. A lock cannot be
//! stale and a process id need not be believed.
//!
//! The exclusive lock is on the file's first byte, shares are on the second. So a holder of a share,
//! which may be a VMM that its guest has taken over, can give up nothing but its share.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// A lock held by this process, and by every process that inherits its descriptor.
#[derive(Debug)]
pub struct OfdLock {
    file: File,
}

impl OfdLock {
    /// Takes the lock on `path`, creating the file; None if somebody has it.
    ///
    /// # Errors
    /// If the file cannot be opened, or the file system knows no locks.
    pub fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match fcntl(&file, libc::F_OFD_SETLK, libc::F_WRLCK, EXCLUSIVE) {
            Ok(_) if is_shared(&file)? => Ok(None),
            Ok(_) => Ok(Some(Self { file })),
            Err(error) if would_block(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A share in the lock on `path`, for a process that must not be able to free the lock itself.
    ///
    /// # Errors
    /// If the file cannot be opened, or the file system knows no locks.
    pub fn share(path: &Path) -> io::Result<OwnedFd> {
        let file = File::open(path)?;
        fcntl(&file, libc::F_OFD_SETLK, libc::F_RDLCK, SHARED)?;
        Ok(file.into())
    }

    /// Takes the lock on `path`, creating the file, and waits for whoever has it.
    ///
    /// # Errors
    /// As [`OfdLock::try_acquire`].
    pub fn acquire(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        loop {
            match fcntl(&file, libc::F_OFD_SETLKW, libc::F_WRLCK, EXCLUSIVE) {
                Ok(_) => return Ok(Self { file }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether `path` is the file that is locked. Where locked files may be removed, another one can
    /// be there by the time the lock is taken; then it is worth nothing.
    ///
    /// # Errors
    /// If the files cannot be looked at.
    pub fn is_on(&self, path: &Path) -> io::Result<bool> {
        let locked = self.file.metadata()?;
        match std::fs::metadata(path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (locked.dev(), locked.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes a note into the locked file, for whoever meets the lock; see [`note`].
    ///
    /// # Errors
    /// Of the file system.
    pub fn leave_note(&self, text: &[u8]) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(text, 0)
    }

    /// The descriptor, to be handed to a child process.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.file.into()
    }
}

/// Whether somebody holds the lock on `path`. Does not take it, so observers cannot be in the way.
///
/// # Errors
/// If the file exists and cannot be opened. A missing file is not locked.
pub fn is_locked(path: &Path) -> io::Result<bool> {
    // Asking about a write lock needs no write permission.
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let exclusive = fcntl(&file, libc::F_OFD_GETLK, libc::F_WRLCK, EXCLUSIVE)?;
    Ok(i32::from(exclusive.l_type) != libc::F_UNLCK || is_shared(&file)?)
}

/// What the last holder of the lock on `path` noted. A holder need not have noted anything, and the
/// note of a former one may be there still.
///
/// # Errors
/// If the file cannot be read.
pub fn note(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(NOTE_LIMIT).read_to_end(&mut text)?;
    Ok(text)
}

/// Finds out whether the file system of `path`, a file that is created if it is missing, has locks.
///
/// # Errors
/// [`is_unsupported`] tells one that has none from other trouble.
pub fn probe(path: &Path) -> io::Result<()> {
    let file = open(path)?;
    fcntl(&file, libc::F_OFD_SETLK, libc::F_RDLCK, PROBED).map(drop)
}

/// Whether an error of a lock means that the file system has none, as some network file systems.
#[must_use]
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
    )
}

fn is_shared(file: &File) -> io::Result<bool> {
    let shared = fcntl(file, libc::F_OFD_GETLK, libc::F_WRLCK, SHARED)?;
    Ok(i32::from(shared.l_type) != libc::F_UNLCK)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

/// The byte whose lock is exclusive.
const EXCLUSIVE: libc::off_t = 0;
/// The byte whose lock is shared.
const SHARED: libc::off_t = 1;
/// The byte that is locked to see whether that can be done.
const PROBED: libc::off_t = 2;
/// Longest note, in bytes.
const NOTE_LIMIT: u64 = 8192;

fn fcntl(file: &File, command: i32, kind: i32, byte: libc::off_t) -> io::Result<libc::flock> {
    // SAFETY: flock is plain data for which zero is a valid value; l_pid must be 0 for OFD locks.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).expect("lock kinds are 0, 1 and 2");
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).expect("SEEK_SET is 0");
    (lock.l_start, lock.l_len) = (byte, 1);
    // SAFETY: the descriptor is open for the duration of the call and the third argument is a
    // valid, writable flock as these commands demand.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(lock) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_and_is_seen_and_ends_with_its_last_descriptor() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("lock");
        assert!(!is_locked(&path).expect("missing file"));
        let lock = OfdLock::try_acquire(&path).expect("open").expect("free");
        assert!(is_locked(&path).expect("ask"));
        assert!(OfdLock::try_acquire(&path).expect("open").is_none());
        let fd = lock.into_fd();
        let second = fd.try_clone().expect("dup");
        drop(fd);
        assert!(is_locked(&path).expect("ask"), "the duplicate still holds it");
        drop(second);
        assert!(!is_locked(&path).expect("ask"));
    }

    #[test]
    fn a_note_is_read_by_whoever_meets_the_lock() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("lock");
        probe(&path).expect("this file system has locks");
        let lock = OfdLock::try_acquire(&path).expect("open").expect("free");
        lock.leave_note(b"a longer note").expect("writable");
        lock.leave_note(b"note").expect("writable");
        assert_eq!(note(&path).expect("readable"), b"note");
        probe(&path).expect("a probe is in nobody's way");
        assert!(is_unsupported(&io::Error::from_raw_os_error(libc::ENOLCK)));
        assert!(!is_unsupported(&io::Error::from_raw_os_error(libc::EAGAIN)));
    }

    #[test]
    fn a_lock_knows_whether_its_file_is_still_there() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("lock");
        let lock = OfdLock::try_acquire(&path).expect("open").expect("free");
        assert!(lock.is_on(&path).expect("look"));
        std::fs::remove_file(&path).expect("remove");
        assert!(!lock.is_on(&path).expect("look"));
        std::fs::write(&path, "").expect("another file");
        assert!(!lock.is_on(&path).expect("look"));
    }

    #[test]
    fn a_share_keeps_the_lock_from_others_and_frees_nothing_but_itself() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("lock");
        let lock = OfdLock::try_acquire(&path).expect("open").expect("free");
        let share = OfdLock::share(&path).expect("share");
        drop(lock);
        assert!(is_locked(&path).expect("ask"), "a share is a lock");
        assert!(OfdLock::try_acquire(&path).expect("open").is_none());
        let lock = OfdLock::share(&path).expect("shares do not exclude each other");
        drop(share);
        assert!(is_locked(&path).expect("ask"));
        drop(lock);
        assert!(OfdLock::try_acquire(&path).expect("open").is_some());
    }
}
