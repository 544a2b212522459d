//! "Hostile guest: an agent that never answers, answers garbage, floods …, sends oversized frames":
//! a shim and an agent of the guest's own making. What it does to a whole machine is in
//! `tests/e2e/tests/hostile_guest.rs`.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::ws::Message as ClientMessage;
use banger_api::agent::{NONCE_LEN, PREAMBLE};
use banger_api::exec::{ExecEnd, ExecRequest, MAX_PAYLOAD, ServerControl, ServerFrame};
use banger_api::{ErrorCode, Problem};
use futures_util::{Sink, SinkExt, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tokio_util::sync::PollSender;
use yamux::{Connection, Mode};

use crate::configure::configure;
use crate::exec::{StreamEnd, relay};
use crate::guest::Guest;
use crate::testing::launch_spec;

type GuestEnd = Compat<yamux::Stream>;

/// Generous: nothing here has to wait for anything but a busy machine.
const BOUND: Duration = Duration::from_secs(60);

/// Sends the greeting back, as an honest agent does.
async fn greet_back(stream: &mut UnixStream) {
    let mut hello = [0; PREAMBLE.len() + NONCE_LEN];
    stream.read_exact(&mut hello).await.expect("a greeting");
    stream.write_all(&hello).await.expect("greeted back");
}

/// A guest whose agent greets, and does `answer` with every stream.
async fn guest<F, A>(answer: F) -> Guest
where
    F: Fn(GuestEnd) -> A + Send + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    tokio::spawn(async move {
        greet_back(&mut theirs).await;
        let mut connection =
            Connection::new(theirs.compat(), yamux::Config::default(), Mode::Server);
        while let Some(Ok(stream)) = poll_fn(|context| connection.poll_next_inbound(context)).await
        {
            tokio::spawn(answer(stream.compat()));
        }
    });
    Guest::greet(ours).await.expect("greeted")
}

/// A guest that greets, and then sends these bytes over and over where yamux should be. The other
/// end counts what it got rid of.
async fn flood(bytes: &'static [u8], most: usize) -> (Guest, tokio::task::JoinHandle<usize>) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let flooding = tokio::spawn(async move {
        greet_back(&mut theirs).await;
        let mut sent = 0;
        // It reads nothing; who answers everything then has to keep the answers.
        while sent < most {
            let write = tokio::time::timeout(Duration::from_secs(2), theirs.write(bytes)).await;
            let Ok(Ok(count)) = write else { break };
            sent += count;
        }
        sent
    });
    (Guest::greet(ours).await.expect("greeted"), flooding)
}

#[tokio::test]
async fn garbage_instead_of_a_greeting_is_given_up() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    tokio::spawn(async move { while theirs.write_all(&[0xff; 4096]).await.is_ok() {} });
    let greeted = tokio::time::timeout(BOUND, Guest::greet(ours)).await.expect("it ends");
    let error = greeted.expect_err("nobody greeted");
    assert_eq!(error.to_string(), "the guest sent 4 MiB of something else");
}

#[tokio::test]
async fn a_connection_of_garbage_is_closed() {
    for garbage in
        [&[0xff; 4096][..], b"HTTP/1.1 200 OK\r\n\r\n", b"\0\0\0\0\0\0\0\x01\xff\xff\xff\xff"]
    {
        let (guest, flooding) = flood(garbage, 16 << 20).await;
        tokio::time::timeout(BOUND, guest.closed()).await.expect("it is closed");
        assert!(guest.open_for_command().await.is_err());
        assert!(flooding.await.expect("no panic") < 16 << 20, "nobody listens any more");
    }
}

/// Pings that are to be answered, and whose answers nobody reads: who keeps them runs out of memory.
#[tokio::test]
async fn a_flood_of_pings_is_not_kept() {
    const PING: [u8; 12] = [0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7];
    let pings = PING.repeat(1000).leak();
    let most = 64 << 20;
    let (_guest, flooding) = flood(pings, most).await;
    let sent = flooding.await.expect("no panic");
    assert!(sent < most / 2, "{sent} bytes of pings were taken without an answer being read");
}

/// "opens streams itself; exceeds 64 streams"
#[tokio::test]
async fn a_flood_of_streams_is_not_kept() {
    let opens: Vec<u8> = (1_u32..20_000)
        .flat_map(|number| {
            let [a, b, c, d] = (number * 2).to_be_bytes();
            [0, 1, 0, 1, a, b, c, d, 0, 0, 0, 0]
        })
        .collect();
    let most = 64 << 20;
    let (_guest, flooding) = flood(opens.leak(), most).await;
    let sent = flooding.await.expect("no panic");
    assert!(sent < most / 2, "{sent} bytes of streams were taken without an answer being read");
}

