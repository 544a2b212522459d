//! What kind of file it is.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;

use banger_host::command::Cancel;

use super::Fault;
use super::members::{Index, Members};
use crate::error::PullError;
use crate::layer::compression::{Compression, decompress};
use crate::layer::tar::{EntryKind, Input, Seekable, Stream, TarError, TarReader};

/// Most bytes of an archive without its compression.
const MAX_BYTES: u64 = 128 << 30;
/// What is at the top of a root filesystem, and never of an image archive.
const ROOT_DIRECTORIES: [&[u8]; 20] = [
    b"bin", b"boot", b"dev", b"etc", b"home", b"lib", b"lib64", b"media", b"mnt", b"nix", b"opt",
    b"proc", b"root", b"run", b"sbin", b"srv", b"sys", b"tmp", b"usr", b"var",
];
/// Where a disk says that it is ext2, 3 or 4, and what.
const EXT4_MAGIC: (usize, &[u8]) = (1080, &[0x53, 0xef]);
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");

/// Files that people try, where they begin with what, and what to do about it.
const OTHERS: [(usize, &[u8], &str); 6] = [
    (
        0,
        b"QFI\xfb",
        "it is a qcow2 disk: convert it with qemu-img convert -O raw, and take its root partition",
    ),
    (
        512,
        b"EFI PART",
        "it is a disk with partitions: banger takes the ext4 file system of one of them",
    ),
    (
        510,
        b"\x55\xaa",
        "it is a disk with partitions: banger takes the ext4 file system of one of them",
    ),
    (0, b"hsqs", "it is a squashfs: unpack it with unsquashfs, and register the directory"),
    (0, b"PK\x03\x04", "it is a zip archive: pack the files with tar instead"),
    (0, b"!<arch>\n", "it is a Debian package or another ar archive, and no root filesystem"),
];

/// What something turned out to be.
pub(super) enum Seen {
    Ext4,
    Tar,
    Directory,
    Image(Members),
}

/// Look at a file or a directory.
pub(super) fn look(path: &Path, work: &Path, cancel: &Cancel) -> Result<Seen, PullError> {
    let failed = |error| PullError::io("read", path)(error);
    if fs::metadata(path).map_err(failed)?.is_dir() {
        return look_at_directory(path).map_err(failed);
    }
    let file = File::open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?;
    if !kind.is_file() {
        return Err(PullError::invalid(path.display().to_string(), "it is no regular file"));
    }
    let mut beginning = [0; 2048];
    let filled = read_beginning(&file, &mut beginning).map_err(failed)?;
    let beginning = &beginning[..filled];
    let invalid = |reason: &str| PullError::invalid(path.display().to_string(), reason);
    let compression = Compression::of(beginning).map_err(|error| invalid(&error.to_string()))?;
    // In what is compressed, or is a tar, anything may be anywhere.
    if compression == Compression::None && !begins(beginning, TAR_MAGIC.0, TAR_MAGIC.1) {
        if begins(beginning, EXT4_MAGIC.0, EXT4_MAGIC.1) {
            return Ok(Seen::Ext4);
        }
        let other = OTHERS.iter().find(|(at, magic, _)| begins(beginning, *at, magic));
        if let Some((.., what)) = other {
            return Err(invalid(what));
        }
    }
    let looked = look_at_tar(file, compression, work, cancel);
    if cancel.is_cancelled() {
        return Err(PullError::Cancelled);
    }
    looked.map_err(|fault| fault.of(path))
}

fn begins(beginning: &[u8], at: usize, magic: &[u8]) -> bool {
    beginning.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

fn read_beginning(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn look_at_directory(path: &Path) -> io::Result<Seen> {
    let names: Vec<Vec<u8>> = fs::read_dir(path)?
        .take(1000)
        .map(|entry| Ok(entry?.file_name().into_encoded_bytes()))
        .collect::<io::Result<_>>()?;
    let has = |name: &[u8]| names.iter().any(|other| other == name);
    let is_root = ROOT_DIRECTORIES.iter().any(|name| has(name));
    let is_image = has(b"manifest.json") || (has(b"oci-layout") && has(b"index.json"));
    match is_image && !is_root {
        true => Ok(Seen::Image(Members::of_directory(path)?)),
        false => Ok(Seen::Directory),
    }
}

fn look_at_tar(
    mut file: File,
    compression: Compression,
    work: &Path,
    cancel: &Cancel,
) -> Result<Seen, Fault> {
    if compression == Compression::None {
        let index = scan(Seekable::new(file.try_clone()?), cancel)?;
        return Ok(index.map_or(Seen::Tar, |index| Seen::Image(Members::of_tar(file, index))));
    }
    let (_, stream) = decompress(file.try_clone()?)?;
    let Some(index) = scan(Stream::new(stream.take(MAX_BYTES)), cancel)? else {
        return Ok(Seen::Tar);
    };
    file.rewind()?;
    let (_, stream) = decompress(file)?;
    let plain = unpack(stream, &work.join("archive.tar"), cancel)?;
    Ok(Seen::Image(Members::of_tar(plain, index)))
}

/// Where the members of an image archive are; None if it is a root filesystem, which shows at once
/// mostly.
fn scan<I: Input>(input: I, cancel: &Cancel) -> Result<Option<Index>, Fault> {
    let mut reader = TarReader::new(input);
    let mut index = Index::default();
    let mut is_empty = true;
    while let Some(entry) = reader.next_entry().map_err(fault)? {
        if cancel.is_cancelled() {
            return Err("it was called off".into());
        }
        is_empty = false;
        let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let top = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        let has_directory = path.len() > top.len() || entry.kind == EntryKind::Directory;
        if has_directory && ROOT_DIRECTORIES.contains(&top) {
            return Ok(None);
        }
        index.add(&entry, reader.position())?;
    }
    if is_empty {
        return Err("there is nothing in it".into());
    }
    Ok(index.is_image().then_some(index))
}

fn fault(error: TarError) -> Fault {
    match error {
        TarError::Malformed { reason, .. } => Fault::Invalid(reason),
        TarError::Read(error) if error.kind() == ErrorKind::InvalidData => {
            Fault::Invalid(error.to_string())
        }
        TarError::Read(error) => Fault::Read(error),
    }
}

/// Take the compression off an archive.
fn unpack(stream: impl Read, path: &Path, cancel: &Cancel) -> Result<File, Fault> {
    let mut plain = File::options().read(true).write(true).create_new(true).open(path)?;
    let mut stream = stream.take(MAX_BYTES);
    loop {
        if cancel.is_cancelled() {
            return Err("it was called off".into());
        }
        if io::copy(&mut stream.by_ref().take(1 << 20), &mut plain)? == 0 {
            break;
        }
    }
    if stream.limit() == 0 {
        return Err(format!("it unpacks to more than {} GiB", MAX_BYTES >> 30).into());
    }
    plain.rewind()?;
    Ok(plain)
}
