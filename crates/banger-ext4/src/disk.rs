//! The blocks of a disk: which are free, and writing them in long runs.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::BLOCK;
use crate::bitmap::Bitmap;
use crate::error::Error;
use crate::fields::index;

/// Blocks in a row are put together up to this size before they are written.
const PENDING_BYTES: usize = 1 << 20;
/// What is at least this large is written as it is.
const DIRECT_BYTES: usize = 256 << 10;

/// Blocks of the disk in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) blocks: u64,
}

/// A disk that is being filled.
#[derive(Debug)]
pub(crate) struct Disk {
    file: File,
    /// What is in use.
    used: Bitmap,
    free: u64,
    /// Where to look for the next free block.
    cursor: u64,
    /// What has been written to, ever.
    touched: Bitmap,
    pending: Vec<u8>,
    /// Block of the first byte that is pending.
    pending_start: u64,
}

impl Disk {
    /// A disk of which the blocks `used` are in use, to be filled from `cursor` on.
    pub(crate) fn new(file: File, used: Bitmap, cursor: u64) -> Self {
        let blocks = used.bound();
        Self {
            file,
            free: blocks - used.len(),
            used,
            cursor,
            touched: Bitmap::new(blocks),
            pending: Vec::with_capacity(PENDING_BYTES),
            pending_start: 0,
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn used(&self) -> &Bitmap {
        &self.used
    }

    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// Take up to `most` free blocks in a row; None if there are none.
    ///
    /// New blocks come after those that were taken last, up to the end of the disk, and only then
    /// from what has been given back: files stay in one piece, and what was given back becomes a
    /// hole of the disk's file.
    pub(crate) fn allocate(&mut self, most: u64) -> Option<Run> {
        let bound = self.used.bound();
        let from_cursor = self.used.next_absent(self.cursor, bound);
        let start = from_cursor.or_else(|| self.used.next_absent(0, self.cursor))?;
        let most = start.saturating_add(most).min(bound);
        let end = self.used.next(start, most).unwrap_or(most);
        let run = Run { start, blocks: end - start };
        self.used.insert(run.start, run.blocks);
        self.free -= run.blocks;
        self.cursor = end;
        Some(run)
    }

    /// Take one free block.
    pub(crate) fn allocate_one(&mut self) -> Result<u64, Error> {
        self.allocate(1).map(|run| run.start).ok_or_else(|| self.full())
    }

    /// Give blocks back.
    pub(crate) fn free_run(&mut self, run: Run) {
        debug_assert!(self.used.covers(run.start, run.blocks));
        self.used.remove(run.start, run.blocks);
        self.free += run.blocks;
    }

    /// Say anew which blocks are in use.
    pub(crate) fn set_used(&mut self, used: Bitmap) {
        self.free = used.bound() - used.len();
        self.used = used;
    }

    /// That there is nothing left.
    pub(crate) fn full(&self) -> Error {
        Error::NoSpace { bytes: self.touched.bound() * BLOCK }
    }

    /// Write whole blocks from a block on, now or later.
    pub(crate) fn put(&mut self, start: u64, bytes: &[u8]) -> Result<(), Error> {
        let blocks = bytes.len() as u64 / BLOCK;
        debug_assert!(blocks * BLOCK == bytes.len() as u64 && self.used.covers(start, blocks));
        self.touched.insert(start, blocks);
        let follows = start == self.pending_start + self.pending.len() as u64 / BLOCK;
        if !follows || self.pending.len() + bytes.len() > PENDING_BYTES {
            self.flush()?;
        }
        if bytes.len() >= DIRECT_BYTES {
            self.flush()?;
            return self.file.write_all_at(bytes, start * BLOCK).map_err(Error::Io);
        }
        if self.pending.is_empty() {
            self.pending_start = start;
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// Write what is pending.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        let at = self.pending_start * BLOCK;
        self.file.write_all_at(&self.pending, at).map_err(Error::Io)?;
        self.pending.clear();
        Ok(())
    }

    /// Forget what has been written to blocks that are not in use: they become holes of the file.
    pub(crate) fn release_unused(&mut self) -> Result<(), Error> {
        self.flush()?;
        let mut at = 0;
        let bound = self.touched.bound();
        while let Some(start) = self.touched.next(at, bound) {
            let end = self.touched.next_absent(start, bound).unwrap_or(bound);
            at = end;
            let mut from = start;
            while let Some(unused) = self.used.next_absent(from, end) {
                from = self.used.next(unused, end).unwrap_or(end);
                self.make_hole(Run { start: unused, blocks: from - unused })?;
            }
        }
        Ok(())
    }

    fn make_hole(&self, run: Run) -> Result<(), Error> {
        use nix::fcntl::{FallocateFlags, fallocate};
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let signed = |blocks: u64| i64::try_from(blocks * BLOCK).expect("it is within the file");
        match fallocate(&self.file, flags, signed(run.start), signed(run.blocks)) {
            Ok(()) => Ok(()),
            // What was deleted shall not be found in the file, even if it cannot have holes.
            Err(nix::errno::Errno::EOPNOTSUPP) => self.write_zeros(run),
            Err(errno) => Err(Error::Io(errno.into())),
        }
    }

    fn write_zeros(&self, run: Run) -> Result<(), Error> {
        let zeros = vec![0; PENDING_BYTES];
        let (mut at, end) = (run.start * BLOCK, (run.start + run.blocks) * BLOCK);
        while at < end {
            let count = (end - at).min(zeros.len() as u64);
            self.file.write_all_at(&zeros[..index(count)], at).map_err(Error::Io)?;
            at += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of 20 blocks, of which 0, 1 and 10 are in use.
    fn disk() -> Disk {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(20 * BLOCK).expect("it is ours");
        let mut used = Bitmap::new(20);
        used.insert(0, 2);
        used.insert(10, 1);
        Disk::new(file, used, 5)
    }

    fn run(start: u64, blocks: u64) -> Run {
        Run { start, blocks }
    }

    #[test]
    fn blocks_are_used_again_when_there_are_no_others() {
        let mut disk = disk();
        assert_eq!(disk.free(), 17);
        assert_eq!(disk.allocate(3), Some(run(5, 3)));
        disk.free_run(run(5, 2));
        assert_eq!(disk.allocate(100), Some(run(8, 2)));
        assert_eq!(disk.allocate(100), Some(run(11, 9)));
        assert_eq!(disk.allocate(100), Some(run(2, 5)));
        assert_eq!(disk.allocate(1), None);
        assert_eq!(disk.free(), 0);
        disk.free_run(run(3, 1));
        assert_eq!(disk.allocate(2), Some(run(3, 1)));
        assert!(
            matches!(disk.allocate_one(), Err(Error::NoSpace { bytes }) if bytes == 20 * BLOCK)
        );
    }

    #[test]
    fn what_is_written_is_there_and_what_was_given_back_is_not() {
        let mut disk = disk();
        let all: Vec<Run> = std::iter::from_fn(|| disk.allocate(100)).collect();
        let content = |block: u64| vec![u8::try_from(block).expect("20 blocks"); 4096];
        for block in all.iter().flat_map(|run| run.start..run.start + run.blocks).rev() {
            disk.put(block, &content(block)).expect("it is written");
        }
        disk.put(12, &content(112)).expect("it is written");
        disk.free_run(run(15, 3));
        disk.free_run(run(5, 1));
        disk.release_unused().expect("it is released");
        let read = |block: u64| {
            let mut bytes = vec![0; 4096];
            disk.file().read_exact_at(&mut bytes, block * BLOCK).expect("it is there");
            bytes
        };
        for block in 0..20 {
            let expected = match block {
                0 | 1 | 10 | 15..18 | 5 => 0,
                12 => 112,
                other => other,
            };
            assert!(read(block) == content(expected), "{block}");
        }
    }
}
