//! Stdin, read only as far as the command has credit for it.
//!
//! The reader is a thread because a file cannot be waited for otherwise, and because the process
//! can end while it waits for a key. It starts with the command, so that a command that cannot be
//! run takes nothing from a pipe that others read too.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use banger_api::exec::{ClientControl, ClientFrame, MAX_PAYLOAD, STDIN_WINDOW};
use tokio::sync::mpsc;

/// Chunks that wait to be sent: as many as the window holds. The guest gives the credit, so that
/// cannot be what bounds our memory.
const WAITING_CHUNKS: usize = STDIN_WINDOW / MAX_PAYLOAD;

/// What the reader found.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Bytes, at most a frame's payload.
    Bytes(Vec<u8>),
    /// The end.
    Eof,
}

impl Chunk {
    /// The frame that carries it.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => ClientFrame::Stdin(bytes).encode(),
            Self::Eof => ClientFrame::Control(ClientControl::StdinEof).encode(),
        }
    }
}

/// How much may still be read. However much the command says that it takes, it is never more than
/// the window: an honest one gives back what it got.
#[derive(Default)]
struct Credit {
    state: Mutex<CreditState>,
    changed: Condvar,
}

#[derive(Default)]
struct CreditState {
    bytes: usize,
    closed: bool,
}

impl Credit {
    fn add(&self, bytes: usize) {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_add(bytes).min(STDIN_WINDOW);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Waits until there is some; None if there will be none.
    fn wait(&self) -> Option<usize> {
        let waiting = |state: &mut CreditState| state.bytes == 0 && !state.closed;
        let state = self.changed.wait_while(self.lock(), waiting);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        (!state.closed).then_some(state.bytes)
    }

    fn take(&self, bytes: usize) {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_sub(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, CreditState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The near end of the command's stdin.
pub struct Input {
    waiting: Option<Reader>,
    credit: Arc<Credit>,
}

struct Reader {
    stdin: Box<dyn Read + Send>,
    credit: Arc<Credit>,
    chunks: mpsc::Sender<Chunk>,
}

impl Input {
    /// Input that is not read yet.
    pub fn new(stdin: Option<Box<dyn Read + Send>>) -> (Self, mpsc::Receiver<Chunk>) {
        let (chunks, receiver) = mpsc::channel(WAITING_CHUNKS);
        let credit = Arc::new(Credit::default());
        let waiting = stdin.map(|stdin| Reader { stdin, credit: Arc::clone(&credit), chunks });
        (Self { waiting, credit }, receiver)
    }

    /// Begins to read, with the window that every command has.
    pub fn start(&mut self) {
        let Some(reader) = self.waiting.take() else { return };
        self.credit.add(STDIN_WINDOW);
        let spawned =
            std::thread::Builder::new().name("stdin".to_owned()).spawn(move || reader.read());
        // Without a thread there is no input; the closed channel is then its end.
        drop(spawned);
    }

    /// The command has read that much.
    pub fn add_credit(&self, bytes: u32) {
        self.credit.add(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
}

impl Drop for Input {
    /// Nobody waits for the thread; without this it would wait for credit until the process ends.
    fn drop(&mut self) {
        self.credit.close();
    }
}

impl Reader {
    /// Reads to the end, or until nobody wants more.
    fn read(mut self) {
        let mut buffer = vec![0; MAX_PAYLOAD];
        while let Some(credit) = self.credit.wait() {
            let wanted = credit.min(MAX_PAYLOAD);
            let chunk = match self.stdin.read(&mut buffer[..wanted]) {
                // An input that cannot be read (a directory, a terminal that is gone) has ended.
                Ok(0) | Err(_) => Chunk::Eof,
                Ok(count) => {
                    self.credit.take(count);
                    Chunk::Bytes(buffer[..count].to_vec())
                }
            };
            let is_last = chunk == Chunk::Eof;
            if self.chunks.blocking_send(chunk).is_err() || is_last {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_is_read_than_there_is_credit_for() {
        let (mut input, mut chunks) = Input::new(Some(Box::new(std::io::repeat(7))));
        input.start();
        let mut seen = 0;
        while seen < STDIN_WINDOW {
            let Some(Chunk::Bytes(bytes)) = chunks.recv().await else { panic!("it never ends") };
            assert!(bytes.len() <= MAX_PAYLOAD);
            seen += bytes.len();
        }
        assert_eq!(seen, STDIN_WINDOW);
        // The reader waits now; with ten bytes of credit come ten bytes.
        input.add_credit(10);
        assert_eq!(chunks.recv().await, Some(Chunk::Bytes(vec![7; 10])));
        assert!(chunks.try_recv().is_err());
    }

    /// Hostile guest: absurd credit, and nobody who takes what is read.
    #[tokio::test]
    async fn absurd_credit_reads_no_more_than_the_window_ahead() {
        let taken = Arc::new(Mutex::new(0));
        let counting = Counting { taken: Arc::clone(&taken) };
        let (mut input, mut chunks) = Input::new(Some(Box::new(counting)));
        input.start();
        for _ in 0..10 {
            for _ in 0..1000 {
                input.add_credit(u32::MAX);
            }
            assert!(matches!(chunks.recv().await, Some(Chunk::Bytes(_))), "it goes on");
        }
        // What was received, what waits, and one chunk in the reader's hands.
        assert!(*taken.lock().expect("no panics") <= (10 + WAITING_CHUNKS + 1) * MAX_PAYLOAD);
    }

    /// An input without end, which knows how much of it was taken.
    struct Counting {
        taken: Arc<Mutex<usize>>,
    }

    impl Read for Counting {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            *self.taken.lock().expect("no panics") += buffer.len();
            Ok(buffer.len())
        }
    }

    #[tokio::test]
    async fn nothing_is_read_before_the_start() {
        let (mut input, mut chunks) = Input::new(Some(Box::new(&b"abc"[..])));
        assert!(chunks.try_recv().is_err());
        input.start();
        assert_eq!(chunks.recv().await, Some(Chunk::Bytes(b"abc".to_vec())));
        assert_eq!(chunks.recv().await, Some(Chunk::Eof));
        assert_eq!(chunks.recv().await, None);
    }
}
