//! The logs of a VM, read from its directory: the older half, then the newer.
//!
//! Memory is bounded whatever the guest wrote: files are read in pieces, and the reader waits for
//! whoever reads the answer.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use banger_api::shim::{CONSOLE_FILE, MAIN_LOG_FILE};
use banger_api::vm::LogSource;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::daemon::{failed, lengthy};

/// How much is read at once.
const PIECE: usize = 32 * 1024;
/// How many pieces wait for a slow reader.
const PIECES: usize = 4;
/// Most bytes of a `tail`, whatever the number of lines.
const MAX_TAIL: usize = 8 * 1024 * 1024;

/// A log, piece by piece.
#[must_use]
pub fn read(
    vm_dir: &Path,
    source: LogSource,
    tail: Option<u32>,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (pieces, receiver) = mpsc::channel(PIECES);
    let files = files(vm_dir, source);
    tokio::spawn(async move {
        let (clean, sender) = (source == LogSource::Console, pieces.clone());
        let sent = lengthy(move || {
            let outcome = match tail {
                None => send_all(&files, clean, &sender),
                Some(lines) => send_tail(&files, clean, lines, &sender),
            };
            outcome.map_err(|error| failed("cannot read the log", &error))
        });
        if let Err(problem) = sent.await {
            // Nobody may be reading any more.
            let _ = pieces.send(Err(io::Error::other(problem))).await;
        }
    });
    receiver
}

fn files(vm_dir: &Path, source: LogSource) -> [PathBuf; 2] {
    let name = match source {
        LogSource::Main => MAIN_LOG_FILE,
        LogSource::Console => CONSOLE_FILE,
    };
    [vm_dir.join(format!("{name}.1")), vm_dir.join(name)]
}

type Pieces = mpsc::Sender<io::Result<Bytes>>;

fn send_all(files: &[PathBuf], clean: bool, pieces: &Pieces) -> io::Result<()> {
    each_piece(files, clean, |piece| pieces.blocking_send(Ok(piece.into())).is_ok())
}

fn send_tail(files: &[PathBuf], clean: bool, lines: u32, pieces: &Pieces) -> io::Result<()> {
    let mut tail = Tail::new(usize::try_from(lines).unwrap_or(usize::MAX));
    each_piece(files, clean, |piece| {
        tail.add(&piece);
        true
    })?;
    let text: Vec<u8> = tail.bytes.into();
    for piece in text.chunks(PIECE) {
        if pieces.blocking_send(Ok(Bytes::copy_from_slice(piece))).is_err() {
            break;
        }
    }
    Ok(())
}

