//! What requests carry.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// How much of a file is read at once.
const CHUNK: u64 = 128 * 1024;

/// What a request carries, so that it can be sent again.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// Nothing.
    Nothing,
    /// These bytes.
    Bytes(Bytes),
    /// A file of that many bytes.
    File(PathBuf, u64),
}

/// The body of one request.
#[derive(Debug)]
pub(super) struct Payload {
    rest: Rest,
    sent: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Rest {
    Bytes(Bytes),
    File(File, u64),
}

impl Content {
    /// A body with this content. What was sent of it is added to `sent`.
    pub(super) fn open(&self, sent: &Arc<AtomicU64>) -> io::Result<Payload> {
        let rest = match self {
            Self::Nothing => Rest::Bytes(Bytes::new()),
            Self::Bytes(bytes) => Rest::Bytes(bytes.clone()),
            Self::File(path, bytes) => Rest::File(File::open(path)?, *bytes),
        };
        Ok(Payload { rest, sent: Arc::clone(sent) })
    }
}

impl Payload {
    /// Counts the bytes that were handed over so far.
    pub(super) fn sent(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }

    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let bytes = match &mut self.rest {
            Rest::Bytes(bytes) => std::mem::take(bytes),
            Rest::File(_, 0) => return Ok(None),
            Rest::File(file, left) => {
                let mut chunk = Vec::new();
                file.take(CHUNK.min(*left)).read_to_end(&mut chunk)?;
                if chunk.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *left -= chunk.len() as u64;
                chunk.into()
            }
        };
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    fn left(&self) -> u64 {
        match &self.rest {
            Rest::Bytes(bytes) => bytes.len() as u64,
            Rest::File(_, left) => *left,
        }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(self.get_mut().next().map(|bytes| bytes.map(Frame::data)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left())
    }
}
