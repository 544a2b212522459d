//! How the names in a directory with an index are hashed: half of MD4 with the file system's seed.

/// What MD4 starts with if the file system has no seed.
const START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
/// The largest hash means the end of a directory.
const END: u32 = 0xffff_fffe;
/// Bytes that are hashed at once.
const PART_BYTES: usize = 32;

/// The hash function of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NameHash {
    start: [u32; 4],
    /// Whether bytes from 128 on count as negative.
    signed: bool,
}

impl NameHash {
    /// With the seed from the superblock.
    pub(crate) fn new(seed: [u32; 4], signed: bool) -> Self {
        Self { start: if seed == [0; 4] { START } else { seed }, signed }
    }

    /// The hash of a name. The lowest bit is free for something else.
    pub(crate) fn of(&self, name: &[u8]) -> u32 {
        let mut state = self.start;
        let mut rest = name;
        while !rest.is_empty() {
            mix(&mut state, &self.words(rest));
            rest = rest.get(PART_BYTES..).unwrap_or_default();
        }
        match state[1] & !1 {
            END => END - 2,
            hash => hash,
        }
    }

    /// The next 32 bytes as numbers, padded with the length of what is left.
    fn words(&self, rest: &[u8]) -> [u32; 8] {
        let pad = u32::from(u8::try_from(rest.len()).expect("names have at most 255 bytes"))
            * 0x0101_0101;
        let mut words = [pad; 8];
        for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
            for byte in bytes {
                let value = match self.signed {
                    true => i32::from(byte.cast_signed()).cast_unsigned(),
                    false => u32::from(*byte),
                };
                *word = (*word << 8).wrapping_add(value);
            }
        }
        words
    }
}

/// The functions of the three rounds.
type Function = fn(u32, u32, u32) -> u32;

fn choose(x: u32, y: u32, z: u32) -> u32 {
    (x & y) | (!x & z)
}

fn majority(x: u32, y: u32, z: u32) -> u32 {
    (x & y) | (x & z) | (y & z)
}

fn parity(x: u32, y: u32, z: u32) -> u32 {
    x ^ y ^ z
}

/// Of each round: the function, the constant, which words in which order, and the rotations.
const ROUNDS: [(Function, u32, [usize; 8], [u32; 4]); 3] = [
    (choose, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
    (majority, 0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
    (parity, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
];

fn mix(state: &mut [u32; 4], words: &[u32; 8]) {
    let [mut a, mut b, mut c, mut d] = *state;
    for (function, constant, order, rotations) in ROUNDS {
        for (step, word) in order.into_iter().enumerate() {
            let sum =
                a.wrapping_add(function(b, c, d)).wrapping_add(words[word]).wrapping_add(constant);
            (a, d, c, b) = (d, c, b, sum.rotate_left(rotations[step % 4]));
        }
    }
    for (sum, value) in state.iter_mut().zip([a, b, c, d]) {
        *sum = sum.wrapping_add(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_debugfs() {
        let seed = [0x6745_2301, 0xef8d_ab89, 0x6745_2381, 0xefcd_ab89];
        let long = [b'a'; 100];
        let longest = b"xyz".repeat(85);
        let cases = [
            (&b"hello"[..], 0x7744_a19c, 0x1746_da32),
            (b"lost+found", 0x0b44_f2aa, 0x591d_e422),
            (&long, 0x8fbb_2538, 0x7b03_646e),
            (&longest, 0x0761_b274, 0x0446_b9d0),
            ("grün€".as_bytes(), 0x1332_7862, 0x3bcb_6ece),
            (b"abcd", 0x0c7c_08e2, 0xad75_57a8),
        ];
        for (name, seeded, plain) in cases {
            assert_eq!(NameHash::new(seed, true).of(name), seeded, "{name:?}");
            assert_eq!(NameHash::new([0; 4], true).of(name), plain, "{name:?}");
            let unsigned = NameHash::new(seed, false).of(name);
            assert_eq!(unsigned == seeded, name.is_ascii(), "{name:?}");
        }
    }
}
