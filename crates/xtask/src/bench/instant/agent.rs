//! A guest's agent with no shim between: as much of its protocol as it takes to run one command.
//!
//! `banger_api::agent` describes the protocol. What comes from the guest is read up to a limit, and
//! otherwise believed: the guest is the bench's own.

use std::fmt::Display;
use std::future::poll_fn;

use banger_api::agent::{Configure, Configured, MAX_BODY, NONCE_LEN, PREAMBLE};
use banger_api::exec::{ExecEnd, ExecRequest, ServerControl, ServerFrame};
use banger_host::{http, random};
use futures_util::{SinkExt, StreamExt};
use hyper::Method;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

use super::contender::Reason;

/// Most bytes before the agent's greeting; a guest that was saved leaves none over.
const MAX_LEFT_OVER: usize = 64 << 10;

type Stream = Compat<yamux::Stream>;

/// An agent that was greeted, with the two streams that a command takes.
pub(super) struct Agent {
    configure: Stream,
    exec: Stream,
}

impl Agent {
    /// Greets the agent, and waits until it answers. Must be called in a runtime, which keeps the
    /// connection going.
    pub(super) async fn greet(stream: UnixStream) -> Result<Self, Reason> {
        let mut stream = BufReader::new(stream);
        greet(&mut stream).await?;
        let mut connection = Connection::new(stream.compat(), Config::default(), Mode::Client);
        let (configure, exec) = (open(&mut connection).await?, open(&mut connection).await?);
        tokio::spawn(drive(connection));
        Ok(Self { configure, exec })
    }

    /// Tells the guest who it is, and then has it run a command.
    pub(super) async fn run(
        self,
        identity: &Configure,
        command: &ExecRequest,
    ) -> Result<ExecEnd, Reason> {
        let refused = because("the agent does not configure its guest");
        let answer = http::request(self.configure, Method::POST, "/v1/configure", Some(identity));
        let _: Configured =
            http::read_json(answer.await.map_err(refused)?, MAX_BODY).await.map_err(refused)?;
        exec(self.exec, command).await
    }
}

/// Sends the preamble with a fresh nonce, and discards what comes until both come back.
async fn greet(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), Reason> {
    let gone = because("the agent does not greet");
    let mut hello = PREAMBLE.to_vec();
    hello.extend_from_slice(&random::bytes::<NONCE_LEN>());
    stream.write_all(&hello).await.map_err(gone)?;
    let mut seen = Vec::new();
    for _ in 0..MAX_LEFT_OVER {
        // Byte by byte, so that nothing behind the answer is swallowed.
        seen.push(stream.read_u8().await.map_err(gone)?);
        if seen.ends_with(&hello) {
            return Ok(());
        }
    }
    Err(Reason::new("the agent sends something else than a greeting"))
}

async fn open<T>(connection: &mut Connection<T>) -> Result<Stream, Reason>
where
    T: futures_util::AsyncRead + futures_util::AsyncWrite + Unpin,
{
    let opened = poll_fn(|context| connection.poll_new_outbound(context)).await;
    opened.map(FuturesAsyncReadCompatExt::compat).map_err(because("no stream to the agent"))
}

/// Keeps the streams going until the connection ends.
async fn drive<T>(mut connection: Connection<T>)
where
    T: futures_util::AsyncRead + futures_util::AsyncWrite + Unpin,
{
    // The guest opens no streams; one that it opened would be dropped, which resets it.
    while let Some(Ok(_)) = poll_fn(|context| connection.poll_next_inbound(context)).await {}
}

async fn exec(stream: Stream, command: &ExecRequest) -> Result<ExecEnd, Reason> {
    let broken = because("the agent runs no command");
    let opening = tokio_tungstenite::client_async("ws://agent/v1/exec", stream);
    let (mut socket, _) = opening.await.map_err(broken)?;
    let request = serde_json::to_string(command).expect("a request has only string keys");
    socket.send(Message::text(request)).await.map_err(broken)?;
    while let Some(message) = socket.next().await {
        let Message::Binary(bytes) = message.map_err(broken)? else { continue };
        match ServerFrame::decode(&bytes).map_err(because("the agent breaks the protocol"))? {
            ServerFrame::Control(ServerControl::Exit(end)) => return Ok(end),
            ServerFrame::Control(ServerControl::Failed(problem)) => {
                return Err(Reason::new(&problem.to_string()));
            }
            _ => {}
        }
    }
    Err(Reason::new("the agent hung up before the command ended"))
}

fn because<E: Display>(what: &'static str) -> impl Fn(E) -> Reason + Copy {
    move |error| Reason::new(&format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncBufReadExt;

    use super::*;

    const EXIT: ServerFrame<'_> = ServerFrame::Control(ServerControl::Exit(ExecEnd::Exited(3)));

    /// A guest whose agent takes any identity, and whose commands say `frames`.
    async fn serve(mut stream: UnixStream, frames: Vec<Vec<u8>>) {
        let mut hello = vec![0; PREAMBLE.len() + NONCE_LEN];
        stream.read_exact(&mut hello).await.unwrap();
        // Half of an answer to somebody else, then ours.
        stream.write_all(&[&hello[..20], &hello].concat()).await.unwrap();
        let mut connection = Connection::new(stream.compat(), Config::default(), Mode::Server);
        while let Some(Ok(stream)) = poll_fn(|context| connection.poll_next_inbound(context)).await
        {
            tokio::spawn(answer(BufReader::new(stream.compat()), frames.clone()));
        }
    }

    async fn answer(mut stream: BufReader<Stream>, frames: Vec<Vec<u8>>) {
        let is_exec = stream.fill_buf().await.unwrap().starts_with(b"GET /v1/exec ");
        if !is_exec {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            stream.write_all(answer).await.unwrap();
            // It is read until the other end has hung up.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            return;
        }
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let request = socket.next().await.unwrap().unwrap().into_text().unwrap();
        assert!(request.contains("\"true\""), "{request}");
        for frame in frames {
            socket.send(Message::binary(frame)).await.unwrap();
        }
        socket.close(None).await.unwrap();
        // Until the other end has closed it, too.
        while let Some(Ok(_)) = socket.next().await {}
    }

    async fn run(frames: Vec<Vec<u8>>) -> Result<ExecEnd, Reason> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(serve(theirs, frames));
        let command = ExecRequest { argv: vec!["true".to_owned()], ..ExecRequest::default() };
        let identity = crate::bench::instant::floor::identity();
        Agent::greet(ours).await?.run(&identity, &command).await
    }

    #[tokio::test]
    async fn a_commands_end_is_told_whatever_it_says_before() {
        let started = ServerFrame::Control(ServerControl::Started { pid: 7 });
        let frames = [started, ServerFrame::Stdout(b"words"), EXIT];
        let frames = frames.iter().map(ServerFrame::encode).collect();
        assert_eq!(run(frames).await, Ok(ExecEnd::Exited(3)));
    }

    #[tokio::test]
    async fn an_agent_that_hangs_up_or_is_none_is_a_reason() {
        assert!(run(vec![]).await.unwrap_err().to_string().contains("hung up"));
        assert!(run(vec![b"\x09".to_vec()]).await.unwrap_err().to_string().contains("channel"));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let babble = async {
            // Its other end goes when it has heard enough.
            while theirs.write_all(&[b'x'; 1024]).await.is_ok() {}
        };
        let (greeted, ()) = tokio::join!(Agent::greet(ours), babble);
        assert!(greeted.err().unwrap().to_string().contains("something else"));
    }
}
