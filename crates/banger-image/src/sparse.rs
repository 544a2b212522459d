//! Disks as sparse files: what they take, and what they hold.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

/// Size of the blocks.
const BLOCK: u64 = 64 * 1024;

/// The digest of a disk, 64 hex digits.
///
/// Hashing eight gibibytes of which seven and a half are holes would take longer than making the
/// disk. So what is hashed is every block that is not all zeros, preceded by its number, and in the
/// end the size: as strong, and the same however the holes are stored.
pub(crate) fn disk_digest(path: &Path) -> io::Result<String> {
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
pub(crate) fn release_unwritten(path: &Path) -> io::Result<()> {
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
        let taken = banger_host::files::allocated_bytes(&path).expect("measure");
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
