//! What a guest says over its agent: frames, answers, greetings, its console, its accounts.

use std::future::poll_fn;
use std::pin::Pin;

use banger_api::Problem;
use banger_api::agent::{Configured, Hello, SystemStatus};
use banger_api::exec::{ClientFrame, MAX_PAYLOAD, ServerFrame};
use banger_api::version::AGENT_PROTOCOL;
use banger_host::logs::{Printer, printable};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::account::Accounts;
use crate::preamble::{GREETING_LEN, Scanner};
use crate::shim_console::Tail;
use crate::wire::{PATIENCE, in_runtime};

/// Frames of exec streams, of both sides.
pub(crate) fn frames(data: &[u8]) {
    if let Ok(frame) = ServerFrame::decode(data) {
        let again = frame.encode();
        assert_eq!(ServerFrame::decode(&again).as_ref(), Ok(&frame), "it survives the wire");
    }
    if let Ok(frame) = ClientFrame::decode(data) {
        let again = frame.encode();
        assert_eq!(ClientFrame::decode(&again).as_ref(), Ok(&frame), "it survives the wire");
    }
}

/// The WebSocket of an exec stream, after its handshake, as the shim reads it.
pub(crate) fn stream(data: &[u8]) {
    in_runtime(async {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_PAYLOAD + 1))
            .max_frame_size(Some(MAX_PAYLOAD + 1))
            .write_buffer_size(0);
        let opening = WebSocketStream::from_raw_socket(near, Role::Client, Some(config));
        let mut socket = opening.await;
        let reading = async {
            while let Some(Ok(message)) = socket.next().await {
                assert!(message.len() <= MAX_PAYLOAD + 1, "a message of {}", message.len());
                let _ = ServerFrame::decode(&message.into_data());
            }
        };
        let writing = async {
            let _ = far.write_all(data).await;
            let _ = far.shutdown().await;
            // Pongs and farewells must go somewhere.
            let mut rest = [0; 4096];
            while poll_fn(|context| {
                let mut rest = tokio::io::ReadBuf::new(&mut rest);
                let far = Pin::new(&mut far);
                let read = tokio::io::AsyncRead::poll_read(far, context, &mut rest);
                read.map(|read| read.is_ok() && !rest.filled().is_empty())
            })
            .await
            {}
        };
        let both = async {
            tokio::select! {
                () = reading => {}
                () = writing => {}
            }
        };
        tokio::time::timeout(PATIENCE, both).await.expect("a stream that ends is read to its end");
    });
}

/// Bodies of the agent's answers.
pub(crate) fn answers(data: &[u8]) {
    if let Ok(hello) = serde_json::from_slice::<Hello>(data)
        && let Some(version) = AGENT_PROTOCOL.negotiate(hello.protocol)
    {
        assert!(AGENT_PROTOCOL.min <= version && version <= AGENT_PROTOCOL.max, "{version}");
    }
    let _ = serde_json::from_slice::<Configured>(data);
    let _ = serde_json::from_slice::<SystemStatus>(data);
    let _ = serde_json::from_slice::<Problem>(data);
}

/// The greeting that begins a connection, in pieces: the first byte says how long they are.
pub(crate) fn preamble(data: &[u8]) {
    let Some((&piece, data)) = data.split_first() else { return };
    let mut scanner = Scanner::default();
    let mut found = None;
    for piece in data.chunks(usize::from(piece).max(1)) {
        found = scanner.feed(piece).or(found);
    }
    if let Some(greeting) = found {
        assert!(data.windows(GREETING_LEN).any(|window| window == greeting), "nobody sent it");
    }
}

/// A console: what is remembered of it and what is shown. The first byte is the length of pieces.
pub(crate) fn console(data: &[u8]) {
    let Some((&piece, data)) = data.split_first() else { return };
    let (mut tail, mut printer) = (Tail::default(), Printer::default());
    let mut shown = String::new();
    for piece in data.chunks(usize::from(piece).max(1)) {
        tail.add(piece);
        shown.push_str(&printer.next(piece));
    }
    let whole = printable(data);
    let lines = tail.lines();
    assert!(lines.len() <= 16 && lines.iter().all(|line| line.len() <= 4096), "bounded");
    for text in lines.iter().map(String::as_str).chain([shown.as_str(), whole.as_str()]) {
        let controls = text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t'));
        assert!(!controls, "{text:?} commands a terminal");
    }
}

/// `/etc/passwd` and `/etc/group`, a null byte between, and after another who is looked for.
pub(crate) fn accounts(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let accounts = Accounts { passwd: next(), group: next() };
    let wanted = next();
    for spec in [wanted.as_str(), "root", "dev:users", "1000:1000", ":"] {
        if let Ok(account) = accounts.resolve(spec) {
            assert!(account.groups.len() <= 65_537, "as many groups as a process may have");
            assert!(!account.home.is_empty() && !account.shell.is_empty(), "{account:?}");
        }
    }
}