/// Every answer to `hello` that is none: the VM fails with a reason, in time, and the reason is
/// short and commands no terminal.
#[tokio::test(start_paused = true)]
async fn every_absurd_hello_is_a_failure_with_a_reason() {
    let with_body = |body: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let hello = |version: &str, protocol: &str| {
        with_body(&format!(
            r#"{{"protocol":{protocol},"version":"{version}","kernel_release":"6","configured":true}}"#
        ))
    };
    let control = r"\u001b]0;x\u0007\u202e";
    let long = "x".repeat(900_000);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("silence", vec![]),
        ("garbage", vec![0xfe; 10_000]),
        ("no JSON", with_body("<html>")),
        ("too new", hello(control, r#"{"min":4294967295,"max":4294967295}"#)),
        ("no range", hello(control, r#"{"min":9,"max":0}"#)),
        ("text for a number", hello(&long, &format!(r#""{control}{long}""#))),
        ("oversized", with_body(&format!("\"{}\"", "y".repeat(2 << 20)))),
        ("endless head", format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(400_000)).into()),
        ("a long head", format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(4 << 20)).into()),
        ("cut off", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec()),
        ("absurd length", b"HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775807\r\n\r\n{".into()),
        (
            "a refusal",
            format!("HTTP/1.1 500 x\r\n\r\n{{\"code\":\"boot_failed\",\"title\":\"{control}{long}\",\"causes\":[]}}")
                .into(),
        ),
    ];
    for (what, answer) in cases {
        let answer: &'static [u8] = answer.leak();
        let guest = guest(move |mut stream| async move {
            let _ = stream.write_all(answer).await;
            if what == "silence" {
                std::future::pending::<()>().await;
            }
        });
        let guest = guest.await;
        let spec = launch_spec("agent", "");
        let configured = configure(&guest, &spec);
        let result = tokio::time::timeout(Duration::from_secs(90), configured).await;
        let problem = result.expect(what).expect_err(what).problem("box");
        let texts: Vec<&String> = problem.causes.iter().chain(&problem.hint).collect();
        assert!(!problem.causes.is_empty(), "{what}: {problem}");
        for text in texts {
            assert!(text.chars().count() <= 2001, "{what}: {} characters", text.len());
            assert!(!text.chars().any(char::is_control), "{what}: {text:?}");
            assert!(!text.contains('\u{202e}'), "{what}: {text:?}");
        }
    }
}

/// "slow-loris bytes": an answer that always grows by one byte does not hold a launch up.
#[tokio::test(start_paused = true)]
async fn a_byte_at_a_time_is_too_slow() {
    let guest = guest(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await;
        while stream.write_all(b" ").await.is_ok() {
            // The lie itself: a second of the paused clock, which passes at once.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let began = tokio::time::Instant::now();
    let error = configure(&guest.await, &launch_spec("agent", "")).await.expect_err("too slow");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let reason = error.problem("box").to_string();
    assert!(reason.contains("the guest took longer than 15 s"), "{reason}");
}

/// A client as a relay sees it: what it says, and what it is told. Who drops its sender hangs up.
struct Client {
    says: mpsc::Receiver<ClientMessage>,
    hears: PollSender<ClientMessage>,
}

impl Stream for Client {
    type Item = Result<ClientMessage, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.says.poll_recv(context).map(|message| message.map(Ok))
    }
}

impl Sink<ClientMessage> for Client {
    type Error = axum::Error;

    fn poll_ready(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), axum::Error>> {
        self.hears.poll_reserve(context).map_err(axum::Error::new)
    }

    fn start_send(mut self: Pin<&mut Self>, message: ClientMessage) -> Result<(), axum::Error> {
        self.hears.send_item(message).map_err(axum::Error::new)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        Poll::Ready(Ok(()))
    }
}

/// A client that has asked for a command, its mouth and its ear; it hears `ear` messages before it
/// has to be listened to.
async fn client(
    ear: usize,
) -> (Client, mpsc::Sender<ClientMessage>, mpsc::Receiver<ClientMessage>) {
    let (says, said) = mpsc::channel(64);
    let (tells, hears) = mpsc::channel(ear);
    let request = ExecRequest { argv: vec!["true".to_owned()], ..ExecRequest::default() };
    let request = serde_json::to_string(&request).expect("plain data");
    says.send(ClientMessage::text(request)).await.expect("it listens");
    (Client { says: said, hears: PollSender::new(tells) }, says, hears)
}

/// A guest that takes the request for a command, and answers with these messages.
async fn exec_guest(messages: Vec<Message>) -> Guest {
    let messages: &'static [Message] = messages.leak();
    guest(move |stream| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
        for message in messages {
            let _ = socket.send(message.clone()).await;
        }
        std::future::pending::<()>().await;
    })
    .await
}

fn control(control: ServerControl) -> Message {
    Message::binary(ServerFrame::Control(control).encode())
}

/// Unknown channels, texts, oversized frames, garbage: the command is over, with a reason.
#[tokio::test]
async fn a_broken_frame_ends_the_command_with_a_reason() {
    let cases = [
        Message::binary(b"\x09what".to_vec()),
        Message::binary(Vec::new()),
        Message::binary(b"\0stdin from a server".to_vec()),
        Message::binary(b"\x03{\"exit\":{\"exited\":70000}}".to_vec()),
        Message::binary(vec![1; MAX_PAYLOAD + 2]),
        Message::binary(vec![1; 3 << 20]),
        Message::text("exit"),
        Message::Close(None),
    ];
    for message in cases {
        let what = message.to_string().chars().take(20).collect::<String>();
        let guest = exec_guest(vec![message]).await;
        let (client, _says, mut hears) = client(64).await;
        let end = tokio::time::timeout(BOUND, relay(client, &guest, None)).await.expect("it ends");
        assert_eq!(end, StreamEnd::GuestLost, "{what}");
        let Some(ClientMessage::Binary(told)) = hears.recv().await else { panic!("{what}") };
        let frame = ServerFrame::decode(&told).expect("the shim sends frames");
        let ServerFrame::Control(ServerControl::Failed(problem)) = frame else {
            panic!("{frame:?}")
        };
        assert!([ErrorCode::GuestProtocol, ErrorCode::ExecFailed].contains(&problem.code));
    }
}

/// "exec exits twice", absurd pids: the first end counts, and nothing comes after it.
#[tokio::test]
async fn the_first_end_is_the_end() {
    let guest = exec_guest(vec![
        control(ServerControl::Started { pid: u32::MAX }),
        control(ServerControl::Started { pid: 0 }),
        control(ServerControl::Exit(ExecEnd::Signaled(i32::MIN))),
        control(ServerControl::Exit(ExecEnd::Exited(0))),
        Message::binary(b"\x01and more".to_vec()),
    ]);
    let guest = guest.await;
    let (client, _says, mut hears) = client(64).await;
    let end = tokio::time::timeout(BOUND, relay(client, &guest, None)).await.expect("it ends");
    assert_eq!(end, StreamEnd::Command(ExecEnd::Signaled(i32::MIN)));
    let mut told = Vec::new();
    while let Some(message) = hears.recv().await {
        told.push(message);
    }
    assert_eq!(told.len(), 3, "{told:?}");
}

#[tokio::test]
async fn a_guests_reason_commands_no_terminal() {
    let problem = Problem::new(ErrorCode::ExecNotFound, "no\u{1b}[2J\nerror: such \u{202e}program")
        .cause("x".repeat(30_000))
        .hint("a\r\u{9b}1mb");
    let guest = exec_guest(vec![control(ServerControl::Failed(problem))]).await;
    let (client, _says, mut hears) = client(64).await;
    assert_eq!(relay(client, &guest, None).await, StreamEnd::Command(ExecEnd::Exited(127)));
    let Some(ClientMessage::Binary(told)) = hears.recv().await else { panic!("nothing") };
    let Ok(ServerFrame::Control(ServerControl::Failed(problem))) = ServerFrame::decode(&told)
    else {
        panic!("{told:?}")
    };
    assert_eq!(problem.title, "no[2J error: such program");
    assert_eq!(problem.causes[0].chars().count(), 2001);
    assert_eq!(problem.hint.as_deref(), Some("a1mb"));
}

/// "floods … output": a client that does not read holds the guest up, not the shim's memory.
#[tokio::test]
async fn a_flood_of_output_waits_for_the_client() {
    let (counted, mut count) = mpsc::unbounded_channel();
    let guest = guest(move |stream| {
        let counted = counted.clone();
        async move {
            let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
            let full = [vec![1], vec![b'x'; MAX_PAYLOAD]].concat();
            while socket.send(Message::binary(full.clone())).await.is_ok() {
                let _ = counted.send(full.len());
            }
        }
    });
    let guest = guest.await;
    let (client, _says, hears) = client(4).await;
    let relaying = tokio::spawn(async move { relay(client, &guest, None).await });
    let mut sent = 0;
    // Until nothing more is taken.
    while let Ok(Some(bytes)) = tokio::time::timeout(Duration::from_secs(2), count.recv()).await {
        sent += bytes;
        assert!(sent < 40 << 20, "{sent} bytes were taken for a client that reads nothing");
    }
    drop(hears);
    let end = tokio::time::timeout(BOUND, relaying).await.expect("it ends").expect("no panic");
    assert_eq!(end, StreamEnd::ClientGone);
}

/// A guest that takes a command's stream and never answers: a client that has enough of it is gone
/// for the shim too, and its place is another's.
#[tokio::test]
async fn a_client_may_leave_a_guest_that_never_answers() {
    let guest = guest(|stream| async move {
        let _held = stream;
        std::future::pending::<()>().await;
    });
    let guest = guest.await;
    for _ in 0..200 {
        let (client, says, _hears) = client(64).await;
        let leaving = async {
            tokio::task::yield_now().await;
            drop(says);
        };
        let relaying = tokio::time::timeout(BOUND, relay(client, &guest, None));
        let (end, ()) = tokio::join!(relaying, leaving);
        assert_eq!(end.expect("it ends"), StreamEnd::ClientGone);
    }
}
