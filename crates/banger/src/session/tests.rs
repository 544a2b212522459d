//! Sessions against a server in the same process that speaks the real protocol.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_api::exec::{MAX_PAYLOAD, STDIN_WINDOW, WindowSize};
use futures_util::stream::{SplitSink, SplitStream};
use tokio::io::DuplexStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

/// Longest that anything here may take.
const BOUND: Duration = Duration::from_secs(30);

/// The far end of a session.
struct Server {
    sink: SplitSink<WebSocketStream<DuplexStream>, Message>,
    source: SplitStream<WebSocketStream<DuplexStream>>,
}

impl Server {
    async fn request(&mut self) -> ExecRequest {
        match self.source.next().await {
            Some(Ok(Message::Text(text))) => serde_json::from_str(&text).expect("a request"),
            other => panic!("the first message is {other:?}"),
        }
    }

    async fn send(&mut self, frame: ServerFrame<'_>) {
        self.sink.send(Message::binary(frame.encode())).await.expect("the client is there");
    }

    async fn control(&mut self, control: ServerControl) {
        self.send(ServerFrame::Control(control)).await;
    }

    async fn start(&mut self) -> ExecRequest {
        let request = self.request().await;
        self.control(ServerControl::Started { pid: 7 }).await;
        request
    }

    async fn exit(&mut self, code: u8) {
        self.control(ServerControl::Exit(ExecEnd::Exited(code))).await;
    }

    /// The next frame from the client; None when it has hung up.
    async fn next(&mut self) -> Option<Vec<u8>> {
        match self.source.next().await {
            Some(Ok(Message::Binary(bytes))) => Some(bytes.to_vec()),
            _ => None,
        }
    }
}

/// What was written to a stream.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("no panic").clone()
    }
}

/// A stdin that never says anything, as a terminal nobody types at.
struct Silence(std::sync::mpsc::Receiver<()>);

impl Read for Silence {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(0)
    }
}

/// A stdout that fails.
struct Broken(io::ErrorKind);

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Near {
    surroundings: Surroundings,
    signals: mpsc::UnboundedSender<SessionSignal>,
    stdout: Written,
    stderr: Written,
}

fn near(stdin: impl Read + Send + 'static) -> Near {
    let (stdout, stderr) = (Written::default(), Written::default());
    let (sender, signals) = mpsc::unbounded_channel();
    let surroundings = Surroundings {
        stdin: Some(Box::new(stdin)),
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(stderr.clone()),
        signals,
        takes_terminal: false,
        trace: Default::default(),
    };
    Near { surroundings, signals: sender, stdout, stderr }
}

/// Runs a session against a server that does this.
async fn session<F>(
    request: ExecRequest,
    surroundings: Surroundings,
    serve: impl FnOnce(Server) -> F,
) -> Result<Outcome, SessionError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (here, there) = tokio::io::duplex(256 * 1024);
    let client = WebSocketStream::from_raw_socket(here, Role::Client, None).await;
    let server = WebSocketStream::from_raw_socket(there, Role::Server, None).await;
    let (sink, source) = server.split();
    let serving = tokio::spawn(serve(Server { sink, source }));
    let outcome = tokio::time::timeout(BOUND, run(client, &request, surroundings))
        .await
        .expect("the session ends");
    tokio::time::timeout(BOUND, serving).await.expect("the server ends").expect("it is content");
    outcome
}

fn command(word: &str) -> ExecRequest {
    ExecRequest { argv: vec![word.to_owned()], stdin: true, ..ExecRequest::default() }
}

#[tokio::test]
async fn streams_and_exit_code_arrive() {
    let near = near(&b""[..]);
    let outcome = session(command("x"), near.surroundings, |mut server| async move {
        assert_eq!(server.start().await.argv, ["x"]);
        server.send(ServerFrame::Stdout(b"out\0")).await;
        server.send(ServerFrame::Stderr(b"err")).await;
        server.send(ServerFrame::Stdout(b"")).await;
        server.send(ServerFrame::Stdout(b"more")).await;
        server.exit(3).await;
    });
    assert_eq!(outcome.await.expect("it ends"), Outcome::Ended(ExecEnd::Exited(3)));
    assert_eq!(near.stdout.bytes(), b"out\0more");
    assert_eq!(near.stderr.bytes(), b"err");
}

#[tokio::test]
async fn ends_become_exit_codes() {
    let cases = [(ExecEnd::Exited(0), 0), (ExecEnd::Signaled(9), 137), (ExecEnd::TimedOut, 124)];
    for (end, code) in cases {
        let near = near(&b""[..]);
        let outcome = session(command("x"), near.surroundings, |mut server| async move {
            server.start().await;
            server.control(ServerControl::Exit(end)).await;
        });
        assert_eq!(outcome.await.expect("it ends").exit_code(), code);
    }
}

