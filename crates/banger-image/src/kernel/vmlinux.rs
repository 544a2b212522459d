//! An uncompressed kernel: an ELF file, and what can be learnt from it.

use std::io::Read;

use crate::bzimage::{ELF_MAGIC, MAX_KERNEL};
use crate::packing::{Packing, read_bounded};

/// Longest release that is believed.
const MAX_RELEASE: usize = 64;
/// Largest build configuration, in bytes. Debian's has 270 kB.
pub(crate) const MAX_CONFIG: u64 = 4 << 20;
const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
/// More than any kernel has.
const MAX_SEGMENTS: u16 = 64;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: where a monitor enters the kernel. This is what PVH is.
const PVH_NOTE: u32 = 18;

/// An uncompressed kernel, as much of its file as a monitor loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vmlinux {
    bytes: Vec<u8>,
}

impl Vmlinux {
    /// A kernel out of its file. What follows the parts that are loaded, symbols and what a debugger
    /// wants to know, is left out: it may be twenty times as much.
    ///
    /// # Errors
    /// It is no kernel of this machine, in words.
    pub(crate) fn read(mut file: impl Read) -> Result<Self, String> {
        let cannot_read = |error| format!("it cannot be read: {error}");
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        Read::by_ref(&mut file)
            .take(HEADER_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(cannot_read)?;
        let table = SegmentTable::of(&bytes)?;
        let missing = table.end.checked_sub(bytes.len()).ok_or("its headers overlap")?;
        Read::by_ref(&mut file)
            .take(missing as u64)
            .read_to_end(&mut bytes)
            .map_err(cannot_read)?;
        let ends = table.segments(&bytes).ok_or("it is cut off")?.map(|segment| segment.end);
        let end = ends.max().unwrap_or(0).max(table.end as u64);
        if end > MAX_KERNEL {
            return Err(format!("it is larger than {} MiB", MAX_KERNEL >> 20));
        }
        let missing = end - bytes.len() as u64;
        bytes.extend(read_bounded(file.take(missing), missing).map_err(cannot_read)?);
        if (bytes.len() as u64) < end {
            return Err("it is cut off".to_owned());
        }
        forget_sections(&mut bytes);
        Ok(Self { bytes })
    }

    /// The file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether a virtual machine monitor can start it as it is.
    pub(crate) fn has_pvh(&self) -> bool {
        let Ok(table) = SegmentTable::of(&self.bytes) else { return false };
        let Some(mut segments) = table.segments(&self.bytes) else { return false };
        segments.any(|segment| {
            segment.kind == SEGMENT_NOTE && has_note(segment.contents(&self.bytes), PVH_NOTE)
        })
    }

    /// What `uname -r` will say, from the words that the kernel begins its log with.
    pub(crate) fn release(&self) -> Option<&str> {
        const BANNER: &[u8] = b"Linux version ";
        let mut rest = self.bytes.as_slice();
        while let Some(at) = find(rest, BANNER) {
            rest = &rest[at + BANNER.len()..];
            let word = &rest[..rest.len().min(MAX_RELEASE + 1)];
            let word = word.split(|byte| byte.is_ascii_whitespace() || *byte == 0).next()?;
            let word = std::str::from_utf8(word).unwrap_or_default();
            // A format string is not the banner.
            if is_release(word) {
                return Some(word);
            }
        }
        None
    }

    /// Its build configuration, if it carries it (`CONFIG_IKCONFIG`).
    pub(crate) fn config(&self) -> Option<String> {
        const BEGIN: &[u8] = b"IKCFG_ST";
        let begin = find(&self.bytes, BEGIN)? + BEGIN.len();
        let length = find(&self.bytes[begin..], b"IKCFG_ED")?;
        let packed = &self.bytes[begin..begin + length];
        let unpacked = Packing::Gzip.open(packed).ok()?;
        String::from_utf8(read_bounded(unpacked, MAX_CONFIG).ok()?).ok()
    }

    /// Whether these words are somewhere in it.
    pub(crate) fn contains(&self, words: &[u8]) -> bool {
        find(&self.bytes, words).is_some()
    }
}

/// Whether that can be a kernel's release: it becomes the name of a directory, here and in guests.
pub(crate) fn is_release(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.len() <= MAX_RELEASE
        && text.chars().all(legal)
}

/// Where a file's program headers are.
#[derive(Debug, Clone, Copy)]
struct SegmentTable {
    begin: usize,
    end: usize,
}

impl SegmentTable {
    fn of(header: &[u8]) -> Result<Self, String> {
        // e_ident: magic, 64-bit, little-endian
        let header = header.get(..HEADER_BYTES).filter(|bytes| bytes.starts_with(ELF_MAGIC));
        let header = header.ok_or("it is neither a bzImage nor an ELF file")?;
        if header[4..6] != [2, 1] || u16_at(header, 0x12) != MACHINE_X86_64 {
            return Err("it is not for x86-64".to_owned());
        }
        let (size, count) = (u16_at(header, 0x36), u16_at(header, 0x38));
        if usize::from(size) != SEGMENT_BYTES || count == 0 || count > MAX_SEGMENTS {
            return Err("it has no program headers, so it is no kernel".to_owned());
        }
        let begin = usize::try_from(u64_at(header, 0x20)).unwrap_or(usize::MAX);
        let end = begin.checked_add(usize::from(count) * SEGMENT_BYTES);
        let table = end.filter(|end| *end as u64 <= MAX_KERNEL && begin >= HEADER_BYTES);
        let end = table.ok_or("its headers make no sense")?;
        Ok(Self { begin, end })
    }

