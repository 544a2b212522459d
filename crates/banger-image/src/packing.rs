//! The ways in which kernels, their modules and Debian packages are packed.
//!
//! Which one it is, is said by the first bytes, never by a name. What comes out is bounded by whoever
//! reads it: [`Packing::open`] unpacks as it is read and holds no more than the packing's own window.

use std::fmt;
use std::io::{self, Read};

/// How much of a file must be known to tell its packing.
pub(crate) const MAGIC_BYTES: usize = 9;
/// Largest window of a packed stream: what `zstd -22 --ultra` and the kernel's `xz` use.
const MAX_WINDOW: u32 = 128 << 20;
/// The same as a power of two.
const MAX_WINDOW_LOG: u32 = MAX_WINDOW.ilog2();
/// What `xz` needs beside its window, in KiB.
const XZ_OVERHEAD_KIB: u32 = 1024;
/// Blocks of LZ4's legacy frame unpack to at most this.
const LEGACY_BLOCK: usize = 8 << 20;
const LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// How something is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// RFC 1952, one member or several.
    Gzip,
    /// With any of its filters.
    Xz,
    /// RFC 8878, one frame or several.
    Zstd,
    /// The frames that `lz4 -l` makes, and that nothing but kernels still uses.
    Lz4Legacy,
    /// Known, and not unpacked.
    Bzip2,
    /// Known, and not unpacked.
    Lzma,
    /// Known, and not unpacked.
    Lzo,
}

impl Packing {
    /// The packing of something that begins like that; None if it is not known to be packed.
    pub(crate) fn of(first: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Packing); 7] = [
            (b"\x1f\x8b", Packing::Gzip),
            (b"\xfd7zXZ\0", Packing::Xz),
            (b"\x28\xb5\x2f\xfd", Packing::Zstd),
            (&LEGACY_MAGIC, Packing::Lz4Legacy),
            (b"BZh", Packing::Bzip2),
            (b"\x5d\0\0", Packing::Lzma),
            (b"\x89LZO\0\r\n\x1a\n", Packing::Lzo),
        ];
        MAGICS.iter().find(|(magic, _)| first.starts_with(magic)).map(|(_, packing)| *packing)
    }

    /// What is packed in `packed`, which begins with its first byte.
    ///
    /// # Errors
    /// It is a packing that is not unpacked here. Damage is an error of the reads.
    pub(crate) fn open<'a>(self, packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            Self::Xz => {
                let limit = MAX_WINDOW / 1024 + XZ_OVERHEAD_KIB;
                Box::new(lzma_rust2::XzReader::new_mem_limit(packed, true, limit))
            }
            Self::Zstd => {
                let mut decoder = zstd::Decoder::new(packed)?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Box::new(decoder)
            }
            Self::Lz4Legacy => Box::new(LegacyLz4::new(packed)),
            Self::Bzip2 | Self::Lzma | Self::Lzo => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("it is packed with {self}, which is not supported"),
                ));
            }
        })
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4Legacy => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
        })
    }
}

/// `reader`, unpacked if its first bytes say that it is packed.
///
/// # Errors
/// It cannot be read, or is packed in an unsupported way.
pub(crate) fn unpacked<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut first = Vec::with_capacity(MAGIC_BYTES);
    Read::by_ref(&mut reader).take(MAGIC_BYTES as u64).read_to_end(&mut first)?;
    let packing = Packing::of(&first);
    let whole = io::Cursor::new(first).chain(reader);
    match packing {
        Some(packing) => packing.open(whole),
        None => Ok(Box::new(whole)),
    }
}

/// All that `reader` has, which is an error if that is more than `limit` bytes.
pub(crate) fn read_bounded(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {} MiB", limit >> 20),
        ));
    }
    Ok(bytes)
}

/// Unpacks LZ4's legacy frame: blocks, each preceded by its packed size.
struct LegacyLz4<R> {
    packed: R,
    block: Vec<u8>,
    /// The part of the block that was not read yet.
    begin: usize,
    end: usize,
}

impl<R: Read> LegacyLz4<R> {
    fn new(packed: R) -> Self {
        Self { packed, block: vec![0; LEGACY_BLOCK], begin: 0, end: 0 }
    }

    /// Unpack the next block; false at the end.
    fn next_block(&mut self) -> io::Result<bool> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "an lz4 block makes no sense");
        let mut word = Vec::with_capacity(4);
        // The kernel's build may append frames to frames.
        while word.is_empty() || word == LEGACY_MAGIC {
            word.clear();
            Read::by_ref(&mut self.packed).take(4).read_to_end(&mut word)?;
            if word.is_empty() {
                return Ok(false);
            }
        }
        let size = word.try_into().map(u32::from_le_bytes).map_err(|_| damaged())?;
        if u64::from(size) > lz4_flex::block::get_maximum_output_size(LEGACY_BLOCK) as u64 {
            return Err(damaged());
        }
        let mut packed = Vec::new();
        Read::by_ref(&mut self.packed).take(u64::from(size)).read_to_end(&mut packed)?;
        if packed.len() as u64 != u64::from(size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = lz4_flex::block::decompress_into(&packed, &mut self.block);
        (self.begin, self.end) = (0, length.map_err(|_| damaged())?);
        Ok(true)
    }
}

