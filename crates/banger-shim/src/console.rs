//! What the guest's console and the VMM say: all of it goes to capped logs, the end is remembered.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use banger_host::logs::{CappedLog, printable};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// How many lines are remembered.
const TAIL_LINES: usize = 8;
/// How many of them, when the guest's kernel panics, are from before.
const LINES_BEFORE_PANIC: usize = 2;
/// A line longer than this is cut, in bytes.
const MAX_LINE: usize = 1024;
/// Most of another log that one begins with, in bytes.
const MAX_BEGINNING: u64 = 1 << 20;
/// What the kernel says when it panics.
const PANIC: &str = "Kernel panic - not syncing";
/// What the kernel says when it goes on without a timer.
const NO_TIMER: &str = "APIC frequency too slow, disabling apic timer";

/// The last lines of a stream.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    lines: VecDeque<String>,
    partial: Vec<u8>,
    panic: Option<String>,
    no_timer: bool,
}

impl Tail {
    /// The last lines, oldest first.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }

    /// What the kernel said when it panicked.
    pub(crate) fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.close_line();
            } else if self.partial.len() < MAX_LINE {
                self.partial.push(byte);
            }
        }
    }

    fn close_line(&mut self) {
        let line = printable(&std::mem::take(&mut self.partial));
        banger_host::fault::guest_said(&line);
        self.no_timer |= line.contains(NO_TIMER);
        if self.panic.is_some() && self.lines.len() == TAIL_LINES {
            // What follows a panic is its stack; how it began matters more.
            return;
        }
        if let (Some(start), None) = (line.find(PANIC), &self.panic) {
            let rest = line[start + PANIC.len()..].trim_start_matches([':', ' ']);
            self.panic = Some(rest.to_owned());
            self.lines.drain(..self.lines.len().saturating_sub(LINES_BEFORE_PANIC));
        }
        if self.lines.len() == TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

/// A stream that is being recorded.
#[derive(Debug)]
pub(crate) struct Recording {
    tail: Arc<Mutex<Tail>>,
    no_timer: Arc<Notify>,
    reading: JoinHandle<()>,
}

impl Recording {
    /// Reads a pipe into `log` until its end.
    pub(crate) fn start(pipe: OwnedFd, log: Log) -> std::io::Result<Self> {
        let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
        let tail = Arc::new(Mutex::new(Tail::default()));
        let no_timer = Arc::new(Notify::new());
        let (filling, noticed) = (Arc::clone(&tail), Arc::clone(&no_timer));
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; 16 * 1024];
            // A log that cannot be written must not stop the guest, so it is read on regardless.
            while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
                lock(&filling).add(&buffer[..count]);
                if lock(&filling).no_timer {
                    noticed.notify_one();
                }
                if let Err(error) = lock(&log).write(&buffer[..count]) {
                    tracing::debug!(%error, "cannot write a log");
                }
            }
            if !lock(&filling).partial.is_empty() {
                lock(&filling).close_line();
            }
        });
        Ok(Self { tail, no_timer, reading })
    }

    /// Waits until the kernel says that it has no timer: it will hang.
    pub(crate) async fn lost_its_timer(&self) {
        self.no_timer.notified().await;
    }

    /// Waits for the stream's end, which comes with the VMM's.
    pub(crate) async fn finish(self) -> Tail {
        // Its only failure would be a panic, after which the tail is what it is.
        let _ = self.reading.await;
        std::mem::take(&mut *lock(&self.tail))
    }
}

/// A log that one recording after the other goes to: a guest that reboots has several.
pub(crate) type Log = Arc<Mutex<CappedLog>>;

/// Begins a log in the VM's directory.
pub(crate) fn new_log(vm_dir: &Path, name: &str, cap_bytes: u64) -> std::io::Result<Log> {
    Ok(Arc::new(Mutex::new(CappedLog::create(&vm_dir.join(name), cap_bytes)?)))
}

/// Begins a log with what is in another, as far as that can be read.
pub(crate) fn begin_with(log: &Log, other: &Path) {
    let copied = File::open(other).and_then(|other| {
        let mut text = Vec::new();
        other.take(MAX_BEGINNING).read_to_end(&mut text)?;
        lock(log).write(&text)
    });
    if let Err(error) = copied {
        tracing::debug!(%error, "the console does not begin with that of the template");
    }
}

/// A stream is read by one task of a single-threaded runtime: a poisoned lock cannot occur
/// without the abort that a panic is here.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn a_panic_is_found_and_the_last_lines_are_kept() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.add(format!("line {number}\r\n").as_bytes());
        }
        tail.add(b"[    1.2] Kernel panic - not syncing: VFS: Unable ");
        tail.add(b"to mount root fs\r\n[    1.3] Kernel panic - not syncing: second\n");
        assert_eq!(tail.panic(), Some("VFS: Unable to mount root fs"));
        assert_eq!(tail.lines()[0], "line 98");
        tail.add(b"a stack\n".repeat(50).as_slice());
        assert_eq!(tail.lines()[0], "line 98");
        assert_eq!(tail.lines().len(), TAIL_LINES);
    }

    #[tokio::test]
    async fn a_kernel_without_a_timer_is_noticed_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = new_log(dir.path(), "console.log", 1 << 20).expect("a log");
        let (mut said, read) = pipe::pipe().expect("a pipe");
        let read = read.into_nonblocking_fd().expect("our own pipe");
        let console = Recording::start(read, log).expect("recorded");
        for words in ["[    0.2] APIC frequency too slow", ", disabling apic timer\r\n"] {
            said.write_all(words.as_bytes()).await.expect("somebody reads");
        }
        let noticed = console.lost_its_timer();
        tokio::time::timeout(std::time::Duration::from_secs(10), noticed).await.expect("noticed");
    }

    #[test]
    fn an_endless_line_takes_bounded_memory() {
        let mut tail = Tail::default();
        tail.add(&vec![b'x'; 10 << 20]);
        tail.add(b"\n");
        assert_eq!(tail.lines()[0].len(), MAX_LINE);
    }
}
