//! Reading tar streams that strangers made.
//!
//! Why not the `tar` crate: its extended headers are split at newlines, so a binary value with a
//! newline in it (any file capability may have one) breaks; it knows GNU's old sparse files but none
//! of the three extended ways; and it reads extended headers and long names whole, however large
//! they claim to be. Entries are read here with names as bytes, and everything that is kept in
//! memory has a limit.
//!
//! Where readers of tar differ, this one does as Go's `archive/tar` does, which Docker, containerd
//! and umoci are built on: links, devices and directories have no data whatever their size says, a
//! GNU long name beats an extended header's, two zero blocks or the end of the stream end the
//! archive. It differs in that a global header's owner and time hold for what follows, as POSIX has
//! it, and that empty extended attributes are kept, as GNU tar does.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use banger_ext4::Timestamp;

use super::header::{BLOCK, Header, chunks, sparse_block};
use super::pax::{Pax, Sparse, Xattrs};
use super::sparse::{self, Chunks};

/// Most bytes of an extended header or a long name, as in Go.
const MAX_SPECIAL: u64 = 1 << 20;
/// The times that ext4 can tell with inodes of 256 bytes end here; what was before 1970 was not.
const LAST_SECOND: i64 = (1 << 34) - (1 << 31) - 1;

/// A member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it stands there.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Within what a disk can hold.
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: Xattrs,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A regular file of that many bytes; if there are chunks, the data are theirs, one after the
    /// other, and the rest is zeros.
    File {
        bytes: u64,
        chunks: Option<Chunks>,
    },
    Directory,
    Symlink(Vec<u8>),
    /// Another name of an earlier member, or of something in a lower layer.
    HardLink(Vec<u8>),
    CharacterDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// Why a stream cannot be read as a tar.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    /// Its bytes could not be had.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is not what it should be.
    #[error("{reason}")]
    Malformed {
        /// The member, as far as it is known.
        entry: Option<String>,
        /// What is wrong.
        reason: String,
    },
}

impl TarError {
    fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed { entry: None, reason: reason.into() }
    }
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof => Self::malformed("it ends too early"),
            _ => Self::Read(error),
        }
    }
}

/// Where a tar comes from.
pub(crate) trait Input: Read {
    /// Go over bytes that nobody wants to see.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

/// A stream that can only be read on.
pub(crate) struct Stream<R>(BufReader<R>);

impl<R: Read> Stream<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self(BufReader::with_capacity(128 << 10, stream))
    }
}

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Input for Stream<R> {
    fn skip(&mut self, mut bytes: u64) -> io::Result<()> {
        while bytes > 0 {
            let there = self.0.fill_buf()?.len();
            if there == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let step = usize::try_from(bytes).unwrap_or(usize::MAX).min(there);
            self.0.consume(step);
            bytes -= step as u64;
        }
        Ok(())
    }
}

/// A file, which is not read where nobody wants to see it.
pub(crate) struct Seekable(BufReader<File>);

impl Seekable {
    pub(crate) fn new(file: File) -> Self {
        Self(BufReader::with_capacity(4 * BLOCK, file))
    }
}

impl Read for Seekable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Input for Seekable {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        // Seeking beyond the end is no error; the next header is missing then.
        self.0.seek_relative(i64::try_from(bytes).map_err(io::Error::other)?)
    }
}

/// An archive that is being read.
pub(crate) struct TarReader<I> {
    input: I,
    /// How much has been read or gone over.
    position: u64,
    /// What is left of the current member's data.
    left: u64,
    /// What fills the last block of it.
    padding: u64,
    globals: Pax,
    failure: Option<TarError>,
}

/// What stands before a member and belongs to it.
#[derive(Default)]
struct Preamble {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<I: Input> TarReader<I> {
    pub(crate) fn new(input: I) -> Self {
        let globals = Pax::default();
        Self { input, position: 0, left: 0, padding: 0, globals, failure: None }
    }