    /// The segments; None if the file ends before the table does.
    fn segments<'a>(&self, file: &'a [u8]) -> Option<impl Iterator<Item = Segment> + use<'a>> {
        Some(file.get(self.begin..self.end)?.chunks_exact(SEGMENT_BYTES).map(Segment::of))
    }
}

/// A part of the file that is loaded, or that says something about it.
#[derive(Debug, Clone, Copy)]
struct Segment {
    kind: u32,
    begin: u64,
    end: u64,
}

impl Segment {
    fn of(header: &[u8]) -> Self {
        let (begin, bytes) = (u64_at(header, 8), u64_at(header, 0x20));
        Self { kind: u32_at(header, 0), begin, end: begin.saturating_add(bytes) }
    }

    fn contents<'a>(&self, file: &'a [u8]) -> &'a [u8] {
        let range = usize::try_from(self.begin).ok().zip(usize::try_from(self.end).ok());
        range.and_then(|(begin, end)| file.get(begin..end)).unwrap_or_default()
    }
}

/// Whether Xen's note of that type is among `notes`.
fn has_note(mut notes: &[u8], wanted: u32) -> bool {
    while notes.len() >= 12 {
        let length = |at| usize::try_from(u32_at(notes, at)).unwrap_or(usize::MAX);
        let (name_bytes, contents_bytes, kind) = (length(0), length(4), u32_at(notes, 8));
        if kind == wanted && notes.get(12..16) == Some(b"Xen\0") && name_bytes == 4 {
            return true;
        }
        let padded = |bytes: usize| bytes.checked_next_multiple_of(4);
        let next = padded(name_bytes)
            .zip(padded(contents_bytes))
            .and_then(|(name, contents)| name.checked_add(contents)?.checked_add(12));
        let Some(rest) = next.and_then(|next| notes.get(next..)) else { return false };
        notes = rest;
    }
    false
}

/// Make the header name no sections: they are not there any more.
fn forget_sections(bytes: &mut [u8]) {
    bytes[0x28..0x30].fill(0);
    bytes[0x3c..0x40].fill(0);
}

