//! Operations of a daemon that is a few lines of this file.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_api::operation::{OperationState, Progress};
use banger_host::paths::StateDirs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::*;

/// Longest that anything here may take.
const BOUND: Duration = Duration::from_secs(20);

/// A daemon that tells what it was asked, and sends the events that the test gives it.
struct Daemon {
    _tmp: tempfile::TempDir,
    client: Client,
    asked: Arc<Mutex<Vec<String>>>,
    events: mpsc::UnboundedSender<OperationEvent>,
}

impl Daemon {
    fn start() -> Self {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let runtime = tmp.path().to_owned();
        let listener = banger_host::connect::listen_async(&runtime, "api.sock").expect("bind");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (events, receiver) = mpsc::unbounded_channel();
        tokio::spawn(serve(listener, receiver, Arc::clone(&asked)));
        let dirs = StateDirs { data: runtime.clone(), config: runtime.clone(), runtime };
        Self { client: Client::of(dirs), asked, events, _tmp: tmp }
    }

    fn send(&self, event: OperationEvent) {
        self.events.send(event).expect("the daemon lives");
    }

    fn was_asked(&self, line: &str) -> bool {
        self.asked.lock().expect("no panic").iter().any(|asked| asked == line)
    }

    async fn wait_until_asked(&self, line: &str) {
        let asked = async {
            while !self.was_asked(line) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(BOUND, asked).await.expect("it is asked");
    }

    async fn follow(
        &self,
        patience: Patience,
        interrupts: mpsc::UnboundedReceiver<i32>,
    ) -> Result<Followed, Failure> {
        let operation = Operation {
            id: "op".to_owned(),
            description: "work".to_owned(),
            state: OperationState::Running,
        };
        let mut interrupts = Interrupts::from_channel(interrupts);
        let ui = Ui::silent();
        let followed = follow(&self.client, &operation, patience, (&ui, &mut interrupts));
        tokio::time::timeout(BOUND, followed).await.expect("it ends")
    }
}

/// Answers one request per connection; the events go to whoever asks for them first.
async fn serve(
    listener: UnixListener,
    events: mpsc::UnboundedReceiver<OperationEvent>,
    asked: Arc<Mutex<Vec<String>>>,
) {
    let mut events = Some(events);
    while let Ok((mut stream, _)) = listener.accept().await {
        let line = request_line(&mut stream).await;
        let is_for_events = line.contains("/events");
        asked.lock().expect("no panic").push(line);
        match events.take_if(|_| is_for_events) {
            Some(events) => drop(tokio::spawn(send_events(stream, events))),
            None => {
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            }
        }
    }
}

async fn request_line(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { break };
        head.push(byte);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    text.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned()
}

/// The events as a body in chunks, as the daemon's. Its end never comes: the connection breaks.
async fn send_events(mut stream: UnixStream, mut events: mpsc::UnboundedReceiver<OperationEvent>) {
    let head =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let _ = stream.write_all(head).await;
    while let Some(event) = events.recv().await {
        let json = serde_json::to_string(&event).expect("plain data");
        let data = format!("data: {json}\n\n");
        let _ = stream.write_all(format!("{:x}\r\n{data}\r\n", data.len()).as_bytes()).await;
    }
}

fn cancelled() -> OperationEvent {
    OperationEvent::Failed { problem: Problem::new(ErrorCode::Cancelled, "cancelled") }
}

const NOTHING: OperationEvent = OperationEvent::Succeeded { result: OperationResult::Nothing };

#[tokio::test]
async fn work_is_followed_to_its_result() {
    let daemon = Daemon::start();
    daemon.send(OperationEvent::Progress(Progress::stage("image.bootstrap", "building")));
    daemon.send(OperationEvent::Warning { message: "old".to_owned() });
    daemon.send(NOTHING);
    let (_signals, interrupts) = mpsc::unbounded_channel();
    let followed = daemon.follow(Patience::Lease, interrupts).await.expect("it succeeds");
    assert_eq!(followed.result, OperationResult::Nothing);
    assert!(followed.lease.is_some(), "the lease is kept until the caller lets go");
    assert_eq!(followed.interrupted, None);
    assert!(daemon.was_asked("GET /v1/operations/op/events?lease=true"));
}

#[tokio::test]
async fn a_failure_is_the_daemons_own() {
    let daemon = Daemon::start();
    let problem = Problem::new(ErrorCode::PullFailed, "no luck").hint("banger doctor");
    daemon.send(OperationEvent::Failed { problem });
    let (_signals, interrupts) = mpsc::unbounded_channel();
    let failure = daemon.follow(Patience::Watch, interrupts).await.expect_err("it fails");
    assert_eq!(failure.code(), Some(ErrorCode::PullFailed));
    assert!(daemon.was_asked("GET /v1/operations/op/events?lease=false"));
}

#[tokio::test]
async fn an_interrupt_cancels_and_waits_until_all_is_cleaned_up() {
    let daemon = Daemon::start();
    let (signals, interrupts) = mpsc::unbounded_channel();
    signals.send(2).expect("it listens");
    let (followed, ()) = tokio::join!(daemon.follow(Patience::Lease, interrupts), async {
        daemon.wait_until_asked("DELETE /v1/operations/op").await;
        daemon.send(cancelled());
    });
    let failure = followed.expect_err("it is cancelled");
    assert!(matches!(failure, Failure::Quiet(130)), "{failure:?}");
}

#[tokio::test]
async fn a_second_interrupt_does_not_wait() {
    let daemon = Daemon::start();
    let (signals, interrupts) = mpsc::unbounded_channel();
    signals.send(2).expect("it listens");
    signals.send(15).expect("it listens");
    let failure = daemon.follow(Patience::Lease, interrupts).await.expect_err("it is left");
    assert!(matches!(failure, Failure::Quiet(143)), "{failure:?}");
}

#[tokio::test]
async fn an_interrupt_that_comes_too_late_is_told() {
    let daemon = Daemon::start();
    let (signals, interrupts) = mpsc::unbounded_channel();
    signals.send(2).expect("it listens");
    let (followed, ()) = tokio::join!(daemon.follow(Patience::Lease, interrupts), async {
        daemon.wait_until_asked("DELETE /v1/operations/op").await;
        daemon.send(NOTHING);
    });
    assert_eq!(followed.expect("it succeeded").interrupted, Some(2));
}

#[tokio::test]
async fn an_interrupt_ends_the_watching_and_not_the_work() {
    let daemon = Daemon::start();
    let (signals, interrupts) = mpsc::unbounded_channel();
    signals.send(2).expect("it listens");
    let failure = daemon.follow(Patience::Watch, interrupts).await.expect_err("it is left");
    assert!(matches!(failure, Failure::Quiet(130)), "{failure:?}");
    assert!(!daemon.was_asked("DELETE /v1/operations/op"));
}

#[tokio::test]
async fn a_daemon_that_goes_away_is_an_error() {
    let Daemon { client, events, _tmp, asked } = Daemon::start();
    drop(events);
    let (events, _) = mpsc::unbounded_channel();
    let daemon = Daemon { client, events, _tmp, asked };
    let (_signals, interrupts) = mpsc::unbounded_channel();
    let failure = daemon.follow(Patience::Lease, interrupts).await.expect_err("it is gone");
    assert_eq!(failure.code(), Some(ErrorCode::DaemonUnavailable));
}
