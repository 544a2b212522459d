//! The members of an image archive, by name.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Fault;
use crate::layer::shown;
use crate::layer::tar::{Entry, EntryKind};

/// Most members of an image archive, and most bytes of their names: some makers add an entry for
/// each layer and directory, nobody one for each file.
const MAX_MEMBERS: usize = 100_000;
const MAX_TEXT: usize = 16 << 20;
/// How many links may lead to a member.
const MAX_HOPS: usize = 8;

/// Where a member of a tar is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    File {
        at: u64,
        bytes: u64,
    },
    /// At another name. Old Dockers save a layer that is there twice as a symbolic link.
    Link(Vec<u8>),
}

/// Where the members of a tar are.
#[derive(Debug, Default)]
pub(super) struct Index {
    places: BTreeMap<Vec<u8>, Place>,
    text: usize,
}

impl Index {
    /// Take in a member whose data begin there.
    pub(super) fn add(&mut self, entry: &Entry, at: u64) -> Result<(), Fault> {
        let place = match &entry.kind {
            EntryKind::File { bytes, chunks: None } => Place::File { at, bytes: *bytes },
            EntryKind::Symlink(target) => {
                let directory = entry.path.rsplitn(2, |byte| *byte == b'/').nth(1);
                Place::Link([directory.unwrap_or_default(), b"/", target].concat())
            }
            EntryKind::HardLink(target) => Place::Link(target.clone()),
            _ => return Ok(()),
        };
        let Some(name) = normal(&entry.path) else { return Ok(()) };
        let place = match place {
            Place::Link(target) => match normal(&target) {
                Some(target) => Place::Link(target),
                None => return Ok(()),
            },
            place => place,
        };
        self.text += entry.path.len();
        if self.places.len() >= MAX_MEMBERS || self.text > MAX_TEXT {
            // It is only looked through because it might be an image.
            return Err("it is neither a root filesystem nor an image".into());
        }
        self.places.insert(name, place);
        Ok(())
    }

    /// Whether these are the members of an image archive.
    pub(super) fn is_image(&self) -> bool {
        let has = |name: &str| self.places.contains_key(name.as_bytes());
        has("manifest.json") || (has("oci-layout") && has("index.json"))
    }
}

/// A name without `.`, `..` and unneeded slashes; None if it leads out of the archive.
fn normal(name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join(&b'/'))
}

/// The members of a tar, or the files of a directory that could be one.
#[derive(Clone)]
pub(super) enum Members {
    Tar { file: Arc<File>, index: Arc<Index> },
    Directory(PathBuf),
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tar { index, .. } => write!(f, "a tar of {} members", index.places.len()),
            Self::Directory(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Members {
    pub(super) fn of_tar(file: File, index: Index) -> Self {
        Self::Tar { file: Arc::new(file), index: Arc::new(index) }
    }

    pub(super) fn of_directory(path: &Path) -> io::Result<Self> {
        Ok(Self::Directory(fs::canonicalize(path)?))
    }

    /// A member and its size; None if there is none of that name.
    pub(super) fn open(&self, name: &str) -> Result<Option<(MemberFile, u64)>, Fault> {
        let Some(name) = normal(name.as_bytes()) else {
            return Err(format!("{} is not in it", shown(name.as_bytes())).into());
        };
        match self {
            Self::Tar { file, index } => {
                let Some((at, bytes)) = find(index, &name) else { return Ok(None) };
                Ok(Some((MemberFile { file: Arc::clone(file), at, left: bytes }, bytes)))
            }
            Self::Directory(root) => open_in(root, &name),
        }
    }

    /// All of a small member.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Fault> {
        let Some((mut file, bytes)) = self.open(name)? else { return Ok(None) };
        if bytes > limit {
            return Err(format!("{} has {bytes} bytes", shown(name.as_bytes())).into());
        }
        let mut contents = Vec::new();
        file.read_to_end(&mut contents)?;
        Ok(Some(contents))
    }
}

fn find(index: &Index, name: &[u8]) -> Option<(u64, u64)> {
    let mut name = name;
    for _ in 0..MAX_HOPS {
        match index.places.get(name)? {
            Place::File { at, bytes } => return Some((*at, *bytes)),
            Place::Link(target) => name = target,
        }
    }
    None
}

/// A file of a directory. It may be reached through links, but not through any that leave it.
fn open_in(root: &Path, name: &[u8]) -> Result<Option<(MemberFile, u64)>, Fault> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(name);
    let path = match fs::canonicalize(root.join(name)) {
        Ok(path) => path,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !path.starts_with(root) {
        return Err(format!("{} is not in it", shown(name.as_bytes())).into());
    }
    let file = File::open(&path)?;
    let kind = file.metadata()?;
    if !kind.is_file() {
        return Err(format!("{} is no file", shown(name.as_bytes())).into());
    }
    let bytes = kind.len();
    Ok(Some((MemberFile { file: Arc::new(file), at: 0, left: bytes }, bytes)))
}

/// The contents of a member.
#[derive(Debug)]
pub(super) struct MemberFile {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for MemberFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..wanted], self.at)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
