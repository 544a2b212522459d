//! Disks and memories as sparse files: what they take, what they hold, and copies that are as sparse.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

/// Size of the blocks.
const BLOCK: u64 = 64 * 1024;
/// `FICLONE` of `linux/fs.h`: `_IOW(0x94, 9, int)`.
const CLONE: libc::c_ulong = 0x4004_9409;

/// Makes the new file `to` hold what `from` holds, and no more space than that takes: shared where
/// the file system can do that, else only what is data. Mode 0600. Not durable yet.
///
/// # Errors
/// Of the file system; `AlreadyExists` if there is one. What was made is left then.
pub fn copy(from: &Path, to: &Path) -> io::Result<File> {
    let from = File::open(from)?;
    let to = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(to)?;
    // SAFETY: the call takes a descriptor, which is open, and touches no memory.
    if unsafe { libc::ioctl(to.as_raw_fd(), CLONE, from.as_raw_fd()) } == 0 {
        return Ok(to);
    }
    to.set_len(from.metadata()?.len())?;
    copy_data(&from, &to)?;
    Ok(to)
}

/// Copies what is data of a file into one that has holes there.
pub(crate) fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let size = i64::try_from(from.metadata()?.len()).map_err(io::Error::other)?;
    let mut at = 0;
    while at < size {
        let data = match lseek(from, at, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let hole = lseek(from, data, Whence::SeekHole)?;
        copy_range(from, to, data, hole)?;
        at = hole;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, begin: i64, end: i64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (begin, begin);
    while read_at < end {
        let left = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(1 << 30);
        let copied = match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left)
        {
            // They are on different file systems.
            Err(Errno::EXDEV | Errno::EOPNOTSUPP) => return copy_bytes(from, to, read_at, end),
            copied => copied?,
        };
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

fn copy_bytes(from: &File, to: &File, begin: i64, end: i64) -> io::Result<()> {
    let offset = |at: i64| u64::try_from(at).map_err(io::Error::other);
    let mut buffer = vec![0; usize::try_from(BLOCK).expect("it is small")];
    let mut at = offset(begin)?;
    while at < offset(end)? {
        let left = usize::try_from(offset(end)? - at).unwrap_or(usize::MAX);
        let piece = left.min(buffer.len());
        from.read_exact_at(&mut buffer[..piece], at)?;
        to.write_all_at(&buffer[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}

/// The digest of a disk, 64 hex digits.
///
/// Hashing eight gibibytes of which seven and a half are holes would take longer than making the
/// disk. So what is hashed is every block that is not all zeros, preceded by its number, and in the
/// end the size: as strong, and the same however the holes are stored.
///
/// # Errors
/// Of the file system.
pub fn disk_digest(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut sha = Sha256::new();
    let mut buffer = vec![0; usize::try_from(BLOCK).expect("it is small")];
    let mut number = 0;
    while let Some(data) = next_data(&file, number * BLOCK)? {
        number = data / BLOCK;
        let block = read_block(&file, number * BLOCK, &mut buffer)?;
        if block.iter().any(|byte| *byte != 0) {
            sha.update(number.to_le_bytes());
            sha.update(block);
        }
        number += 1;
    }
    sha.update(size.to_le_bytes());
    Ok(hex::encode(sha.finalize()))
}

/// Give back the space under the parts of a file that were never written. mke2fs writes zeros by
/// reserving: the host's file system then holds space for them, 128 MiB in 8 GiB.
///
/// # Errors
/// Of the file system.
pub fn release_unwritten(path: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let size = file.metadata()?.len();
    let signed = |offset: u64| i64::try_from(offset).map_err(io::Error::other);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let mut at = 0;
    while at < size {
        let hole = u64::try_from(lseek(&file, signed(at)?, Whence::SeekHole)?).unwrap_or(size);
        let end = next_data(&file, hole)?.unwrap_or(size);
        if hole < end {
            match fallocate(&file, flags, signed(hole)?, signed(end - hole)?) {
                Ok(()) => {}
                // Then the file takes a little more.
                Err(Errno::EOPNOTSUPP) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
        at = end;
    }
    Ok(())
}

/// Where the next data begins at or after `offset`; None if only a hole is left.
fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    let from = i64::try_from(offset).map_err(io::Error::other)?;
    match lseek(file, from, Whence::SeekData) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The bytes of the block at `offset`: a whole one, or what is left of the file.
fn read_block<'a>(file: &File, offset: u64, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(&buffer[..filled])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_holds_the_same_and_takes_no_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).expect("create");
        file.write_all_at(b"first", 0).expect("write");
        file.write_all_at(b"last", (1 << 30) + 5).expect("write");
        file.set_len(2 << 30).expect("extend");
        copy(&from, &to).expect("copied");
        assert_eq!(disk_digest(&from).expect("read"), disk_digest(&to).expect("read"));
        let taken = crate::files::allocated_bytes(&to).expect("measure");
        assert!(taken <= 64 << 10, "{taken}");
        let again = copy(&from, &to).expect_err("there is one");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_copy_to_another_file_system_is_as_sparse() {
        let (here, there) = (tempfile::tempdir(), tempfile::tempdir_in("/dev/shm"));
        let (Ok(here), Ok(there)) = (here, there) else { return };
        let (from, to) = (here.path().join("from"), there.path().join("to"));
        let file = File::create(&from).expect("create");
        file.write_all_at(&[7; 100_000], 1 << 20).expect("write");
        file.set_len(1 << 30).expect("extend");
        copy(&from, &to).expect("copied");
        assert_eq!(disk_digest(&from).expect("read"), disk_digest(&to).expect("read"));
        assert!(crate::files::allocated_bytes(&to).expect("measure") <= 256 << 10);
    }

    #[test]
    fn reserved_space_is_given_back_and_data_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.expect("create");
        fallocate(&file, FallocateFlags::empty(), 0, 8 << 20).expect("reserve");
        file.write_all_at(b"data", 3 << 20).expect("write");
        let before = disk_digest(&path).expect("read");
        release_unwritten(&path).expect("release");
        assert_eq!(disk_digest(&path).expect("read"), before);
        assert_eq!(file.metadata().expect("stat").len(), 8 << 20);
        let taken = crate::files::allocated_bytes(&path).expect("measure");
        assert!(taken <= 64 << 10, "{taken}");
    }

    #[test]
    fn holes_and_zeros_are_the_same_and_data_and_size_count() {
        let dir = tempfile::tempdir().expect("a directory");
        let make = |name: &str, writes: &[(u64, &[u8])], size: u64| {
            let path = dir.path().join(name);
            let file = File::create(&path).expect("create");
            for (offset, bytes) in writes {
                file.write_all_at(bytes, *offset).expect("write");
            }
            file.set_len(size).expect("extend");
            disk_digest(&path).expect("it can be read")
        };
        let zeros = vec![0; 200_000];
        let sparse = make("sparse", &[(5 * BLOCK + 7, b"data")], 1 << 30);
        assert_eq!(sparse, make("zeros", &[(BLOCK, &zeros), (5 * BLOCK + 7, b"data")], 1 << 30));
        assert_ne!(sparse, make("moved", &[(5 * BLOCK + 8, b"data")], 1 << 30));
        assert_ne!(sparse, make("shorter", &[(5 * BLOCK + 7, b"data")], 1 << 29));
        assert_ne!(make("empty", &[], 0), make("odd", &[], 1000));
    }
}
