//! Sending a file to the daemon, bit by bit, as it is read.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use banger_api::image::Upload;
use banger_api::operation::{Progress, ProgressUnit};
use banger_host::http;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::{Method, Request, header};
use tokio::sync::mpsc;

use super::Client;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::ui::Ui;

/// How much is read at a time, in bytes.
const BLOCK: usize = 256 * 1024;
/// How many blocks may wait to be sent.
const AHEAD: usize = 4;
/// How often the progress is shown.
const LOOK: Duration = Duration::from_millis(100);
/// Longest answer to an upload, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Sends everything that can be read.
///
/// # Errors
/// If it cannot be read or sent, what the daemon says against it, or [`Failure::Quiet`] if the user
/// gave it up.
pub async fn upload(
    client: &Client,
    source: impl Read + Send + 'static,
    (ui, interrupts): (&Ui, &mut Interrupts),
) -> Result<Upload, Failure> {
    let sent = Arc::new(AtomicU64::new(0));
    let sending = send(client, blocks(source), Arc::clone(&sent));
    tokio::pin!(sending);
    let mut stages = ui.stages();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            biased;
            signal = interrupts.next() => return Err(Failure::signal(signal)),
            answer = &mut sending => {
                stages.finish();
                return answer;
            }
            _ = look.tick() => stages.update(&progress(sent.load(Ordering::Relaxed))),
        }
    }
}

fn progress(bytes: u64) -> Progress {
    Progress {
        done: Some(bytes),
        unit: Some(ProgressUnit::Bytes),
        ..Progress::stage("image.upload", "reading standard input")
    }
}

async fn send(
    client: &Client,
    blocks: mpsc::Receiver<io::Result<Bytes>>,
    sent: Arc<AtomicU64>,
) -> Result<Upload, Failure> {
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/images/uploads")
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .body(StreamBody::new(frames(blocks, sent)))
        .map_err(|error| Failure::internal("cannot send standard input", &error))?;
    let stream = client.connect().await?;
    let answer = http::accept(http::send(stream, request).await?).await?;
    Ok(http::read_json(answer, MAX_ANSWER).await?)
}

/// The body; it breaks off where the source does.
fn frames(
    blocks: mpsc::Receiver<io::Result<Bytes>>,
    sent: Arc<AtomicU64>,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send {
    stream::unfold((blocks, sent), |(mut blocks, sent)| async move {
        let block = blocks.recv().await?;
        if let Ok(bytes) = &block {
            sent.fetch_add(u64::try_from(bytes.len()).unwrap_or(0), Ordering::Relaxed);
        }
        Some((block.map(Frame::data), (blocks, sent)))
    })
}

/// Reads in a thread of its own, which waits when nobody takes what it has read. A file cannot be
/// waited for otherwise.
fn blocks(mut source: impl Read + Send + 'static) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, blocks) = mpsc::channel(AHEAD);
    let read = move || {
        loop {
            let mut block = vec![0; BLOCK];
            let read = source.read(&mut block);
            let is_last = matches!(read, Ok(0) | Err(_));
            let block = read.map(|count| {
                block.truncate(count);
                Bytes::from(block)
            });
            if block.as_ref().is_ok_and(Bytes::is_empty) {
                return;
            }
            if sender.blocking_send(block).is_err() || is_last {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("upload".to_owned());
    if let Err(error) = thread.spawn(read) {
        // Then the closed channel must not look like the end of the input.
        let (sender, blocks) = mpsc::channel(1);
        let _ = sender.try_send(Err(error));
        return blocks;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_api::{ErrorCode, Problem};
    use banger_host::paths::StateDirs;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What a daemon that answers with these lines got, and what the client makes of it.
    async fn sent(
        source: impl Read + Send + 'static,
        status: &str,
        body: &str,
    ) -> (Vec<u8>, Result<Upload, Failure>) {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dir = tmp.path().to_owned();
        let listener = banger_host::connect::listen_async(&dir, "api.sock").expect("bind");
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let daemon = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut got = Vec::new();
            // The last chunk of a body is empty; a client that gives up hangs up.
            while !got.ends_with(b"\r\n0\r\n\r\n") {
                if stream.read_buf(&mut got).await.expect("readable") == 0 {
                    return got;
                }
            }
            stream.write_all(answer.as_bytes()).await.expect("writable");
            got
        });
        let client = Client::of(StateDirs { data: dir.clone(), config: dir.clone(), runtime: dir });
        let (_keep, signals) = mpsc::unbounded_channel();
        let mut interrupts = Interrupts::from_channel(signals);
        let answer = upload(&client, source, (&Ui::silent(), &mut interrupts)).await;
        (daemon.await.expect("no panic"), answer)
    }

    #[tokio::test]
    async fn everything_is_sent_in_chunks() {
        let bytes = 3 * u64::try_from(BLOCK).expect("small") + 7;
        let body = format!(r#"{{"id":"u1","bytes":{bytes}}}"#);
        let (got, answer) = sent(io::repeat(b'x').take(bytes), "200 OK", &body).await;
        assert_eq!(answer.expect("it was taken"), Upload { id: "u1".to_owned(), bytes });
        let head = String::from_utf8_lossy(&got[..300]).to_lowercase();
        assert!(head.starts_with("post /v1/images/uploads http/1.1\r\n"), "{head}");
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        assert!(head.contains("content-type: application/octet-stream"), "{head}");
        let sent = got.iter().filter(|byte| **byte == b'x').count();
        assert!(u64::try_from(sent).expect("small") >= bytes, "{sent} of {bytes}");
    }

    #[tokio::test]
    async fn what_the_daemon_says_against_it_is_told() {
        let problem = Problem::new(ErrorCode::HostDiskFull, "the disk is full");
        let body = serde_json::to_string(&problem).expect("plain data");
        let (_, answer) = sent(&b"abc"[..], "507 Insufficient Storage", &body).await;
        assert_eq!(answer.expect_err("refused").code(), Some(ErrorCode::HostDiskFull));
    }

    #[tokio::test]
    async fn a_source_that_breaks_off_is_not_the_end_of_the_file() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("gone"))
            }
        }
        let (got, answer) = sent(Read::chain(&b"abc"[..], Broken), "200 OK", "{}").await;
        answer.expect_err("it broke off");
        assert!(!got.ends_with(b"\r\n0\r\n\r\n"), "the daemon must not take it for whole");
    }

    #[tokio::test]
    async fn an_interrupt_ends_it() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dir = tmp.path().to_owned();
        let _listener = banger_host::connect::listen_async(&dir, "api.sock").expect("bind");
        let client = Client::of(StateDirs { data: dir.clone(), config: dir.clone(), runtime: dir });
        let (signal, signals) = mpsc::unbounded_channel();
        signal.send(2).expect("it listens");
        let mut interrupts = Interrupts::from_channel(signals);
        let answer = upload(&client, io::repeat(0), (&Ui::silent(), &mut interrupts)).await;
        assert!(matches!(answer, Err(Failure::Quiet(130))), "{answer:?}");
    }
}
