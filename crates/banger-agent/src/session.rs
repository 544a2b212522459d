//! One connection of the host: the greeting, the streams in it, HTTP on every stream.
//!
//! Knows nothing of ports, so that a test can speak to it over any pair of sockets.

use std::io;
use std::sync::Arc;
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
use yamux::{Connection, ConnectionError, FrameDecodeError, Mode};

use crate::agent::Agent;
use crate::preamble::Scanner;
use crate::routes::{self, Delivered};

/// Memory for the head of one HTTP message.
const HTTP_BUFFER: usize = 64 * 1024;
/// How long the host may take to read the last answer of a guest that goes down.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long the host may take to hang up after it.
const HANG_UP: Duration = Duration::from_millis(250);

/// Why a connection ended other than by the host hanging up.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The stream itself failed.
    #[error("the stream failed")]
    Stream(#[from] io::Error),
    /// The host broke the multiplexing protocol.
    #[error("the multiplexing failed")]
    Multiplexing(#[source] ConnectionError),
}

/// Serves one connection until the host hangs up or the guest goes down.
///
/// Commands started through it end with it: their streams do.
pub async fn serve<S>(stream: &mut S, agent: &Arc<Agent>) -> Result<(), SessionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if !greet(stream).await? {
        return Ok(());
    }
    let mut connection = Connection::new((&mut *stream).compat(), config(), Mode::Server);
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            next = poll_fn(|cx| connection.poll_next_inbound(cx)) => match next {
                Some(Ok(stream)) => {
                    serving.spawn(serve_stream(stream, Arc::clone(agent)));
                }
                None => return Ok(()),
                Some(Err(error)) if is_hang_up(&error) => return Ok(()),
                Some(Err(error)) => return Err(SessionError::Multiplexing(error)),
            },
            Some(_) = serving.join_next() => {}
            _ = agent.ended() => break,
        }
    }
    // The last answer is under way: see it out, then give the host the time to hang up.
    let _ = timeout(FAREWELL, poll_fn(|cx| connection.poll_close(cx))).await;
    drop(connection);
    let _ = timeout(HANG_UP, read_to_end(stream)).await;
    Ok(())
}

/// Discards what the host sends until it greets, and greets back. False if it hung up before.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<bool> {
    let mut scanner = Scanner::default();
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

fn config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    config.set_max_connection_receive_window(Some(CONNECTION_WINDOW));
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
