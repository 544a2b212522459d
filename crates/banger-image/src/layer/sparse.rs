//! Where the data of a sparse member belongs.

use std::io::{self, Read};

use super::header::BLOCK;
use super::pax::decimal;

/// Most chunks of one file. A map takes sixteen bytes of memory for each.
pub(super) const MAX_CHUNKS: usize = 1 << 18;
/// Most digits of a number in a map.
const MAX_DIGITS: usize = 20;

/// Offsets in the file and sizes.
pub(crate) type Chunks = Vec<(u64, u64)>;

/// Add a chunk to a map that is being read.
pub(super) fn push(chunks: &mut Chunks, chunk: (u64, u64)) -> Result<(), String> {
    if chunks.len() >= MAX_CHUNKS {
        return Err(format!("a sparse file of more than {MAX_CHUNKS} pieces"));
    }
    chunks.push(chunk);
    Ok(())
}

/// The chunks out of offsets and sizes in turn.
pub(super) fn pairs(numbers: &[u64]) -> Result<Chunks, String> {
    let mut chunks = Chunks::new();
    for pair in numbers.chunks(2) {
        let [offset, bytes] = *pair else { return Err(malformed()) };
        push(&mut chunks, (offset, bytes))?;
    }
    Ok(chunks)
}

/// Check that the chunks are in order, do not overlap, lie in a file of `size` bytes, and are as
/// much as the `stored` bytes of the member. Empty ones, which only mark the end, are left out.
pub(super) fn check(mut chunks: Chunks, size: u64, stored: u64) -> Result<Chunks, String> {
    let mut end = 0;
    let mut sum = 0_u64;
    for (offset, bytes) in &chunks {
        if *offset < end {
            return Err(malformed());
        }
        end = offset.checked_add(*bytes).filter(|end| *end <= size).ok_or_else(malformed)?;
        // Cannot overflow: they are parts of `size` that do not overlap.
        sum += bytes;
    }
    if sum != stored {
        return Err(malformed());
    }
    chunks.retain(|(_, bytes)| *bytes > 0);
    Ok(chunks)
}

/// Read the map that precedes the data (version 1.0): decimal numbers, one a line, first how many
/// chunks there are, then offset and size of each; zeros up to the next block.
pub(super) fn read_map(data: &mut dyn Read) -> io::Result<Result<Chunks, String>> {
    let mut lines = Lines { data, block: [0; BLOCK], used: BLOCK };
    let Some(count) = lines.number()? else { return Ok(Err(malformed())) };
    let mut chunks = Chunks::new();
    for _ in 0..count {
        let (Some(offset), Some(bytes)) = (lines.number()?, lines.number()?) else {
            return Ok(Err(malformed()));
        };
        if let Err(reason) = push(&mut chunks, (offset, bytes)) {
            return Ok(Err(reason));
        }
    }
    Ok(Ok(chunks))
}

struct Lines<'a> {
    data: &'a mut dyn Read,
    block: [u8; BLOCK],
    used: usize,
}

impl Lines<'_> {
    /// The number on the next line; None if there is none.
    fn number(&mut self) -> io::Result<Option<u64>> {
        let mut digits = Vec::new();
        loop {
            if self.used == BLOCK {
                self.data.read_exact(&mut self.block)?;
                self.used = 0;
            }
            let byte = self.block[self.used];
            self.used += 1;
            match byte {
                b'\n' => return Ok(decimal(&digits)),
                _ if digits.len() == MAX_DIGITS => return Ok(None),
                byte => digits.push(byte),
            }
        }
    }
}

fn malformed() -> String {
    "a malformed map of a sparse file".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_in_order_within_the_file_and_complete() {
        let good: [(Chunks, u64, u64); 4] = [
            (vec![], 0, 0),
            (vec![(0, 10), (10, 5)], 15, 15),
            (vec![(4, 6), (100, 0)], 100, 6),
            (vec![(0, u64::MAX)], u64::MAX, u64::MAX),
        ];
        for (chunks, size, stored) in good {
            assert!(check(chunks.clone(), size, stored).is_ok(), "{chunks:?}");
        }
        let bad: [(Chunks, u64, u64); 6] = [
            (vec![(0, 10), (9, 5)], 15, 15),
            (vec![(10, 5), (0, 5)], 15, 10),
            (vec![(0, 16)], 15, 16),
            (vec![(0, 10)], 15, 11),
            (vec![(u64::MAX, 2)], u64::MAX, 2),
            (vec![(1, u64::MAX), (2, u64::MAX)], u64::MAX, 0),
        ];
        for (chunks, size, stored) in bad {
            assert!(check(chunks.clone(), size, stored).is_err(), "{chunks:?}");
        }
        assert_eq!(check(vec![(4, 6), (9999, 0)], 9999, 6), Ok(vec![(4, 6)]));
        assert_eq!(pairs(&[1, 2, 3]), Err(malformed()));
    }

    /// The map, and how many bytes it takes.
    fn map(text: &str) -> Option<(Chunks, usize)> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let mut rest = &bytes[..];
        let chunks = read_map(&mut rest).ok()?.ok()?;
        Some((chunks, bytes.len() - rest.len()))
    }

    #[test]
    fn a_map_before_the_data_is_read_to_the_block() {
        assert_eq!(map("2\n0\n10\n90\n10\n"), Some((vec![(0, 10), (90, 10)], 512)));
        assert_eq!(map("0\n"), Some((vec![], 512)));
        let long: String = (0..200).map(|at| format!("{}\n1\n", at * 1000)).collect();
        assert_eq!(map(&format!("200\n{long}")).map(|(_, taken)| taken), Some(2048));
        for bad in ["", "x\n", "1\n0\n", "2\n0\n1\n", "-1\n", "\n", "9".repeat(600).as_str()] {
            assert_eq!(map(bad), None, "{bad:?}");
        }
        // As many as one likes to claim: what is there counts.
        assert_eq!(map("18446744073709551615\n0\n1\n"), None);
        let many: String = (0..=MAX_CHUNKS).map(|at| format!("{}\n1\n", at * 2)).collect();
        assert_eq!(map(&format!("{}\n{many}", MAX_CHUNKS + 1)), None);
    }
}