#[tokio::test]
async fn ten_megabytes_each_way() {
    let bytes: Vec<u8> = (0..10_000_000u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let near = near(io::Cursor::new(bytes.clone()));
    let outcome = session(command("cat"), near.surroundings, |mut server| async move {
        server.start().await;
        let mut ahead = 0;
        while let Some(message) = server.next().await {
            match ClientFrame::decode(&message).expect("a frame") {
                ClientFrame::Stdin(bytes) => {
                    ahead += bytes.len();
                    assert!(ahead <= STDIN_WINDOW, "{ahead} bytes without credit");
                    server.send(ServerFrame::Stdout(bytes)).await;
                    let credit = u32::try_from(bytes.len()).expect("small");
                    server.control(ServerControl::StdinCredit(credit)).await;
                    ahead -= bytes.len();
                }
                ClientFrame::Control(ClientControl::StdinEof) => break,
                ClientFrame::Control(other) => panic!("{other:?}"),
            }
        }
        server.exit(0).await;
    });
    assert_eq!(outcome.await.expect("it ends").exit_code(), 0);
    assert!(near.stdout.bytes() == bytes, "every byte comes back");
}

#[tokio::test]
async fn a_signal_passes_a_command_that_does_not_read() {
    let near = near(io::repeat(7));
    let signals = near.signals.clone();
    let outcome = session(command("sleep"), near.surroundings, |mut server| async move {
        server.start().await;
        let mut seen = 0;
        while seen < STDIN_WINDOW {
            let message = server.next().await.expect("input");
            assert!(message.len() <= MAX_PAYLOAD + 1);
            seen += message.len() - 1;
        }
        signals.send(SessionSignal::Number(15)).expect("the session listens");
        let message = server.next().await.expect("the signal");
        let want = ClientFrame::Control(ClientControl::Signal(15));
        assert_eq!(ClientFrame::decode(&message).expect("a frame"), want);
        server.control(ServerControl::Exit(ExecEnd::Signaled(15))).await;
    });
    assert_eq!(outcome.await.expect("it ends").exit_code(), 143);
}

#[tokio::test]
async fn a_stdin_that_blocks_does_not_keep_the_session() {
    let (_keeps_it_silent, silence) = std::sync::mpsc::channel();
    let near = near(Silence(silence));
    let outcome = session(command("true"), near.surroundings, |mut server| async move {
        server.start().await;
        server.exit(0).await;
    });
    assert_eq!(outcome.await.expect("it ends").exit_code(), 0);
}

#[tokio::test]
async fn a_resize_reaches_a_command_with_a_terminal() {
    let size = |rows, cols| WindowSize { rows, cols };
    let near = near(&b""[..]);
    near.signals.send(SessionSignal::Resized(size(40, 120))).expect("it listens");
    let request = ExecRequest { tty: Some(size(24, 80)), ..command("top") };
    let outcome = session(request, near.surroundings, move |mut server| async move {
        assert_eq!(server.start().await.tty, Some(size(24, 80)));
        loop {
            let message = server.next().await.expect("a frame");
            match ClientFrame::decode(&message).expect("a frame") {
                ClientFrame::Control(ClientControl::StdinEof) => {}
                frame => {
                    let want = ClientFrame::Control(ClientControl::Resize(size(40, 120)));
                    assert_eq!(frame, want);
                    break;
                }
            }
        }
        server.exit(0).await;
    });
    assert_eq!(outcome.await.expect("it ends").exit_code(), 0);
}

#[tokio::test]
async fn a_signal_to_a_session_with_a_terminal_hangs_up() {
    let near = near(&b""[..]);
    let signals = near.signals.clone();
    let request = ExecRequest { tty: Some(WindowSize { rows: 24, cols: 80 }), ..command("vi") };
    let outcome = session(request, near.surroundings, |mut server| async move {
        server.start().await;
        signals.send(SessionSignal::Number(15)).expect("the session listens");
        while server.next().await.is_some() {}
    });
    assert_eq!(outcome.await.expect("it ends"), Outcome::HungUp(143));
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_command_quietly() {
    let mut near = near(&b""[..]);
    near.surroundings.stdout = Box::new(Broken(io::ErrorKind::BrokenPipe));
    let outcome = session(command("yes"), near.surroundings, |mut server| async move {
        server.start().await;
        let frame = ServerFrame::Stdout(&[b'y'; 1000]).encode();
        // It may have hung up before all is sent.
        while server.sink.send(Message::binary(frame.clone())).await.is_ok() {}
    });
    assert_eq!(outcome.await.expect("it ends"), Outcome::HungUp(141));
}

#[tokio::test]
async fn a_full_disk_is_an_error() {
    let mut near = near(&b""[..]);
    near.surroundings.stdout = Box::new(Broken(io::ErrorKind::StorageFull));
    let outcome = session(command("yes"), near.surroundings, |mut server| async move {
        server.start().await;
        server.send(ServerFrame::Stdout(b"y")).await;
        while server.next().await.is_some() {}
    });
    assert!(matches!(outcome.await, Err(SessionError::Output(_))));
}

/// A stdout that takes nothing until it is let go.
struct Stuck(std::sync::mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_slow_reader_slows_the_server_and_can_be_interrupted() {
    let mut near = near(&b""[..]);
    let (_keeps_it_stuck, stuck) = std::sync::mpsc::channel();
    near.surroundings.stdout = Box::new(Stuck(stuck));
    let signals = near.signals.clone();
    let outcome = session(command("yes"), near.surroundings, |mut server| async move {
        server.start().await;
        let frame = Message::binary(ServerFrame::Stdout(&[b'y'; MAX_PAYLOAD]).encode());
        let mut sent = 0;
        // Nobody reads, so this must stall long before a thousand frames.
        let quiet = Duration::from_millis(300);
        while tokio::time::timeout(quiet, server.sink.send(frame.clone())).await.is_ok() {
            sent += 1;
            assert!(sent < 100, "the server is not slowed");
        }
        for _ in 0..3 {
            signals.send(SessionSignal::Number(2)).expect("the session listens");
        }
    });
    assert_eq!(outcome.await.expect("it ends"), Outcome::HungUp(130));
}

#[tokio::test]
async fn an_interrupt_ends_the_wait_for_a_reader_after_the_command() {
    let mut near = near(&b""[..]);
    let (_keeps_it_stuck, stuck) = std::sync::mpsc::channel();
    near.surroundings.stdout = Box::new(Stuck(stuck));
    let signals = near.signals.clone();
    let outcome = session(command("x"), near.surroundings, |mut server| async move {
        server.start().await;
        server.send(ServerFrame::Stdout(b"x")).await;
        server.exit(0).await;
        // It hangs up when it has heard of the command's end.
        while server.next().await.is_some() {}
        let _ = signals.send(SessionSignal::Number(2));
    });
    assert_eq!(outcome.await.expect("it ends"), Outcome::HungUp(130));
}

#[tokio::test]
async fn a_command_that_cannot_be_run_leaves_stdin_untouched() {
    struct Untouchable;
    impl Read for Untouchable {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("stdin is read");
        }
    }
    let near = near(Untouchable);
    let outcome = session(command("nope"), near.surroundings, |mut server| async move {
        server.request().await;
        let problem = Problem::new(ErrorCode::ExecNotFound, "no program called nope");
        server.control(ServerControl::Failed(problem)).await;
    });
    let failure = Failure::from(outcome.await.expect_err("it is refused"));
    assert_eq!(failure.exit_code(), 127);
}

#[tokio::test]
async fn a_vm_that_goes_away_is_an_error_after_what_it_said() {
    let near = near(&b""[..]);
    let outcome = session(command("x"), near.surroundings, |mut server| async move {
        server.start().await;
        server.send(ServerFrame::Stdout(b"last words")).await;
    });
    let error = outcome.await.expect_err("it is lost");
    assert!(matches!(error, SessionError::Lost(_)), "{error:?}");
    assert_eq!(Failure::from(error).exit_code(), 125);
    assert_eq!(near.stdout.bytes(), b"last words");
}

#[tokio::test]
async fn nonsense_is_an_error() {
    let near = near(&b""[..]);
    let outcome = session(command("x"), near.surroundings, |mut server| async move {
        server.request().await;
        server.sink.send(Message::binary(vec![9, 9])).await.expect("the client is there");
    });
    assert!(matches!(outcome.await, Err(SessionError::Frame(FrameError::WrongChannel(9)))));
}

#[tokio::test]
async fn a_command_line_that_is_too_long_is_refused_here() {
    let near = near(&b""[..]);
    let long = command(&"x".repeat(MAX_REQUEST));
    let outcome = session(long, near.surroundings, |_| async {}).await;
    let failure = Failure::from(outcome.expect_err("it is too long"));
    assert_eq!(failure.code(), Some(ErrorCode::InvalidArgument));
}

#[tokio::test]
async fn a_guest_that_the_shim_loses_is_no_refusal() {
    let near = near(&b""[..]);
    let outcome = session(command("x"), near.surroundings, |mut server| async move {
        server.start().await;
        let problem = Problem::new(ErrorCode::GuestProtocol, "the guest went away");
        server.control(ServerControl::Failed(problem)).await;
    });
    assert!(matches!(outcome.await, Err(SessionError::Broken(_))));
}
