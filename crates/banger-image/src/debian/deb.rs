//! Reading a Debian package: an `ar` archive of packed `tar` archives.
//!
//! Nothing is unpacked to the host's file system here and no program is started, so a package may be
//! anybody's. See deb(5).

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tar::{Archive, EntryType};

use crate::packing::{read_bounded, unpacked};

/// What a package begins with.
pub(crate) const MAGIC: &[u8] = b"!<arch>\n";
const HEADER_BYTES: usize = 60;
/// All of a package's files, unpacked. Debian's largest kernel with what a debugger wants to know
/// would have five.
const MAX_UNPACKED: u64 = 8 << 30;
/// Longest path that is read.
const MAX_PATH: u64 = 4096;

/// A file in a package, and what is in it.
pub(crate) struct PackagedFile<'a> {
    /// Relative to the root.
    pub(crate) path: PathBuf,
    pub(crate) contents: &'a mut dyn Read,
}

/// Show every plain file of a package to `on_file`, which reads as much of each as it likes.
///
/// # Errors
/// The package cannot be read or understood, or `on_file` failed.
pub(crate) fn read_package<E: From<io::Error>>(
    package: impl Read,
    on_file: &mut dyn FnMut(PackagedFile<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let data = unpacked(find_data(package)?)?.take(MAX_UNPACKED);
    // Raw, so that the names which precede an entry are read here, with a bound.
    let mut archive = Archive::new(data);
    let mut long_name = None;
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let mut name = read_bounded(&mut entry, MAX_PATH)?;
                while name.pop_if(|byte| *byte == 0).is_some() {}
                long_name = Some(name);
            }
            EntryType::XHeader => {
                let header = read_bounded(&mut entry, 2 * MAX_PATH)?;
                long_name = pax_path(&header).map(<[u8]>::to_vec).or(long_name);
            }
            EntryType::GNULongLink | EntryType::XGlobalHeader => {}
            EntryType::Regular | EntryType::Continuous => {
                let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                // What is no text is no name that anybody here looks for.
                let path = String::from_utf8(name).unwrap_or_default();
                let path = Path::new(&path);
                let path = path.strip_prefix("./").unwrap_or(path).to_owned();
                on_file(PackagedFile { path, contents: &mut entry })?;
            }
            _ => long_name = None,
        }
    }
    // The packing's own checks are at its end.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

/// The part of the package that has its files: `data.tar`, packed in any way.
fn find_data(mut package: impl Read) -> io::Result<impl Read> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is no Debian package");
    let cut_off = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(),
        _ => error,
    };
    let mut magic = [0; MAGIC.len()];
    package.read_exact(&mut magic).map_err(cut_off)?;
    if magic != MAGIC {
        return Err(damaged());
    }
    loop {
        let mut header = [0; HEADER_BYTES];
        package.read_exact(&mut header).map_err(cut_off)?;
        let text = |range: std::ops::Range<usize>| {
            std::str::from_utf8(&header[range]).map(str::trim_ascii).map_err(|_| damaged())
        };
        let bytes: u64 = text(48..58)?.parse().map_err(|_| damaged())?;
        if &header[58..] != b"`\n" {
            return Err(damaged());
        }
        if text(0..16)?.trim_end_matches('/').starts_with("data.tar") {
            return Ok(Member { package, left: bytes });
        }
        // Members begin at even offsets.
        let skipped =
            io::copy(&mut Read::by_ref(&mut package).take(bytes + bytes % 2), &mut io::sink())?;
        if skipped < bytes {
            return Err(damaged());
        }
    }
}

/// A part of a package, which may not be shorter than the package says.
struct Member<R> {
    package: R,
    left: u64,
}

