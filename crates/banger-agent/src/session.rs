//! One connection of the host: the greeting, the streams in it, HTTP on every stream.
//!
//! Knows nothing of ports, so that a test can speak to it over any pair of sockets.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Extension;
use banger_api::agent::{CONNECTION_WINDOW, MAX_STREAMS};
use futures_util::future::poll_fn;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tokio_util::io::InspectReader;
use yamux::{Connection, ConnectionError, FrameDecodeError, Mode};

use crate::agent::Agent;
use crate::console;
use crate::preamble::Scanner;
use crate::routes::{self, Delivered};

/// How many bytes the multiplexing reads before it can tell that they are not a frame.
const FRAME_HEADER: usize = 12;
/// Memory for the head of one HTTP message.
const HTTP_BUFFER: usize = 64 * 1024;
/// How long the host may take to read the last answer of a guest that goes down.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long the host may take to hang up after it.
const HANG_UP: Duration = Duration::from_millis(250);

/// Serves the stream until the host hangs up or the guest goes down.
///
/// Commands end with the connection that they were started through: their streams do.
pub async fn serve<S>(stream: &mut S, agent: &Arc<Agent>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut scanner = Scanner::default();
    while console::awaiting("the host's greeting", greet(stream, &mut scanner)).await? {
        match converse(stream, agent).await {
            Ending::HungUp => return Ok(()),
            Ending::Farewell => {
                let _ = timeout(HANG_UP, read_to_end(stream)).await;
                return Ok(());
            }
            Ending::Garbled { error, last_read } => {
                // A host that hangs up and comes back at once does so unnoticed: what cannot be
                // understood is then the beginning of its greeting.
                console::say(&format!("the host's connection broke: {error}"));
                scanner.feed(&last_read);
            }
        }
    }
    Ok(())
}

/// How a conversation ended.
enum Ending {
    /// The host hung up.
    HungUp,
    /// The guest goes down, and the host has been told.
    Farewell,
    /// The host sent something that is not a frame.
    Garbled { error: ConnectionError, last_read: [u8; FRAME_HEADER] },
}

/// Serves what follows one greeting.
async fn converse<S>(stream: &mut S, agent: &Arc<Agent>) -> Ending
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let last_read = Arc::new(Mutex::new([0; FRAME_HEADER]));
    let remembering = InspectReader::new(stream, {
        let last_read = Arc::clone(&last_read);
        move |bytes: &[u8]| remember(&last_read, bytes)
    });
    let mut connection = Connection::new(remembering.compat(), config(), Mode::Server);
    let mut serving = JoinSet::new();
    let ending = loop {
        tokio::select! {
            next = poll_fn(|cx| connection.poll_next_inbound(cx)) => match next {
                Some(Ok(stream)) => {
                    serving.spawn(serve_stream(stream, Arc::clone(agent)));
                }
                None => return Ending::HungUp,
                Some(Err(error)) if is_hang_up(&error) => return Ending::HungUp,
                Some(Err(error)) => {
                    let last_read = *last_read.lock().unwrap_or_else(PoisonError::into_inner);
                    return Ending::Garbled { error, last_read };
                }
            },
            Some(_) = serving.join_next() => {}
            _ = agent.ended() => break Ending::Farewell,
            // A guest that is saved has nobody at the other end of its port, and knows it.
            () = agent.hung_up() => break Ending::HungUp,
        }
    };
    // The last answer is under way: see it out.
    let _ = timeout(FAREWELL, poll_fn(|cx| connection.poll_close(cx))).await;
    ending
}

/// Keeps the last bytes of everything read.
fn remember(last_read: &Mutex<[u8; FRAME_HEADER]>, bytes: &[u8]) {
    let mut kept = last_read.lock().unwrap_or_else(PoisonError::into_inner);
    let new = &bytes[bytes.len().saturating_sub(FRAME_HEADER)..];
    kept.rotate_left(new.len());
    kept[FRAME_HEADER - new.len()..].copy_from_slice(new);
}

/// Discards what the host sends until it greets, and greets back. False if it hung up before.
async fn greet<S>(stream: &mut S, scanner: &mut Scanner) -> io::Result<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(false);
        }
        if let Some(greeting) = scanner.feed(&buffer[..count]) {
            stream.write_all(&greeting).await?;
            stream.flush().await?;
            return Ok(true);
        }
    }
}

/// A host may hang up at any moment, in the middle of a frame too.
fn is_hang_up(error: &ConnectionError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match error {
        ConnectionError::Closed => true,
        ConnectionError::Io(error) | ConnectionError::Decode(FrameDecodeError::Io(error)) => {
            matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
        }
        _ => false,
    }
}

async fn read_to_end<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

/// The host keeps to the limits. It may know of a stream's end, and open the next, some time before
/// the agent does, and one stream too many would end all of them.
const TOLERANCE: usize = 4;

fn config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(TOLERANCE * MAX_STREAMS);
    config.set_max_connection_receive_window(Some(TOLERANCE * CONNECTION_WINDOW));
    config
}

async fn serve_stream(stream: yamux::Stream, agent: Arc<Agent>) {
    let delivered = Arc::new(Notify::new());
    let router = routes::router(agent).layer(Extension(Delivered(Arc::clone(&delivered))));
    let service = TowerToHyperService::new(router);
    // An error here is a host that hung up or sent something else than HTTP: both end the stream.
    let _ = http1::Builder::new()
        .max_buf_size(HTTP_BUFFER)
        .serve_connection(TokioIo::new(stream.compat()), service)
        .with_upgrades()
        .await;
    delivered.notify_one();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::cgroup::Cgroups;
    use crate::init::Init;
    use crate::testing::{Host, greet_and_wait};
    use tokio::net::UnixStream;
    use tokio::sync::watch;

    fn connection() -> UnixStream {
        let (mut guest, host) = UnixStream::pair().expect("a pair");
        let (_, root) = watch::channel(Some(Ok(Vec::new())));
        let agent = Agent::new(root, Init::agent(), Cgroups::by_descent());
        tokio::spawn(async move { serve(&mut guest, &agent).await });
        host
    }

    #[tokio::test]
    async fn a_host_that_comes_back_unnoticed_is_served() {
        let mut stream = connection();
        for _ in 0..3 {
            greet_and_wait(&mut stream).await;
        }
        let host = Host::connect(stream).await;
        assert_eq!(host.request("GET", "/v1/hello", "").await.0, 200);
    }

    #[test]
    fn the_last_bytes_are_remembered() {
        let last_read = Mutex::new([0; FRAME_HEADER]);
        for bytes in [&b"ab"[..], b"", b"cd", b"0123456789"] {
            remember(&last_read, bytes);
        }
        assert_eq!(&*last_read.lock().expect("no panics"), b"cd0123456789");
        remember(&last_read, b"a long piece of text");
        assert_eq!(&*last_read.lock().expect("no panics"), b"iece of text");
    }
}
