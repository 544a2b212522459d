//! The host's side of a connection, for tests: greeting, multiplexing, requests, commands.

use std::time::Duration;

use banger_api::Problem;
use banger_api::agent::{NONCE_LEN, PREAMBLE};
use banger_api::exec::{
    ClientControl, ClientFrame, ExecEnd, ExecRequest, MAX_PAYLOAD, ServerControl, ServerFrame,
};
use futures_util::future::{Either, poll_fn};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

type Stream = Compat<yamux::Stream>;

/// Greets the agent and discards what comes before it greets back.
pub async fn greet_and_wait<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let greeting = [&PREAMBLE[..], &[0x5a; NONCE_LEN]].concat();
    stream.write_all(&greeting).await.expect("greeted");
    let mut answer = Vec::new();
    while !answer.ends_with(&greeting) {
        answer.push(stream.read_u8().await.expect("a greeting back"));
    }
}

/// A connection to an agent.
pub struct Host {
    open: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Host {
    /// Greets the agent after some garbage, as a stream may hold.
    pub async fn connect<S>(mut stream: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        stream.write_all(b"left over from another connection").await.expect("sent");
        Self::greet(stream).await
    }

    /// Greets the agent.
    pub async fn greet<S>(mut stream: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        greet_and_wait(&mut stream).await;
        let (open, requests) = mpsc::channel(1);
        Self { open, driver: tokio::spawn(drive(stream, requests)) }
    }

    /// Opens a stream.
    pub async fn open(&self) -> Stream {
        let (sender, receiver) = oneshot::channel();
        self.open.send(sender).await.expect("a live connection");
        receiver.await.expect("a stream").compat()
    }

    /// Hangs up the whole connection.
    pub fn hang_up(self) {
        self.driver.abort();
    }

    /// Makes one request; returns the status and the body.
    pub async fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = self.open().await;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("answered");
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// Starts a command.
    pub async fn exec(&self, request: &ExecRequest) -> Exec {
        let stream = self.open().await;
        let (mut socket, _) = tokio_tungstenite::client_async("ws://agent/v1/exec", stream)
            .await
            .expect("an upgrade");
        let json = serde_json::to_string(request).expect("plain data");
        socket.send(Message::text(json)).await.expect("sent");
        Exec { socket, credit: banger_api::exec::STDIN_WINDOW }
    }

    /// Runs a command to its end without input.
    pub async fn run(&self, request: &ExecRequest) -> Outcome {
        self.exec(request).await.finish().await
    }
}

async fn drive<S>(stream: S, mut requests: mpsc::Receiver<oneshot::Sender<yamux::Stream>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = yamux::Config::default();
    let mut connection = yamux::Connection::new(stream.compat(), config, yamux::Mode::Client);
    loop {
        let next = poll_fn(|cx| {
            connection.poll_next_inbound(cx).map(|it| it.is_some_and(|it| it.is_ok()))
        });
        let alive = {
            let request = std::pin::pin!(requests.recv());
            let next = std::pin::pin!(next);
            match futures_util::future::select(request, next).await {
                Either::Left((Some(request), _)) => Some(request),
                Either::Left((None, _)) | Either::Right((false, _)) => return,
                Either::Right((true, _)) => None,
            }
        };
        if let Some(request) = alive {
            let stream = poll_fn(|cx| connection.poll_new_outbound(cx)).await.expect("a stream");
            let _ = request.send(stream);
        }
    }
}

/// A command under way.
pub struct Exec {
    socket: WebSocketStream<Stream>,
    credit: usize,
}

/// A frame with its own bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// Output.
    Stdout(Vec<u8>),
    /// Output.
    Stderr(Vec<u8>),
    /// Everything else.
    Control(ServerControl),
}

/// What a command did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Its output.
    pub stdout: Vec<u8>,
    /// Its output.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub end: Option<ExecEnd>,
    /// Why it did not start.
    pub failed: Option<Problem>,
}

impl Exec {
    /// The next frame; None once the agent has closed the stream.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.take().await? {
                return Some(frame);
            }
        }
    }

    /// The next message: a frame, or nothing but credit.
    async fn take(&mut self) -> Option<Option<Frame>> {
        const PATIENCE: Duration = Duration::from_secs(60);
        let next = tokio::time::timeout(PATIENCE, self.socket.next());
        let Ok(Message::Binary(bytes)) = next.await.expect("a frame in time")? else {
            return None;
        };
        match ServerFrame::decode(&bytes).expect("a frame") {
            ServerFrame::Stdout(bytes) => Some(Some(Frame::Stdout(bytes.to_vec()))),
            ServerFrame::Stderr(bytes) => Some(Some(Frame::Stderr(bytes.to_vec()))),
            ServerFrame::Control(ServerControl::StdinCredit(bytes)) => {
                self.credit += bytes as usize;
                Some(None)
            }
            ServerFrame::Control(control) => Some(Some(Frame::Control(control))),
        }
    }

    /// Waits for the first frame and returns the pid.
    pub async fn started(&mut self) -> u32 {
        match self.next().await {
            Some(Frame::Control(ServerControl::Started { pid })) => pid,
            other => panic!("not started: {other:?}"),
        }
    }

    /// Sends a frame that the agent may not take any more.
    pub async fn try_send(&mut self, frame: ClientFrame<'_>) {
        let _ = self.socket.send(Message::binary(frame.encode())).await;
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: ClientFrame<'_>) {
        self.socket.send(Message::binary(frame.encode())).await.expect("sent");
    }

    /// Sends a control frame.
    pub async fn control(&mut self, control: ClientControl) {
        self.send(ClientFrame::Control(control)).await;
    }

    /// Sends input while taking output, then the end of input; returns everything.
    ///
    /// A command may end before it has read all of it; the rest is then not sent.
    pub async fn feed(mut self, mut input: &[u8]) -> Outcome {
        let mut outcome = Outcome::default();
        while !input.is_empty() && outcome.is_open() {
            let portion = input.len().min(self.credit).min(MAX_PAYLOAD);
            if portion == 0 {
                // Credit comes with what is read; nothing else may come for a while.
                match self.take().await {
                    Some(Some(frame)) => outcome.add(frame),
                    Some(None) => {}
                    None => return outcome,
                }
                continue;
            }
            self.credit -= portion;
            self.try_send(ClientFrame::Stdin(&input[..portion])).await;
            input = &input[portion..];
        }
        self.try_send(ClientFrame::Control(ClientControl::StdinEof)).await;
        self.finish_into(outcome).await
    }

    /// Takes everything until the end.
    pub async fn finish(self) -> Outcome {
        self.finish_into(Outcome::default()).await
    }

    async fn finish_into(mut self, mut outcome: Outcome) -> Outcome {
        while let Some(frame) = self.next().await {
            outcome.add(frame);
        }
        outcome
    }
}

impl Outcome {
    fn is_open(&self) -> bool {
        self.end.is_none() && self.failed.is_none()
    }

    fn add(&mut self, frame: Frame) {
        assert!(self.is_open(), "nothing follows the end");
        match frame {
            Frame::Stdout(bytes) => self.stdout.extend_from_slice(&bytes),
            Frame::Stderr(bytes) => self.stderr.extend_from_slice(&bytes),
            Frame::Control(ServerControl::Exit(end)) => self.end = Some(end),
            Frame::Control(ServerControl::Failed(problem)) => self.failed = Some(problem),
            Frame::Control(_) => {}
        }
    }
}