impl<R: Read> Read for Member<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = Read::by_ref(&mut self.package).take(self.left).read(buffer)?;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// The path in a header of the `pax` format: lines of `length key=value`.
fn pax_path(mut header: &[u8]) -> Option<&[u8]> {
    let mut path = None;
    while let Some(space) = header.iter().position(|byte| *byte == b' ') {
        let length: usize = std::str::from_utf8(&header[..space]).ok()?.parse().ok()?;
        let line = header.get(space + 1..length)?;
        if let Some(value) = line.strip_prefix(b"path=") {
            path = Some(value.strip_suffix(b"\n").unwrap_or(value));
        }
        header = &header[length..];
    }
    path
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packing::tests::packed;

    /// A package with these files.
    pub(crate) fn package(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut root = tar::Header::new_gnu();
        root.set_entry_type(EntryType::Directory);
        root.set_size(0);
        tar.append_data(&mut root, "./", &[][..]).expect("memory");
        for (path, contents) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("./{path}"), *contents).expect("memory");
        }
        of_data("data.tar.xz", &packed("xz", &tar.into_inner().expect("memory")))
    }

    fn of_data(name: &str, data: &[u8]) -> Vec<u8> {
        let mut package = MAGIC.to_vec();
        for (name, contents) in
            [("debian-binary", &b"2.0\n"[..]), ("control.tar.xz", b"odd"), (name, data)]
        {
            let size = contents.len();
            package.extend(format!("{name:<16}{:<32}{size:<10}`\n", "0").into_bytes());
            package.extend(contents);
            package.extend(vec![b'\n'; size % 2]);
        }
        package
    }

    fn read(package: &[u8]) -> io::Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        read_package::<io::Error>(package, &mut |file| {
            let mut text = String::new();
            file.contents.read_to_string(&mut text)?;
            found.push((file.path.display().to_string(), text));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn the_files_of_a_package_are_shown() {
        let long = format!("lib/modules/{}/a.ko", "long/".repeat(50));
        let files = [("boot/vmlinuz", &b"kernel"[..]), (&long, b"module"), ("etc/x", b"")];
        let found = read(&package(&files)).expect("it is whole");
        let want = files.map(|(path, contents)| {
            (path.to_owned(), String::from_utf8_lossy(contents).into_owned())
        });
        assert_eq!(found, want);
    }

    #[test]
    fn links_and_devices_are_not_shown() {
        let mut tar = tar::Builder::new(Vec::new());
        for kind in [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Fifo] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_link_name("/etc/passwd").expect("short");
            tar.append_data(&mut header, "boot/vmlinuz", &[][..]).expect("memory");
        }
        let package = of_data("data.tar", &tar.into_inner().expect("memory"));
        assert_eq!(read(&package).expect("it is whole"), []);
    }

    #[test]
    fn what_is_no_package_is_an_error() {
        for bytes in [&b""[..], b"!<arch>\n", b"#!/bin/sh\nexit", b"!<arch>\nnot a header at all"] {
            assert!(read(bytes).is_err());
        }
        let long_name = |bytes: usize| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(EntryType::GNULongName);
            header.set_size(bytes as u64);
            header.set_cksum();
            let mut tar = header.as_bytes().to_vec();
            tar.resize(512 + bytes.next_multiple_of(512), b'a');
            tar.extend([0; 1024]);
            of_data("data.tar.zst", &packed("zstd", &tar))
        };
        assert!(read(&long_name(1000)).is_ok());
        assert!(read(&long_name(10 << 20)).is_err());
    }

    #[test]
    fn every_cut_is_an_error_and_no_panic() {
        let whole = package(&[("boot/vmlinuz", b"kernel")]);
        for length in 0..whole.len() - 1 {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn paths_of_pax_headers_are_read() {
        assert_eq!(pax_path(b"12 path=abc\n"), Some(&b"abc"[..]));
        assert_eq!(pax_path(b"11 size=12\n12 path=abc\n"), Some(&b"abc"[..]));
        for bad in [&b"99 path=abc\n"[..], b"path", b" x", b"0 path=a", b"1 path=a"] {
            assert_eq!(pax_path(bad), None);
        }
    }

    proptest! {
        #[test]
        fn no_header_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            let _ = read(&of_data("data.tar", &bytes));
            let _ = pax_path(&bytes);
        }
    }
}