    /// The next member; what has not been read of the last one's data is gone over. None at the end
    /// of the archive, and then the stream is read to its end as well.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut preamble = Preamble::default();
        let mut is_first = true;
        loop {
            self.skip(self.left + self.padding)?;
            (self.left, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return if is_first { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into_tar()) };
            };
            is_first = false;
            match header.type_flag() {
                b'x' => preamble.pax = Pax::parse(&self.special(&header)?).map_err(bad)?,
                b'g' => {
                    let global = Pax::parse(&self.special(&header)?).map_err(bad)?;
                    self.globals.add_global(&global);
                }
                b'L' => preamble.long_name = Some(until_zero(self.special(&header)?)),
                b'K' => preamble.long_link = Some(until_zero(self.special(&header)?)),
                _ => return self.member(&header, preamble).map(Some),
            }
        }
    }

    /// The data of the current member, as they are stored.
    pub(crate) fn data(&mut self) -> Data<'_, I> {
        Data(self)
    }

    /// Where the data of the current member begin.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Why reading the data failed, if it did.
    pub(crate) fn take_failure(&mut self) -> Option<TarError> {
        self.failure.take()
    }

    fn skip(&mut self, bytes: u64) -> Result<(), TarError> {
        self.input.skip(bytes)?;
        self.position += bytes;
        Ok(())
    }

    /// The next header; None at the end.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let Some(block) = self.block()? else { return Ok(None) };
        let header = Header::new(block);
        if header.is_zero() {
            return match self.block()? {
                Some(second) if !Header::new(second).is_zero() => Err(not_a_header()),
                _ => self.drain(),
            };
        }
        if header.adds_up() { Ok(Some(header)) } else { Err(not_a_header()) }
    }

    /// A block; None if the stream ends exactly here.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into_tar()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position += BLOCK as u64;
        Ok(Some(block))
    }

    /// Read what follows the end of the archive: it counts for the digest of the stream.
    fn drain(&mut self) -> Result<Option<Header>, TarError> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.input.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The data of a member that is only there for the next one.
    fn special(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = header.size().and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| bad("a bad size of an extended header"))?;
        if size > MAX_SPECIAL {
            return Err(bad(format!("an extended header of {size} bytes")));
        }
        self.expect_data(size);
        let mut bytes = vec![0; usize::try_from(size).expect("it is small")];
        self.input.read_exact(&mut bytes)?;
        self.position += size;
        self.left = 0;
        Ok(bytes)
    }

    fn expect_data(&mut self, bytes: u64) {
        self.left = bytes;
        self.padding = bytes.wrapping_neg() % BLOCK as u64;
    }

    fn member(&mut self, header: &Header, preamble: Preamble) -> Result<Entry, TarError> {
        let Preamble { mut pax, long_name, long_link } = preamble;
        let path = long_name
            .or_else(|| pax.sparse.name.take())
            .or_else(|| pax.path.take())
            .unwrap_or_else(|| header.name());
        let shown = String::from_utf8_lossy(&path).into_owned();
        self.known_member(header, pax, path, long_link).map_err(|error| match error {
            TarError::Malformed { entry: None, reason } => {
                TarError::Malformed { entry: Some(shown), reason }
            }
            other => other,
        })
    }

    fn known_member(
        &mut self,
        header: &Header,
        mut pax: Pax,
        path: Vec<u8>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let link = long_link.or_else(|| pax.linkpath.take()).unwrap_or_else(|| header.link());
        let kind = match header.type_flag() {
            // Before POSIX, this was how directories were told.
            0 if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => self.file(header, &mut pax)?,
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => {
                let (major, minor) = device(header)?;
                EntryKind::CharacterDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = device(header)?;
                EntryKind::BlockDevice { major, minor }
            }
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                return Err(bad(format!("a member of the unknown type {:?}", char::from(other))));
            }
        };
        let mode = header.mode().ok_or_else(|| bad("a bad mode"))? & 0o7777;
        let uid = pax.uid.or(self.globals.uid).or_else(|| header.uid());
        let gid = pax.gid.or(self.globals.gid).or_else(|| header.gid());
        let mtime = pax.mtime.or(self.globals.mtime).or_else(|| {
            let seconds = header.mtime()?;
            let seconds = seconds.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
            Some(Timestamp { seconds: i64::try_from(seconds).ok()?, nanoseconds: 0 })
        });
        Ok(Entry {
            path,
            kind,
            mode: u16::try_from(mode).expect("twelve bits"),
            uid: owner(uid)?,
            gid: owner(gid)?,
            mtime: clamped(mtime.ok_or_else(|| bad("a bad time"))?),
            xattrs: pax.xattrs,
        })
    }

    fn file(&mut self, header: &Header, pax: &mut Pax) -> Result<EntryKind, TarError> {
        let in_header = || header.size().and_then(|size| u64::try_from(size).ok());
        let size = pax.size.or_else(in_header).ok_or_else(|| bad("a bad size"))?;
        // No sum of positions in a stream may overflow.
        if size > 1 << 62 {
            return Err(bad(format!("a file of {size} bytes")));
        }
        if header.type_flag() == b'S' {
            if !header.is_gnu() {
                return Err(bad("a sparse file in a header that is not GNU's"));
            }
            let (bytes, chunks) = self.old_sparse(header)?;
            self.expect_data(size);
            let chunks = Some(sparse::check(chunks, bytes, size).map_err(bad)?);
            return Ok(EntryKind::File { bytes, chunks });
        }
        self.expect_data(size);
        let Sparse { major, minor, size: whole, map, .. } = std::mem::take(&mut pax.sparse);
        let chunks = match (major, minor) {
            (None | Some(0), _) if map.is_empty() && whole.is_none() => {
                return Ok(EntryKind::File { bytes: size, chunks: None });
            }
            (None | Some(0), _) => sparse::pairs(&map).map_err(bad)?,
            (Some(1), Some(0)) => {
                let map = sparse::read_map(&mut self.data());
                map.map_err(|error| self.failure.take().unwrap_or(error.into()))?.map_err(bad)?
            }
            (Some(major), _) => return Err(bad(format!("a sparse file of version {major}"))),
        };
        let bytes = whole.ok_or_else(|| bad("a sparse file without its size"))?;
        let chunks = Some(sparse::check(chunks, bytes, self.left).map_err(bad)?);
        Ok(EntryKind::File { bytes, chunks })
    }

    /// Whole size and map of a sparse file in GNU's old way: in the header and blocks after it.
    fn old_sparse(&mut self, header: &Header) -> Result<(u64, Chunks), TarError> {
        let bytes = header.sparse_size().and_then(|size| u64::try_from(size).ok());
        let bytes = bytes.ok_or_else(|| bad("a bad size of a sparse file"))?;
        let mut map = Chunks::new();
        let mut add = |described: &[u8]| {
            for chunk in chunks(described) {
                let chunk = chunk.ok_or_else(|| bad("a malformed map of a sparse file"))?;
                sparse::push(&mut map, chunk).map_err(bad)?;
            }
            Ok::<_, TarError>(())
        };
        add(header.sparse_chunks())?;
        let mut goes_on = header.sparse_goes_on();
        let mut blocks = 0;
        while goes_on {
            // One with nothing in it adds nothing to the map, whose size is limited.
            blocks += 1;
            let block = self.block()?.ok_or_else(|| ErrorKind::UnexpectedEof.into_tar())?;
            let (described, next) = sparse_block(&block);
            add(described)?;
            if blocks > sparse::MAX_CHUNKS {
                return Err(bad("a malformed map of a sparse file"));
            }
            goes_on = next;
        }
        Ok((bytes, map))
    }
}