/// Where `needle` first is in `bytes`.
fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, rest) = needle.split_first()?;
    let mut from = 0;
    loop {
        from += bytes[from..].iter().position(|byte| byte == first)? + 1;
        if bytes[from..].starts_with(rest) {
            return Some(from - 1);
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().copied().map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// A kernel that says it is `release`, has these words in it and, perhaps, PVH's note.
    pub(crate) fn vmlinux(release: &str, words: &[&[u8]], pvh: bool) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [4, 4, if pvh { PVH_NOTE } else { 17 }] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0\x00\x00\x00\x01");
        let mut text = b"Linux version %s (%s)\0".to_vec();
        text.extend(format!("Linux version {release} (me@here) #1\0").into_bytes());
        for word in words {
            text.extend_from_slice(word);
            text.push(0);
        }
        let mut file = vec![0; HEADER_BYTES];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x12..0x14].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        file[0x20..0x28].copy_from_slice(&(HEADER_BYTES as u64).to_le_bytes());
        file[0x36..0x38].copy_from_slice(&56_u16.to_le_bytes());
        file[0x38..0x3a].copy_from_slice(&2_u16.to_le_bytes());
        let mut at = HEADER_BYTES + 2 * SEGMENT_BYTES;
        for (kind, contents) in [(1_u32, &text), (SEGMENT_NOTE, &note)] {
            let mut header = [0; SEGMENT_BYTES];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(contents.len() as u64).to_le_bytes());
            file.extend(header);
            at += contents.len();
        }
        [file, text, note].concat()
    }

    /// A build configuration as a kernel carries it.
    pub(crate) fn carried_config(text: &str) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(text.as_bytes()).expect("memory");
        [b"IKCFG_ST", &packed.finish().expect("memory")[..], b"IKCFG_ED"].concat()
    }

    #[test]
    fn a_kernel_is_read_without_what_a_debugger_wants() {
        let loaded = vmlinux("6.1.0-test+", &[b"one"], true);
        let mut file = loaded.clone();
        file[0x28] = 99;
        file.extend(vec![7; 100_000]);
        let kernel = Vmlinux::read(&file[..]).expect("a kernel");
        assert_eq!(kernel.bytes(), loaded);
        assert_eq!(kernel.release(), Some("6.1.0-test+"));
        assert!(kernel.has_pvh());
        assert!(kernel.contains(b"one") && !kernel.contains(b"two"));
        assert_eq!(kernel.config(), None);
        let other = vmlinux("6.1.0", &[], false);
        assert!(!Vmlinux::read(&other[..]).expect("a kernel").has_pvh());
    }

    #[test]
    fn a_carried_configuration_is_found() {
        let text = "CONFIG_64BIT=y\n";
        let file = vmlinux("6.1.0", &[b"IKCFG", &carried_config(text)], true);
        assert_eq!(Vmlinux::read(&file[..]).expect("a kernel").config().as_deref(), Some(text));
        let file = vmlinux("6.1.0", &[b"IKCFG_STnothing packedIKCFG_ED"], true);
        assert_eq!(Vmlinux::read(&file[..]).expect("a kernel").config(), None);
    }

    #[test]
    fn what_is_no_kernel_is_told_apart() {
        let read = |bytes: &[u8]| Vmlinux::read(bytes).expect_err("no kernel");
        assert_eq!(read(b"#!/bin/sh"), "it is neither a bzImage nor an ELF file");
        let mut arm = vmlinux("6.1.0", &[], true);
        arm[0x12] = 183;
        assert_eq!(read(&arm), "it is not for x86-64");
        let mut object = vmlinux("6.1.0", &[], true);
        object[0x38] = 0;
        assert_eq!(read(&object), "it has no program headers, so it is no kernel");
        let mut huge = vmlinux("6.1.0", &[], true);
        huge[HEADER_BYTES + 0x24] = 1;
        assert_eq!(read(&huge), "it is larger than 256 MiB");
        huge[HEADER_BYTES + 8..HEADER_BYTES + 16].fill(0xff);
        assert_eq!(read(&huge), "it is larger than 256 MiB");
    }

    #[test]
    fn releases_are_harmless_names() {
        for good in ["6.1.0-56-cloud-amd64", "6.1.192-banger", "6.9.0-rc1+", "7.0~rc2"] {
            assert!(is_release(good), "{good}");
        }
        for bad in ["", "%s", "../6.1", "6/1", "6.1 0", &"6".repeat(65), "6.1\u{e9}"] {
            assert!(!is_release(bad), "{bad}");
        }
    }

    #[test]
    fn every_cut_is_an_error_and_no_panic() {
        let file = vmlinux("6.1.0", &[], true);
        for length in 0..file.len() {
            assert!(Vmlinux::read(&file[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_change_is_a_panic(at in 0_usize..400, bytes in proptest::collection::vec(any::<u8>(), 1..9)) {
            let mut file = vmlinux("6.1.0", &[&carried_config("CONFIG_A=y\n")], true);
            let at = at % (file.len() - bytes.len());
            file[at..at + bytes.len()].copy_from_slice(&bytes);
            if let Ok(kernel) = Vmlinux::read(&file[..]) {
                let _ = (kernel.has_pvh(), kernel.release(), kernel.config());
            }
        }

        #[test]
        fn words_are_found_where_they_are(bytes in "[ab]{0,20}", needle in "[ab]{1,4}") {
            prop_assert_eq!(find(bytes.as_bytes(), needle.as_bytes()), bytes.find(&needle));
        }
    }
}
