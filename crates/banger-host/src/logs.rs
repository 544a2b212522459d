//! Logs that cannot fill the disk: a file and its older half.
//!
//! `console.log` grows to half of the cap, then becomes `console.log.1` and a new one begins. So at
//! least half of the cap is always kept, and a reader reads at most two files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Most that a log and its older half take together, unless asked otherwise, in bytes.
pub const DEFAULT_CAP_BYTES: u64 = banger_api::shim::DEFAULT_LOG_BYTES;

/// A log being written.
#[derive(Debug)]
pub struct CappedLog {
    path: PathBuf,
    file: File,
    bytes: u64,
    cap_bytes: u64,
}

impl CappedLog {
    /// Begins a log anew that takes at most `cap_bytes` and one piece of what is written, with its
    /// older half; what was there is gone.
    ///
    /// # Errors
    /// Of the file system.
    pub fn create(path: &Path, cap_bytes: u64) -> io::Result<Self> {
        match std::fs::remove_file(older(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A new file instead of an emptied one: whoever still follows the old log keeps it whole.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self { path: path.to_owned(), file: append(path)?, bytes: 0, cap_bytes })
    }

    /// Adds to the log.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes >= self.cap_bytes / 2 {
            self.file = turn(&self.path)?;
            self.bytes = 0;
        }
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Makes a log the older half, and begins the newer.
fn turn(path: &Path) -> io::Result<File> {
    match std::fs::rename(path, older(path)) {
        // Turned before, when the new file could not be made.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    append(path)
}

/// The standard error of a process whose standard error is a log: capped like the others, however
/// long the process runs and whoever in it writes.
#[derive(Debug, Clone)]
pub struct ErrorLog {
    path: PathBuf,
    cap_bytes: u64,
}

impl ErrorLog {
    /// Writes to standard error; if that is the file `path`, it is turned at half of the cap.
    #[must_use]
    pub fn new(path: PathBuf, cap_bytes: u64) -> Self {
        Self { path, cap_bytes }
    }

    fn turn_if_due(&self) -> io::Result<()> {
        let stderr = io::stderr();
        let now = File::from(stderr.as_fd().try_clone_to_owned()?).metadata()?;
        if !now.is_file() || now.len() < self.cap_bytes / 2 {
            return Ok(());
        }
        let same = std::fs::metadata(&self.path)
            .is_ok_and(|named| (named.dev(), named.ino()) == (now.dev(), now.ino()));
        // Somebody else's file, to which we were redirected, is theirs to keep small.
        if !same {
            return Ok(());
        }
        nix::unistd::dup2_stderr(turn(&self.path)?)?;
        Ok(())
    }
}

impl Write for ErrorLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr().lock();
        // A log that cannot be turned is better than none.
        let _ = self.turn_if_due();
        stderr.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A log being read, from its oldest byte on, while it may still grow.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: Option<File>,
}

impl LogReader {
    /// Opens a log at its beginning, or at the last `tail` lines. One that does not exist yet is
    /// empty.
    ///
    /// # Errors
    /// Of the file system.
    pub fn open(path: &Path, tail: Option<u32>) -> io::Result<Self> {
        let (old, new) = (open(&older(path))?, open(path)?);
        let mut reader = Self { path: path.to_owned(), file: new };
        match tail {
            None => reader.file = old.or(reader.file),
            Some(lines) => reader.seek_to_tail(old, lines)?,
        }
        Ok(reader)
    }

    /// Reads the next bytes; 0 means that there are none now.
    ///
    /// # Errors
    /// Of the file system.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(file) = &mut self.file else {
                self.file = open(&self.path)?;
                if self.file.is_none() {
                    return Ok(0);
                }
                continue;
            };
            let count = file.read(buffer)?;
            if count > 0 || !self.step_to_newer()? {
                return Ok(count);
            }
        }
    }

    /// At the end of a file that has become the older half, goes on with the newer.
    fn step_to_newer(&mut self) -> io::Result<bool> {
        let Some(newer) = open(&self.path)? else { return Ok(false) };
        let current = self.file.as_ref().map(File::metadata).transpose()?;
        let is_current = |file: &File| match (&current, file.metadata()) {
            (Some(current), Ok(found)) => current.ino() == found.ino(),
            _ => false,
        };
        if is_current(&newer) {
            return Ok(false);
        }
        // A reader that is slower than the writer by a turn has the whole older half before it.
        let older = open(&older(&self.path))?.filter(|older| !is_current(older));
        self.file = older.or(Some(newer));
        Ok(true)
    }

    fn seek_to_tail(&mut self, old: Option<File>, lines: u32) -> io::Result<()> {
        let wanted = usize::try_from(lines).unwrap_or(usize::MAX);
        let mut missing = wanted;
        if let Some(file) = &mut self.file {
            missing -= seek_back(file, wanted)?;
        }
        if missing > 0
            && let Some(mut old) = old
        {
            seek_back(&mut old, missing)?;
            self.file = Some(old);
        }
        Ok(())
    }
}

