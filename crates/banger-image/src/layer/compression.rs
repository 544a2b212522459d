//! Taking the compression off a layer.
//!
//! What a layer is compressed with, its first bytes say. Registries and archives say it too, as a
//! media type, and are wrong often enough that everybody looks.

use std::io::{self, BufReader, Cursor, ErrorKind, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use flate2::bufread::MultiGzDecoder;

/// How much of a file is read at once.
const BUFFER: usize = 128 << 10;
/// Largest window of a zstd stream, as a power of two: it is memory that the stream makes us take.
/// zstd itself makes no larger ones unless it is told to.
const ZSTD_WINDOW_LOG: u32 = 27;
/// How much a thread that works ahead has ready at most, in pieces of that many bytes.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// Beginnings of what is not supported.
const UNSUPPORTED: [(&[u8], &str); 4] =
    [(b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"), (b"\x04\x22\x4d\x18", "lz4"), (b"LZIP", "lzip")];

/// What a stream is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// What the first bytes of a stream say.
    ///
    /// # Errors
    /// It is one that is not supported.
    pub(crate) fn of(magic: &[u8]) -> io::Result<Self> {
        match magic {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A frame, or one to be skipped.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            _ => match UNSUPPORTED.iter().find(|(sign, _)| magic.starts_with(sign)) {
                None => Ok(Self::None),
                Some((_, name)) => {
                    let reason = format!(
                        "it is compressed with {name}, which banger does not read: recompress it \
                         with gzip or zstd"
                    );
                    Err(io::Error::new(ErrorKind::Unsupported, reason))
                }
            },
        }
    }
}

/// A stream without its compression, if it has any.
///
/// # Errors
/// It cannot be read, or is compressed in a way that is not supported. Reading the stream itself
/// gives [`ErrorKind::InvalidData`] for damage.
pub(crate) fn decompress<'a>(
    mut input: impl Read + Send + 'a,
) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let mut magic = Vec::new();
    input.by_ref().take(6).read_to_end(&mut magic)?;
    let compression = Compression::of(&magic)?;
    let whole = BufReader::with_capacity(BUFFER, Cursor::new(magic).chain(input));
    let stream: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(Decoded(MultiGzDecoder::new(whole))),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(Decoded(decoder))
        }
    };
    Ok((compression, stream))
}

/// A decoder, whose own complaints are told from those of what it reads.
struct Decoded<R>(R);

impl<R: Read> Read for Decoded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::Other
                if error.raw_os_error().is_none() =>
            {
                io::Error::new(ErrorKind::InvalidData, format!("it is damaged: {error}"))
            }
            _ => error,
        })
    }
}

/// A stream that a thread of `scope` reads ahead of whoever reads this: decompressing and writing
/// then go on at the same time.
pub(crate) fn ahead<'scope>(
    scope: &'scope Scope<'scope, '_>,
    mut stream: impl Read + Send + 'scope,
) -> Ahead {
    let (full, pieces) = sync_channel(PIECES);
    let (used, empty) = sync_channel(PIECES);
    scope.spawn(move || {
        loop {
            let mut piece: Vec<u8> = empty.try_recv().unwrap_or_default();
            piece.clear();
            let read = stream.by_ref().take(PIECE as u64).read_to_end(&mut piece);
            let piece = match read {
                Ok(0) => return,
                Ok(_) => Ok(piece),
                // What came before a failure is of no use.
                Err(error) => Err(error),
            };
            let is_last = piece.is_err();
            // Nobody reads any more.
            if full.send(piece).is_err() || is_last {
                return;
            }
        }
    });
    Ahead { pieces, used, piece: Vec::new(), at: 0 }
}

/// See [`ahead`].
pub(crate) struct Ahead {
    pieces: Receiver<io::Result<Vec<u8>>>,
    used: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            let Ok(piece) = self.pieces.recv() else { return Ok(0) };
            let old = std::mem::replace(&mut self.piece, piece?);
            self.at = 0;
            // The thread may be at its end.
            let _ = self.used.try_send(old);
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("into memory");
        encoder.finish().expect("into memory")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).expect("into memory")
    }

    fn read(bytes: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let (compression, mut stream) = decompress(bytes)?;
        let mut plain = Vec::new();
        stream.read_to_end(&mut plain)?;
        Ok((compression, plain))
    }

    fn failure(bytes: &[u8]) -> Option<ErrorKind> {
        read(bytes).err().map(|error| error.kind())
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        let skippable = b"\x53\x2a\x4d\x18\x04\0\0\0skip";
        let cases = [
            (b"plain".to_vec(), Compression::None, &b"plain"[..]),
            (vec![], Compression::None, b""),
            (gzip(b"one"), Compression::Gzip, b"one"),
            ([gzip(b"one"), gzip(b""), gzip(b"two")].concat(), Compression::Gzip, b"onetwo"),
            (zstd(b"one"), Compression::Zstd, b"one"),
            ([zstd(b"one"), zstd(b"two")].concat(), Compression::Zstd, b"onetwo"),
            ([skippable, &zstd(b"one")[..]].concat(), Compression::Zstd, b"one"),
            ([&zstd(b"one")[..], skippable].concat(), Compression::Zstd, b"one"),
        ];
        for (bytes, compression, plain) in cases {
            assert_eq!(read(&bytes).expect("it is whole"), (compression, plain.to_vec()));
        }
    }

    #[test]
    fn damage_is_no_end() {
        let text: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for whole in [gzip(&text), zstd(&text)] {
            for cut in [7, whole.len() / 2, whole.len() - 1] {
                assert_eq!(failure(&whole[..cut]), Some(ErrorKind::UnexpectedEof), "{cut}");
            }
            let mut damaged = whole.clone();
            damaged[4..24].fill(0xff);
            assert_eq!(failure(&damaged), Some(ErrorKind::InvalidData));
        }
        let trailing = [gzip(b"one"), b"garbage".to_vec()].concat();
        assert!(failure(&trailing).is_some());
    }

    #[test]
    fn a_window_that_takes_much_memory_is_refused() {
        // A frame of nothing, with a window of two to that power.
        let frame = |power: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, (power - 10) << 3, 1, 0, 0];
        assert_eq!(read(&frame(27)).expect("it is whole"), (Compression::Zstd, vec![]));
        assert_eq!(failure(&frame(28)), Some(ErrorKind::InvalidData));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let error = read(b"\xfd7zXZ\0whatever").expect_err("xz");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("xz"), "{error}");
    }

    #[test]
    fn reading_ahead_changes_nothing() {
        let text: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
        let read = std::thread::scope(|scope| {
            let mut read = Vec::new();
            ahead(scope, &text[..]).read_to_end(&mut read).expect("it is memory");
            read
        });
        assert!(read == text);
        // One that nobody reads to its end stops.
        std::thread::scope(|scope| drop(ahead(scope, io::repeat(1))));
        let failed = std::thread::scope(|scope| {
            let cut = gzip(&text);
            let (_, stream) = decompress(Cursor::new(cut[..cut.len() / 2].to_vec())).expect("gzip");
            io::copy(&mut ahead(scope, stream), &mut io::sink()).map_err(|error| error.kind())
        });
        assert_eq!(failed, Err(ErrorKind::UnexpectedEof));
    }
}
