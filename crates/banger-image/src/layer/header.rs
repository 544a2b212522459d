//! The 512 bytes in front of every member of a tar, in all the dialects that layers come in.

/// Size of a header, and what the data after it is rounded up to.
pub(crate) const BLOCK: usize = 512;

/// How many of the chunks of a sparse file fit into the header itself.
const CHUNKS_IN_HEADER: usize = 4;
/// How many fit into each of the blocks that may follow.
const CHUNKS_IN_BLOCK: usize = 21;
/// Size of a chunk's description: two numbers of twelve bytes.
const CHUNK: usize = 24;

/// Who wrote the header, as far as the fields after the name differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Before POSIX: no prefix, no device numbers.
    Old,
    /// POSIX: a prefix of 155 bytes.
    Ustar,
    /// Schilling's: a prefix of 131 bytes, then times.
    Star,
    /// GNU: times and the map of a sparse file where the prefix would be.
    Gnu,
}

/// A header as it was read.
pub(crate) struct Header([u8; BLOCK]);

impl Header {
    pub(crate) fn new(bytes: [u8; BLOCK]) -> Self {
        Self(bytes)
    }

    /// Whether it is one of the zero blocks that end an archive.
    pub(crate) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Whether it adds up. Some old writers added signed bytes.
    pub(crate) fn adds_up(&self) -> bool {
        let Some(stated) = number(&self.0[148..156]) else { return false };
        let rest = || self.0[..148].iter().chain(&self.0[156..]);
        let spaces = 8 * i128::from(b' ');
        let unsigned: i128 = rest().map(|byte| i128::from(*byte)).sum();
        let signed: i128 = rest().map(|byte| i128::from(byte.cast_signed())).sum();
        stated == unsigned + spaces || stated == signed + spaces
    }

    /// The byte that says what the member is.
    pub(crate) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    fn dialect(&self) -> Dialect {
        match &self.0[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") && &self.0[508..512] == b"tar\0" => {
                Dialect::Star
            }
            magic if magic.starts_with(b"ustar") => Dialect::Ustar,
            _ => Dialect::Old,
        }
    }

    /// The member's name, prefix included.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match self.dialect() {
            Dialect::Ustar => text(&self.0[345..500]),
            Dialect::Star => text(&self.0[345..476]),
            Dialect::Old | Dialect::Gnu => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// What a link says.
    pub(crate) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(crate) fn mode(&self) -> Option<i128> {
        number(&self.0[100..108])
    }

    pub(crate) fn uid(&self) -> Option<i128> {
        number(&self.0[108..116])
    }

    pub(crate) fn gid(&self) -> Option<i128> {
        number(&self.0[116..124])
    }

    /// Size of the data that follows.
    pub(crate) fn size(&self) -> Option<i128> {
        number(&self.0[124..136])
    }

    pub(crate) fn mtime(&self) -> Option<i128> {
        number(&self.0[136..148])
    }

    /// Major and minor number of a device.
    pub(crate) fn device(&self) -> Option<(i128, i128)> {
        match self.dialect() {
            Dialect::Old => Some((0, 0)),
            _ => Some((number(&self.0[329..337])?, number(&self.0[337..345])?)),
        }
    }

    /// Whether it is in GNU's dialect, the only one whose headers describe sparse files.
    pub(crate) fn is_gnu(&self) -> bool {
        self.dialect() == Dialect::Gnu
    }

    /// The chunks of a sparse file that are described in the header.
    pub(crate) fn sparse_chunks(&self) -> &[u8] {
        &self.0[386..386 + CHUNKS_IN_HEADER * CHUNK]
    }

    /// Whether blocks with more chunks follow.
    pub(crate) fn sparse_goes_on(&self) -> bool {
        self.0[482] != 0
    }

    /// The whole size of a sparse file.
    pub(crate) fn sparse_size(&self) -> Option<i128> {
        number(&self.0[483..495])
    }
}

/// The chunks of a block that follows the header of a sparse file, and whether another follows.
pub(crate) fn sparse_block(block: &[u8; BLOCK]) -> (&[u8], bool) {
    (&block[..CHUNKS_IN_BLOCK * CHUNK], block[CHUNKS_IN_BLOCK * CHUNK] != 0)
}

/// The two numbers of each described chunk; None for one that makes no sense. An unused place ends
/// the list.
pub(crate) fn chunks(bytes: &[u8]) -> impl Iterator<Item = Option<(u64, u64)>> {
    bytes.chunks_exact(CHUNK).take_while(|chunk| chunk[12] != 0).map(|chunk| {
        let offset = u64::try_from(number(&chunk[..12])?).ok()?;
        let bytes = u64::try_from(number(&chunk[12..])?).ok()?;
        Some((offset, bytes))
    })
}

/// The bytes of a field before the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number: octal digits between spaces and zeros or, if the first bit is set, a big-endian one in
/// two's complement. An empty field is 0.
fn number(field: &[u8]) -> Option<i128> {
    if field[0] & 0x80 != 0 {
        // At most twelve bytes, so that nothing is lost.
        let first = i128::from(field[0] & 0x3f) - i128::from(field[0] & 0x40);
        return Some(field[1..].iter().fold(first, |sum, byte| (sum << 8) | i128::from(*byte)));
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(is_blank).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0, |sum: i128, digit| match digit {
        b'0'..=b'7' => Some(sum * 8 + i128::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        let cases: [(&[u8], Option<i128>); 12] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o7777_7777)),
            (b"644\0junk", Some(0o644)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\x80\0\0\0\xff\xff\xff\xff", Some(0xffff_ffff)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\x00", Some(-256)),
            (b"\xc0\0\0\0\0\0\0\0", Some(-(1 << 62))),
        ];
        for (field, want) in cases {
            assert_eq!(number(field), want, "{field:?}");
        }
        // The largest there can be.
        assert_eq!(number(&[0xbf; 12]).map(|number| number > i128::from(u64::MAX)), Some(true));
    }

    fn with_checksum(mut bytes: [u8; BLOCK], sum: i128) -> Header {
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Header::new(bytes)
    }

    #[test]
    fn both_ways_of_adding_up_are_right_and_no_other() {
        let mut bytes = [0; BLOCK];
        bytes[0] = 0xff;
        assert!(with_checksum(bytes, 8 * 32 + 255).adds_up());
        assert!(with_checksum(bytes, 8 * 32 - 1).adds_up());
        assert!(!with_checksum(bytes, 8 * 32).adds_up());
        assert!(!Header::new(bytes).adds_up());
    }

    #[test]
    fn the_prefix_depends_on_the_dialect() {
        let name = |magic: &[u8], end: &[u8]| {
            let mut bytes = [0; BLOCK];
            bytes[..4].copy_from_slice(b"name");
            bytes[257..257 + magic.len()].copy_from_slice(magic);
            bytes[345..351].copy_from_slice(b"prefix");
            bytes[508..508 + end.len()].copy_from_slice(end);
            String::from_utf8(Header::new(bytes).name()).expect("text")
        };
        assert_eq!(name(b"ustar\x0000", b""), "prefix/name");
        assert_eq!(name(b"ustar\x0000", b"tar\0"), "prefix/name");
        assert_eq!(name(b"ustar  \0", b""), "name");
        assert_eq!(name(b"", b""), "name");
    }
}