/// Places a file before its last `lines` lines, and tells how many of them it has.
fn seek_back(file: &mut File, lines: usize) -> io::Result<usize> {
    const BLOCK: u64 = 64 * 1024;
    let end = file.seek(SeekFrom::End(0))?;
    let (mut position, mut found) = (end, 0);
    let mut block = Vec::new();
    while position > 0 {
        let start = position.saturating_sub(BLOCK);
        block.resize(usize::try_from(position - start).unwrap_or(0), 0);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        for (offset, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = start + offset as u64 + 1;
            // The newline at the very end closes the last line, it begins none.
            if after == end {
                continue;
            }
            found += 1;
            if found == lines {
                file.seek(SeekFrom::Start(after))?;
                return Ok(found);
            }
        }
        position = start;
    }
    file.seek(SeekFrom::Start(if lines == 0 { end } else { 0 }))?;
    Ok(if end == 0 { 0 } else { (found + 1).min(lines) })
}

/// Text of a guest without what could command a terminal: control characters other than newline and
/// tab go, so do those that change the direction of writing or break lines unseen, and bytes that
/// are no UTF-8 become replacement characters.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| !(c.is_control() || is_invisible(*c)) || matches!(c, '\n' | '\t'))
        .collect()
}

/// Characters that nobody sees and that make what follows look like something else.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// [`printable`] on one line, and of at most `most` characters.
#[must_use]
pub fn printable_line(text: &str, most: usize) -> String {
    let mut line = printable(text.as_bytes()).replace(['\n', '\t'], " ");
    if let Some((end, _)) = line.char_indices().nth(most) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// [`printable`] for text that arrives in pieces, which may cut a character in two.
#[derive(Debug, Default)]
pub struct Printer {
    carry: Vec<u8>,
}

impl Printer {
    /// The printable part of the next piece.
    pub fn next(&mut self, bytes: &[u8]) -> String {
        self.carry.extend_from_slice(bytes);
        let incomplete = match std::str::from_utf8(&self.carry) {
            Err(error) if error.error_len().is_none() => self.carry.len() - error.valid_up_to(),
            // Something invalid further on hides what the end is; the end is then taken as it is.
            _ => 0,
        };
        let rest = self.carry.split_off(self.carry.len() - incomplete);
        printable(&std::mem::replace(&mut self.carry, rest))
    }
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(reader: &mut LogReader) -> String {
        let (mut all, mut buffer) = (Vec::new(), [0; 7]);
        loop {
            match reader.read(&mut buffer).expect("read") {
                0 => return String::from_utf8(all).expect("text"),
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    }

    const CAP: u64 = 64 * 1024;
    /// Set for the child of the next test: its log.
    const LOG: &str = "BANGER_TEST_ERROR_LOG";

    /// "No log grows without bound": not that of a process which complains for ever, whoever in it does.
    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "this program again, with another standard error"
    )]
    fn what_a_process_complains_of_stays_small() {
        if let Some(path) = std::env::var_os(LOG) {
            let mut log = ErrorLog::new(path.into(), CAP);
            for number in 0..8 * CAP / 64 {
                writeln!(log, "{number:>62}").expect("written");
            }
            return;
        }
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("shim.log");
        let stderr = append(&path).expect("made");
        let name = "logs::tests::what_a_process_complains_of_stays_small";
        let status = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", name, "--nocapture"])
            .env(LOG, &path)
            .stdout(std::process::Stdio::null())
            .stderr(stderr)
            .status();
        assert!(status.expect("it runs").success());
        let length = |path: &Path| std::fs::metadata(path).expect("it is there").len();
        let bytes = length(&path) + length(&older(&path));
        assert!((CAP / 2..=CAP + 1024).contains(&bytes), "{bytes} bytes of at most {CAP}");
        let last = format!("{:>62}\n", 8 * CAP / 64 - 1);
        let text = std::fs::read_to_string(&path).expect("text");
        assert!(text.contains(&last), "the newest is there");
    }

    #[test]
    fn a_line_of_a_guest_is_one_line_and_commands_nothing() {
        let cases = [
            ("plain", "plain"),
            ("\u{1b}[2J\u{9b}31mred\u{7}", "[2J31mred"),
            ("a\nerror: b\tc\r", "a error: b c"),
            ("\u{202e}gnp.exe\u{2066}\u{200b}\u{feff}", "gnp.exe"),
            ("01234567890123456789", "01234567890123456789"),
            ("éééééééééééééééééééééééé", "éééééééééééééééééééé…"),
        ];
        for (text, want) in cases {
            assert_eq!(printable_line(text, 20), want, "{text:?}");
        }
    }

    #[test]
    fn a_flood_keeps_its_end_and_stays_under_the_cap() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("console.log");
        let mut log = CappedLog::create(&path, DEFAULT_CAP_BYTES).expect("create");
        let line = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            log.write(&line).expect("write");
        }
        log.write(b"\nlast line\n").expect("write");
        assert!(
            crate::files::allocated_bytes(dir.path()).expect("measure")
                <= DEFAULT_CAP_BYTES + 65536
        );
        let mut reader = LogReader::open(&path, Some(1)).expect("open");
        assert_eq!(read_all(&mut reader), "last line\n");
    }

    #[test]
    fn tails_are_counted_in_lines_and_across_the_halves() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("main.log");
        std::fs::write(older(&path), "one\ntwo\n").expect("write");
        std::fs::write(&path, "three\nfour").expect("write");
        let cases = [
            (Some(0), ""),
            (Some(1), "four"),
            (Some(2), "three\nfour"),
            (Some(3), "two\nthree\nfour"),
            (Some(9), "one\ntwo\nthree\nfour"),
            (None, "one\ntwo\nthree\nfour"),
        ];
        for (tail, want) in cases {
            let mut reader = LogReader::open(&path, tail).expect("open");
            assert_eq!(read_all(&mut reader), want, "tail {tail:?}");
        }
    }

    #[test]
    fn a_follower_sees_what_comes_also_across_a_turn() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("main.log");
        let mut reader = LogReader::open(&path, None).expect("open before it exists");
        assert_eq!(read_all(&mut reader), "");
        let mut log = CappedLog::create(&path, 4).expect("create");
        log.write(b"a\n").expect("write");
        assert_eq!(read_all(&mut reader), "a\n");
        log.write(b"b\n").expect("write");
        assert_eq!(read_all(&mut reader), "b\n");
        log.write(b"c\n").expect("write");
        log.write(b"d\n").expect("write");
        assert_eq!(read_all(&mut reader), "c\nd\n", "two turns behind, nothing is left out");
    }

    #[test]
    fn any_cap_holds_whatever_is_written() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("console.log");
        for (cap, piece) in [(1 << 16, 100), (1 << 16, 16_384), (1 << 20, 4096)] {
            let mut log = CappedLog::create(&path, cap).expect("create");
            for _ in 0..(3 * cap / piece) {
                log.write(&vec![b'x'; usize::try_from(piece).expect("small")]).expect("write");
                let length = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
                let both = length(&path) + length(&older(&path));
                assert!(both <= cap + 2 * piece, "{both} bytes with a cap of {cap}");
            }
        }
    }

    #[test]
    fn a_guest_cannot_command_the_terminal() {
        let mut printer = Printer::default();
        assert_eq!(printer.next(b"a\xc2"), "a");
        assert_eq!(printer.next(b"\x9b2J\xc3\xa9"), "2J\u{e9}");
        assert_eq!(printable(b"\x1b[2Jred\x07\ttab\r\n\xff"), "[2Jred\ttab\n\u{fffd}");
    }
}