fn each_piece(
    files: &[PathBuf],
    clean: bool,
    mut take: impl FnMut(Vec<u8>) -> bool,
) -> io::Result<()> {
    let mut cleaner = Cleaner::default();
    let mut buffer = vec![0; PIECE];
    for path in files {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        loop {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            let raw = &buffer[..length];
            let piece = if clean { cleaner.clean(raw) } else { raw.to_vec() };
            if !piece.is_empty() && !take(piece) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The last lines of what was added.
#[derive(Debug)]
struct Tail {
    lines: usize,
    bytes: VecDeque<u8>,
    /// Line feeds in `bytes`.
    feeds: usize,
}

impl Tail {
    fn new(lines: usize) -> Self {
        Self { lines, bytes: VecDeque::new(), feeds: 0 }
    }

    fn add(&mut self, piece: &[u8]) {
        for byte in piece {
            self.bytes.push_back(*byte);
            self.feeds += usize::from(*byte == b'\n');
            while self.is_too_long() {
                let first = self.bytes.pop_front();
                self.feeds -= usize::from(first == Some(b'\n'));
            }
        }
    }

    fn is_too_long(&self) -> bool {
        // A text that does not end in a line feed has one line more.
        let unfinished = usize::from(self.bytes.back().is_some_and(|byte| *byte != b'\n'));
        self.feeds + unfinished > self.lines || self.bytes.len() > MAX_TAIL
    }
}

/// Takes terminal control out of a stream of bytes: escape sequences and every control character
/// but tab and line feed. Works across pieces.
#[derive(Debug, Default)]
struct Cleaner {
    state: Sequence,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Sequence {
    #[default]
    None,
    /// After ESC.
    Begun,
    /// After ESC [: ends with a byte from 0x40 to 0x7e.
    Control,
    /// After ESC ], P, X, ^ or _: ends with BEL or ESC \.
    Text,
    /// After the first byte of a two-byte C1 control character.
    C1,
}

impl Cleaner {
    fn clean(&mut self, raw: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(raw.len());
        for byte in raw {
            self.step(*byte, &mut out);
        }
        out
    }

    fn step(&mut self, byte: u8, out: &mut Vec<u8>) {
        let (next, keep) = match (self.state, byte) {
            // A line feed ends whatever a broken guest began, so that no line is lost.
            (_, b'\n') => (Sequence::None, true),
            (_, 0x1b) => (Sequence::Begun, false),
            (Sequence::Begun, b'[') => (Sequence::Control, false),
            (Sequence::Begun, b']' | b'P' | b'X' | b'^' | b'_') => (Sequence::Text, false),
            (Sequence::Begun, 0x20..=0x2f) => (Sequence::Begun, false),
            (Sequence::Begun, _) => (Sequence::None, false),
            (Sequence::Control, 0x40..=0x7e) => (Sequence::None, false),
            (Sequence::Control, _) => (Sequence::Control, false),
            (Sequence::Text, 0x07) => (Sequence::None, false),
            (Sequence::Text, _) => (Sequence::Text, false),
            (Sequence::C1, 0x80..=0x9f) => (Sequence::None, false),
            (Sequence::None, 0xc2) => (Sequence::C1, false),
            (Sequence::C1, 0xc2) => (Sequence::C1, false),
            (_, b'\t') => (Sequence::None, true),
            (_, 0x00..=0x1f | 0x7f) => (Sequence::None, false),
            (_, _) => (Sequence::None, true),
        };
        // The first byte of a two-byte character that is no control character after all.
        if self.state == Sequence::C1 && (keep || byte == 0xc2) {
            out.push(0xc2);
        }
        self.state = next;
        if keep {
            out.push(byte);
        }
    }
}

/// A line without anything that a terminal would obey.
#[must_use]
pub fn printable(line: &str) -> String {
    let clean = Cleaner::default().clean(line.as_bytes());
    String::from_utf8_lossy(&clean).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn text(mut pieces: mpsc::Receiver<io::Result<Bytes>>) -> String {
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.recv().await {
            bytes.extend(piece.expect("readable"));
        }
        String::from_utf8(bytes).expect("text")
    }

    fn vm_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("console.log.1"), "one\ntwo\x1b[3").expect("write");
        std::fs::write(dir.path().join("console.log"), "1mred\x1b[0m\r\nthree\nfour")
            .expect("write");
        std::fs::write(dir.path().join("main.log"), "\x1b[1mmain\n").expect("write");
        dir
    }

    #[tokio::test]
    async fn both_halves_come_clean() {
        let dir = vm_dir();
        let console = read(dir.path(), LogSource::Console, None);
        assert_eq!(text(console).await, "one\ntwored\nthree\nfour");
        let main = read(dir.path(), LogSource::Main, None);
        assert_eq!(text(main).await, "\x1b[1mmain\n", "what the user's own command wrote stays");
    }

    #[tokio::test]
    async fn a_tail_is_the_last_lines() {
        let dir = vm_dir();
        for (lines, want) in
            [(0, ""), (1, "four"), (2, "three\nfour"), (9, "one\ntwored\nthree\nfour")]
        {
            let found = text(read(dir.path(), LogSource::Console, Some(lines))).await;
            assert_eq!(found, want, "{lines}");
        }
    }

    #[tokio::test]
    async fn no_log_is_empty() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(text(read(dir.path(), LogSource::Main, None)).await, "");
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        let cases = [
            ("plain\ttext é 漢", "plain\ttext é 漢"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("\x1b]0;title\x07after", "after"),
            ("\x1b]0;title\x1b\\after", "after"),
            ("\x1bPq\x1b\\after", "after"),
            ("a\x1b(Bb\x1bcc", "abc"),
            ("a\u{9b}31mb", "a31mb"),
            ("\u{a0}x\u{c2}", "\u{a0}x\u{c2}"),
            ("bell\x07 back\x08 null\0 del\x7f cr\r", "bell back null del cr"),
            ("\x1b[999\nnext", "\nnext"),
        ];
        for (raw, want) in cases {
            assert_eq!(printable(raw), want, "{raw:?}");
        }
    }
}
