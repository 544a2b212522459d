//! The connection to the guest's agent: a preamble that both sides know is fresh, then yamux.
//!
//! Everything that comes from here is the word of a guest: bounded, checked, and never trusted.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use banger_api::agent::{CONNECTION_WINDOW, MAX_STREAMS, NONCE_LEN, PREAMBLE};
use banger_host::random;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

/// Most streams for commands. One more than yamux allows would end the whole connection, at either
/// end, and the agent may know of a stream's end later than the shim.
const COMMAND_STREAMS: usize = MAX_STREAMS - 12;
/// Most streams for the shim's own requests, so that a VM full of commands can still be stopped.
const CONTROL_STREAMS: usize = 4;

/// Most bytes before the agent's greeting. They are left over from another connection, or the guest
/// sends garbage, and may do so for as long as it likes.
const MAX_LEFT_OVER: usize = 4 << 20;

type Opened = Result<Compat<yamux::Stream>, GuestGone>;

/// One stream to the agent, and its place among those that may be open.
#[derive(Debug)]
pub(crate) struct GuestStream {
    stream: Compat<yamux::Stream>,
    _place: OwnedSemaphorePermit,
}

/// The guest does not answer any more.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the connection to the guest is closed")]
pub(crate) struct GuestGone;

/// The agent of a guest. Clones are the same agent.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    requests: mpsc::Sender<oneshot::Sender<Opened>>,
    commands: Arc<Semaphore>,
    control: Arc<Semaphore>,
}

impl Guest {
    /// Greets the agent on a fresh stream, and waits until it answers.
    ///
    /// # Errors
    /// The connection broke, or the guest sends something else, and too much of it.
    pub(crate) async fn greet(stream: UnixStream) -> std::io::Result<Self> {
        let mut stream = BufReader::new(stream);
        greet(&mut stream).await?;
        let (requests, incoming) = mpsc::channel(MAX_STREAMS);
        tokio::spawn(drive(Connection::new(stream.compat(), config(), Mode::Client), incoming));
        Ok(Self::new(requests))
    }

    fn new(requests: mpsc::Sender<oneshot::Sender<Opened>>) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { requests, commands: places(COMMAND_STREAMS), control: places(CONTROL_STREAMS) }
    }

    /// Opens a stream for a command, as soon as there is a place for it.
    pub(crate) async fn open_for_command(&self) -> Result<GuestStream, GuestGone> {
        self.open(&self.commands).await
    }

    /// Opens a stream for a request of the shim's own.
    pub(crate) async fn open_for_control(&self) -> Result<GuestStream, GuestGone> {
        self.open(&self.control).await
    }

    async fn open(&self, places: &Arc<Semaphore>) -> Result<GuestStream, GuestGone> {
        let place = tokio::select! {
            place = Arc::clone(places).acquire_owned() => place.map_err(|_| GuestGone)?,
            () = self.closed() => return Err(GuestGone),
        };
        let (reply, opened) = oneshot::channel();
        self.requests.send(reply).await.map_err(|_| GuestGone)?;
        let stream = opened.await.map_err(|_| GuestGone)??;
        Ok(GuestStream { stream, _place: place })
    }

    /// Waits until the connection is closed.
    pub(crate) async fn closed(&self) {
        self.requests.closed().await;
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn config() -> Config {
    let mut config = Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    config.set_max_connection_receive_window(Some(CONNECTION_WINDOW));
    config
}

/// Sends the preamble with a fresh nonce and discards what comes until both come back.
async fn greet(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
    let mut hello = PREAMBLE.to_vec();
    hello.extend_from_slice(&random::bytes::<NONCE_LEN>());
    stream.write_all(&hello).await?;
    let mut seen = Vec::with_capacity(hello.len());
    for _ in 0..MAX_LEFT_OVER {
        // Byte by byte, so that nothing behind the answer is swallowed.
        if seen.len() == hello.len() {
            seen.remove(0);
        }
        seen.push(stream.read_u8().await?);
        if seen == hello {
            return Ok(());
        }
    }
    let reason = format!("the guest sent {} MiB of something else", MAX_LEFT_OVER >> 20);
    Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason))
}

/// Keeps the connection going: opens streams when asked, refuses those that the guest opens.
async fn drive(
    mut connection: Connection<Compat<impl AsyncRead + AsyncWrite + Unpin>>,
    mut requests: mpsc::Receiver<oneshot::Sender<Opened>>,
) {
    let mut waiting: Option<oneshot::Sender<Opened>> = None;
    poll_fn(|context| {
        loop {
            // First: it also forgets the streams that were closed, which makes place for new ones.
            match connection.poll_next_inbound(context) {
                // Only the host opens streams. The guest's is dropped, which resets it.
                Poll::Ready(Some(Ok(_))) => continue,
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            if waiting.is_none() {
                match requests.poll_recv(context) {
                    Poll::Ready(Some(request)) => waiting = Some(request),
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            match connection.poll_new_outbound(context) {
                Poll::Ready(Ok(stream)) => {
                    let request = waiting.take().expect("one was just waiting");
                    // Whoever asked may have gone; the stream then closes at once.
                    let _ = request.send(Ok(stream.compat()));
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_left_over_before_the_answer_is_discarded() {
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        let agent = async {
            let mut hello = vec![0; PREAMBLE.len() + NONCE_LEN];
            theirs.read_exact(&mut hello).await.expect("hello");
            // An answer to somebody else, half of one, then ours.
            let mut answer = PREAMBLE.to_vec();
            answer.extend_from_slice(&[7; NONCE_LEN]);
            answer.extend_from_slice(&hello[..20]);
            answer.extend_from_slice(&hello);
            answer.extend_from_slice(b"next");
            theirs.write_all(&answer).await.expect("answer");
        };
        let (greeted, ()) = tokio::join!(greet(&mut ours), agent);
        greeted.expect("greeted");
        let mut next = [0; 4];
        ours.read_exact(&mut next).await.expect("what follows");
        assert_eq!(&next, b"next");
    }

    #[tokio::test]
    async fn a_guest_that_opens_streams_gets_nowhere_and_one_that_goes_is_noticed() {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let (requests, incoming) = mpsc::channel(4);
        tokio::spawn(drive(Connection::new(ours.compat(), config(), Mode::Client), incoming));
        let guest = Guest::new(requests);
        let mut agent = Connection::new(theirs.compat(), config(), Mode::Server);
        let opened = poll_fn(|context| agent.poll_new_outbound(context)).await;
        assert!(opened.is_ok(), "yamux itself lets it try");
        drop(agent);
        guest.closed().await;
        assert!(guest.open_for_command().await.is_err());
    }

    #[tokio::test]
    async fn commands_wait_for_a_place_and_leave_one_for_control() {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let (requests, incoming) = mpsc::channel(4);
        tokio::spawn(drive(Connection::new(ours.compat(), config(), Mode::Client), incoming));
        let guest = Guest::new(requests);
        let mut agent = Connection::new(theirs.compat(), config(), Mode::Server);
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(Ok(stream)) = poll_fn(|context| agent.poll_next_inbound(context)).await {
                held.push(stream);
            }
        });
        let mut streams = Vec::new();
        for _ in 0..COMMAND_STREAMS {
            streams.push(guest.open_for_command().await.expect("a place"));
        }
        let mut waiting = Box::pin(guest.open_for_command());
        assert!(futures_util::poll!(&mut waiting).is_pending(), "there is no place");
        guest.open_for_control().await.expect("the VM can still be stopped");
        streams.pop();
        waiting.await.expect("a place became free");
    }
}