/// The data of a member.
pub(crate) struct Data<'a, I>(&'a mut TarReader<I>);

impl<I: Input> Read for Data<'_, I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.0.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        match self.0.input.read(&mut buffer[..wanted]) {
            Ok(0) => {
                self.0.failure = Some(ErrorKind::UnexpectedEof.into_tar());
                Err(ErrorKind::UnexpectedEof.into())
            }
            Ok(count) => {
                self.0.left -= count as u64;
                self.0.position += count as u64;
                Ok(count)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(error) => {
                // Whoever copies from here to somewhere else would not know which side failed.
                let kind = error.kind();
                self.0.failure = Some(error.into());
                Err(kind.into())
            }
        }
    }
}

trait IntoTar {
    fn into_tar(self) -> TarError;
}

impl IntoTar for ErrorKind {
    fn into_tar(self) -> TarError {
        io::Error::from(self).into()
    }
}

fn bad(reason: impl Into<String>) -> TarError {
    TarError::malformed(reason)
}

fn not_a_header() -> TarError {
    bad("it is not a tar archive, or is damaged")
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Major and minor number.
fn device(header: &Header) -> Result<(u32, u32), TarError> {
    let numbers = header.device();
    numbers
        .and_then(|(major, minor)| Some((major.try_into().ok()?, minor.try_into().ok()?)))
        .ok_or_else(|| bad("bad device numbers"))
}

/// An owner that a file can have: the last number means "leave it as it is" to the kernel.
fn owner(number: Option<i128>) -> Result<u32, TarError> {
    let number = number.ok_or_else(|| bad("a bad owner"))?;
    u32::try_from(number)
        .ok()
        .filter(|number| *number != u32::MAX)
        .ok_or_else(|| bad(format!("an owner that no file can have: {number}")))
}

fn clamped(time: Timestamp) -> Timestamp {
    let first = Timestamp { seconds: 0, nanoseconds: 0 };
    let last = Timestamp { seconds: LAST_SECOND, nanoseconds: 999_999_999 };
    time.clamp(first, last)
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
