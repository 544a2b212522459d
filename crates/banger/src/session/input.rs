//! Stdin, read only as far as the command has credit for it.
//!
//! The reader is a thread because a file cannot be waited for otherwise, and because the process
//! can end while it waits for a key. It starts with the command, so that a command that cannot be
//! run takes nothing from a pipe that others read too.

use std::io::Read;
use std::sync::mpsc as blocking;

use banger_api::exec::{ClientControl, ClientFrame, MAX_PAYLOAD, STDIN_WINDOW};
use tokio::sync::mpsc;

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

/// The near end of the command's stdin.
pub struct Input {
    waiting: Option<Reader>,
    credit: blocking::Sender<usize>,
}

struct Reader {
    stdin: Box<dyn Read + Send>,
    credit: blocking::Receiver<usize>,
    chunks: mpsc::UnboundedSender<Chunk>,
}

impl Input {
    /// Input that is not read yet. The channel is bounded by the credit.
    pub fn new(stdin: Option<Box<dyn Read + Send>>) -> (Self, mpsc::UnboundedReceiver<Chunk>) {
        let (chunks, receiver) = mpsc::unbounded_channel();
        let (credit, credits) = blocking::channel();
        let waiting = stdin.map(|stdin| Reader { stdin, credit: credits, chunks });
        (Self { waiting, credit }, receiver)
    }

    /// Begins to read, with the window that every command has.
    pub fn start(&mut self) {
        let Some(reader) = self.waiting.take() else { return };
        self.add_credit(u32::try_from(STDIN_WINDOW).unwrap_or(u32::MAX));
        let spawned =
            std::thread::Builder::new().name("stdin".to_owned()).spawn(move || reader.read());
        // Without a thread there is no input; the closed channel is then its end.
        drop(spawned);
    }

    /// The command has read that much.
    pub fn add_credit(&self, bytes: u32) {
        let _ = self.credit.send(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
}

impl Reader {
    /// Reads to the end, or until nobody wants more.
    fn read(mut self) {
        let mut buffer = vec![0; MAX_PAYLOAD];
        let mut credit: usize = 0;
        loop {
            while credit == 0 {
                let Ok(more) = self.credit.recv() else { return };
                credit = credit.saturating_add(more);
            }
            let wanted = credit.min(MAX_PAYLOAD);
            let chunk = match self.stdin.read(&mut buffer[..wanted]) {
                // An input that cannot be read (a directory, a terminal that is gone) has ended.
                Ok(0) | Err(_) => Chunk::Eof,
                Ok(count) => {
                    credit -= count;
                    Chunk::Bytes(buffer[..count].to_vec())
                }
            };
            let is_last = chunk == Chunk::Eof;
            if self.chunks.send(chunk).is_err() || is_last {
                return;
            }
            while let Ok(more) = self.credit.try_recv() {
                credit = credit.saturating_add(more);
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
