//! Streams with a hostile other end: HTTP, QMP, yamux.

use std::future::Future;
use std::time::Duration;

use banger_api::agent::{NONCE_LEN, PREAMBLE};
use banger_host::http::{self, Lines};
use banger_host::qemu::qmp::Qmp;
use hyper::Method;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::net::UnixStream;

use crate::shim_guest::Guest;

/// Longest that anything may take whose other end has hung up. The clock stands still while
/// something happens, so this is no matter of how fast the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs something to its end, with a clock that only moves when nothing else does.
pub(crate) fn in_runtime(work: impl Future<Output = ()>) {
    let builder = &mut tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(work);
}

/// One end of a stream whose other end answers any request with these bytes, and hangs up.
fn answering(data: &[u8]) -> DuplexStream {
    let data = data.to_vec();
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let mut head = [0; 4096];
        let _ = far.read(&mut head).await;
        let _ = far.write_all(&data).await;
    });
    near
}

/// Answers of HTTP servers: whole ones, lines, events.
pub(crate) fn http(data: &[u8]) {
    in_runtime(async {
        let all = async {
            let near = answering(data);
            let _ =
                http::json::<serde_json::Value, _, _>(near, Method::GET, "/", None::<&()>).await;
            for events in [false, true] {
                let answer = http::request(answering(data), Method::GET, "/", None::<&()>).await;
                let Ok(answer) = answer else { continue };
                let mut lines = Lines::of(answer);
                loop {
                    let next = if events { lines.next_event().await } else { lines.next().await };
                    let Ok(Some(line)) = next else { break };
                    assert!(line.len() <= http::MAX_LINE + (64 << 10), "a line of {}", line.len());
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("an answer that ends is read to its end");
    });
}

/// QEMU's control protocol: a VMM that greets as it should, and then answers anything.
pub(crate) fn qmp(data: &[u8]) {
    in_runtime(async {
        let (near, far) = UnixStream::pair().expect("a pair of sockets");
        tokio::spawn(answering_commands(far, data.to_vec()));
        let all = async {
            let (mut qmp, mut events) = Qmp::connect(near).await.expect("it was greeted");
            let _ = qmp.execute("query-status", serde_json::json!({})).await;
            while events.recv().await.is_some() {}
        };
        tokio::time::timeout(PATIENCE, all).await.expect("it is noticed that QEMU hung up");
    });
}

/// Each answer waits for its command, or the command finds that nobody is there to read it.
async fn answering_commands(far: UnixStream, data: Vec<u8>) {
    let (commands, mut answers) = far.into_split();
    let mut commands = BufReader::new(commands).lines();
    let _ = answers.write_all(b"{\"QMP\":{}}\n").await;
    for answer in [b"{\"return\":{}}\n".to_vec(), data] {
        let _ = commands.next_line().await;
        let _ = answers.write_all(&answer).await;
    }
    drop(answers);
    while let Ok(Some(_)) = commands.next_line().await {}
}

/// A guest's end of the connection to its agent: it greets as it should, and then says anything.
/// The first byte says how long the pieces are.
pub(crate) fn yamux(data: &[u8]) {
    let Some((&piece, data)) = data.split_first() else { return };
    let (piece, data) = (usize::from(piece).max(1) * 16, data.to_vec());
    in_runtime(async {
        let (near, mut far) = UnixStream::pair().expect("a pair of sockets");
        tokio::spawn(async move {
            let mut hello = [0; PREAMBLE.len() + NONCE_LEN];
            let _ = far.read_exact(&mut hello).await;
            let _ = far.write_all(&hello).await;
            for piece in data.chunks(piece) {
                let _ = far.write_all(piece).await;
                tokio::task::yield_now().await;
            }
        });
        let all = async {
            let guest = Guest::greet(near).await.expect("it was greeted");
            if let Ok(mut stream) = guest.open_for_command().await {
                let _ = stream.write_all(b"GET /v1/hello HTTP/1.1\r\n\r\n").await;
                let mut read = Vec::new();
                let _ = stream.take(1 << 20).read_to_end(&mut read).await;
            }
            guest.closed().await;
            assert!(guest.open_for_control().await.is_err(), "it is gone");
        };
        tokio::time::timeout(PATIENCE, all).await.expect("it is noticed that the guest hung up");
    });
}
