//! The sha256 of a sparse disk.
//!
//! Hashing eight gibibytes of which seven and a half are holes would take longer than making the
//! disk. So what is hashed is every block that is not all zeros, preceded by its number, and in the
//! end the size: as strong, and the same however the holes are stored.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

/// Size of the blocks.
const BLOCK: u64 = 64 * 1024;

/// The digest of a disk, 64 hex digits.
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
