//! A whole disk out of an image and the copy-on-write store of a VM that has stopped.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::{CHUNK_SECTORS, MAGIC};
use crate::sparse;

/// Size of a chunk in bytes.
const CHUNK: u64 = CHUNK_SECTORS as u64 * 512;
/// How many exceptions a metadata chunk describes: two 64-bit numbers each.
const PER_AREA: u64 = CHUNK / 16;

/// Makes the new file `target` what the guest sees as its disk: the image, and over it every chunk
/// that is in the store. The guest wrote the store, so nothing in it is believed without a check.
///
/// # Errors
/// Of the file system; `InvalidData` if the store makes no sense.
pub fn flatten(image: &Path, store: &Path, disk_bytes: u64, target: &Path) -> io::Result<()> {
    let target =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(target)?;
    let image = File::open(image)?;
    target.set_len(disk_bytes.max(image.metadata()?.len()))?;
    sparse::copy_data(&image, &target)?;
    let store = File::open(store)?;
    let mut chunk = vec![0; usize::try_from(CHUNK).expect("it is small")];
    for (disk_chunk, store_chunk) in exceptions(&store, disk_bytes / CHUNK)? {
        store.read_exact_at(&mut chunk, store_chunk * CHUNK)?;
        target.write_all_at(&chunk, disk_chunk * CHUNK)?;
    }
    Ok(())
}

/// Which chunk of the disk is in which chunk of the store.
fn exceptions(store: &File, disk_chunks: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut header = [0; 4];
    store.read_exact_at(&mut header, 0)?;
    // A VM that never ran has an empty store.
    if u32::from_le_bytes(header) != MAGIC {
        return Ok(Vec::new());
    }
    let store_chunks = store.metadata()?.len() / CHUNK;
    let mut found = Vec::new();
    let mut area = vec![0; usize::try_from(CHUNK).expect("it is small")];
    let mut at = 1;
    while at < store_chunks {
        store.read_exact_at(&mut area, at * CHUNK)?;
        for exception in area.chunks_exact(16) {
            let number = |range: std::ops::Range<usize>| {
                u64::from_le_bytes(exception[range].try_into().expect("it has eight bytes"))
            };
            let (disk_chunk, store_chunk) = (number(0..8), number(8..16));
            // Nothing is ever stored where the header is: the list ends.
            if store_chunk == 0 {
                return Ok(found);
            }
            if disk_chunk >= disk_chunks || store_chunk >= store_chunks {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("the store has chunk {disk_chunk} at {store_chunk}, beyond the end"),
                ));
            }
            found.push((disk_chunk, store_chunk));
        }
        at += PER_AREA + 1;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = 64 * CHUNK;

    fn store_with(dir: &Path, exceptions: &[(u64, u64)], chunks: &[(u64, u8)]) {
        let path = dir.join("root.cow");
        super::super::create(&path, DISK).expect("create");
        let file = OpenOptions::new().write(true).open(&path).expect("open");
        let header = [MAGIC, 1, 1, CHUNK_SECTORS].map(u32::to_le_bytes).concat();
        file.write_all_at(&header, 0).expect("write");
        for (index, (disk, store)) in (0..).zip(exceptions) {
            let entry = [disk.to_le_bytes(), store.to_le_bytes()].concat();
            file.write_all_at(&entry, CHUNK + index * 16).expect("write");
        }
        for (chunk, byte) in chunks {
            file.write_all_at(&[*byte; 4096], chunk * CHUNK).expect("write");
        }
    }

    fn image(dir: &Path) {
        let file = File::create(dir.join("image")).expect("create");
        file.set_len(DISK / 2).expect("size");
        file.write_all_at(&[7; 4096], 3 * CHUNK).expect("write");
        file.write_all_at(&[8; 4096], 4 * CHUNK).expect("write");
    }

    fn flat(dir: &Path) -> io::Result<Vec<u8>> {
        let target = dir.join("flat");
        flatten(&dir.join("image"), &dir.join("root.cow"), DISK, &target)?;
        std::fs::read(target)
    }

    #[test]
    fn what_the_guest_wrote_lies_over_the_image() {
        let dir = tempfile::tempdir().expect("a directory");
        image(dir.path());
        store_with(dir.path(), &[(4, 2), (60, 3)], &[(2, 1), (3, 2)]);
        let bytes = flat(dir.path()).expect("good");
        assert_eq!(bytes.len() as u64, DISK);
        let first_of = |chunk: usize| bytes[chunk * 4096];
        assert_eq!([3, 4, 5, 60].map(first_of), [7, 1, 0, 2]);
    }

    #[test]
    fn an_unused_store_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        image(dir.path());
        super::super::create(&dir.path().join("root.cow"), DISK).expect("create");
        assert_eq!(flat(dir.path()).expect("good")[4 * 4096], 8);
    }

    #[test]
    fn a_store_that_points_outside_is_refused() {
        for exception in [(64, 2), (1, 1 << 40)] {
            let dir = tempfile::tempdir().expect("a directory");
            image(dir.path());
            store_with(dir.path(), &[exception], &[]);
            let error = flat(dir.path()).expect_err("beyond the end");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