impl<R: Read> Read for LegacyLz4<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.begin == self.end {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.end - self.begin);
        buffer[..count].copy_from_slice(&self.block[self.begin..self.begin + count]);
        self.begin += count;
        Ok(count)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use banger_host::command::{Cancel, Tool};
    use proptest::prelude::*;

    use super::*;

    /// What packs as the kernel's build does. gzip and xz are the host's own: their ways of packing,
    /// xz's filter for programs above all, are what has to be understood.
    pub(crate) const PACKERS: [&str; 6] = ["gzip", "xz", "xz --x86", "zstd", "lz4", "lzma"];

    /// `bytes` packed by one of [`PACKERS`], without the size that the kernel's build appends.
    pub(crate) fn packed(packer: &str, bytes: &[u8]) -> Vec<u8> {
        let by = |program: &str, args: &[&str]| {
            let tool = Tool::new(program).args(args).stdin(bytes).stdout_limit(64 << 20);
            tool.run(&Cancel::new()).expect("the program is there").stdout
        };
        match packer {
            "gzip" => by("gzip", &["-n", "-f", "-9"]),
            "xz" => by("xz", &["--check=crc32", "--lzma2=dict=1MiB"]),
            "xz --x86" => by("xz", &["--check=crc32", "--x86", "--lzma2=,dict=128MiB"]),
            "lzma" => by("xz", &["--format=lzma"]),
            "zstd" => zstd::bulk::compress(bytes, 3).expect("it is packed"),
            "lz4" => legacy_frame(bytes),
            _ => panic!("{packer} is none of them"),
        }
    }

    fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
        read_bounded(unpacked(packed)?, 64 << 20)
    }

    /// What looks a little like a program: with calls, for the filter of `xz`.
    fn program(length: usize) -> Vec<u8> {
        let mut bytes = b"\x7fELF".to_vec();
        let mut word = 1_u32;
        while bytes.len() < length {
            word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.push(if word >> 30 == 0 { 0xe8 } else { 0x90 });
            bytes.extend((word >> 16).to_le_bytes());
        }
        bytes
    }

    fn legacy_frame(bytes: &[u8]) -> Vec<u8> {
        let mut frame = LEGACY_MAGIC.to_vec();
        for chunk in bytes.chunks(LEGACY_BLOCK) {
            let packed = lz4_flex::block::compress(chunk);
            frame.extend(u32::try_from(packed.len()).expect("small").to_le_bytes());
            frame.extend(packed);
        }
        frame
    }

    #[test]
    fn what_is_packed_comes_out_as_it_went_in() {
        let bytes = program(300_000);
        for packer in PACKERS {
            let packed = packed(packer, &bytes);
            let packing = Packing::of(&packed).expect("it is known");
            assert!(packer.starts_with(&packing.to_string()), "{packing}");
            match unpack(&packed) {
                Ok(unpacked) => assert_eq!(unpacked, bytes, "{packer}"),
                Err(error) => assert_eq!(
                    (packer, error.to_string().as_str()),
                    ("lzma", "it is packed with lzma, which is not supported")
                ),
            }
        }
    }

    #[test]
    fn frames_may_follow_each_other() {
        for packer in ["lz4", "gzip", "zstd", "xz"] {
            // More than one of lz4's blocks.
            let bytes = program(if packer == "lz4" { LEGACY_BLOCK + 12345 } else { 30_000 });
            let twice = [packed(packer, &bytes), packed(packer, &bytes)].concat();
            assert!(unpack(&twice).expect("it is whole") == [&*bytes, &bytes].concat(), "{packer}");
        }
    }

    #[test]
    fn what_is_not_packed_stays_as_it_is() {
        for bytes in [&b""[..], b"a", b"\x7fELF and more"] {
            assert_eq!(unpack(bytes).expect("plain"), bytes);
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        for packer in ["gzip", "xz", "zstd", "lz4"] {
            let bomb = packed(packer, &vec![0; 32 << 20]);
            let unpacked = unpacked(&bomb[..]).expect("it is known");
            let error = read_bounded(unpacked, 1 << 20).expect_err("a bomb");
            assert_eq!(error.to_string(), "it is larger than 1 MiB");
        }
    }

    #[test]
    fn a_window_that_nobody_needs_is_refused() {
        // A frame's header that asks for 2 GiB, and a raw block of one byte.
        let zstd = b"\x28\xb5\x2f\xfd\x00\xa8\x09\x00\x00a";
        assert!(unpack(zstd).is_err());
        let xz = packed("xz --x86", &program(1000));
        // The same dictionary of 1.5 GiB: the last byte of the properties of LZMA2.
        let filter = xz.windows(3).position(|bytes| bytes == [0x21, 0x01, 30]).expect("128 MiB");
        let mut huge = xz.clone();
        huge[filter + 2] = 37;
        assert!(unpack(&xz).is_ok());
        assert!(unpack(&huge).is_err());
    }

    #[test]
    fn every_cut_is_an_error_and_no_panic() {
        let bytes = program(4000);
        for packer in ["gzip", "xz", "xz --x86", "zstd"] {
            let packed = packed(packer, &bytes);
            for length in MAGIC_BYTES..packed.len() {
                assert!(unpack(&packed[..length]).is_err(), "{packer} {length}");
            }
        }
        let packed = packed("lz4", &bytes);
        for length in MAGIC_BYTES..packed.len() {
            assert!(unpack(&packed[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(magic in 0_usize..7, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            const BEGINNINGS: [&[u8]; 7] = [
                b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", &LEGACY_MAGIC, b"BZh", b"\x5d\0\0", b"",
            ];
            let _ = unpack(&[BEGINNINGS[magic], &bytes].concat());
        }
    }
}
