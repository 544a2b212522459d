//! Exec streams: between a client and the agent, every frame taken apart and put together again.

use std::collections::VecDeque;

use axum::body::Bytes;
use axum::extract::ws::Message as ClientMessage;
use banger_api::error::{ErrorCode, Problem};
use banger_api::exec::{
    ClientFrame, ExecEnd, ExecRequest, FrameError, MAX_PAYLOAD, STDIN_WINDOW, ServerControl,
    ServerFrame,
};
use banger_api::step;
use banger_host::fault;
use banger_host::logs::printable_line;
use futures_util::stream::SplitStream;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message as GuestMessage};

use crate::guest::{Guest, GuestStream};
use crate::main_process::MainPid;

type GuestSocket = WebSocketStream<GuestStream>;

/// Longest text of a guest's problem that is passed on, in characters.
const MAX_PROBLEM_TEXT: usize = 2000;
/// Most messages of a client that are kept until its command is there.
const MAX_EARLY: usize = 64;
/// Most that a client is read ahead of a guest that takes nothing, in bytes: more than a client has
/// under way that keeps to its window.
const MAX_AHEAD: usize = 2 * STDIN_WINDOW;
/// What a frame that waits takes besides its bytes.
const FRAME_COST: usize = 64;

/// Opens an exec stream to the agent.
pub(crate) async fn open(guest: &Guest, request: &ExecRequest) -> Result<GuestSocket, Problem> {
    let unreachable = |error: &dyn std::error::Error| {
        Problem::new(ErrorCode::ExecFailed, "the guest takes no commands").because(error)
    };
    fault::reach(step::SHIM_EXEC).await.map_err(|error| unreachable(&error))?;
    let stream = guest.open_for_command().await.map_err(|gone| unreachable(&gone))?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_PAYLOAD + 1))
        .max_frame_size(Some(MAX_PAYLOAD + 1))
        .write_buffer_size(0);
    let opening =
        tokio_tungstenite::client_async_with_config("ws://agent/v1/exec", stream, Some(config));
    let (mut socket, _) = opening.await.map_err(|error| unreachable(&error))?;
    let request = serde_json::to_string(request).map_err(|error| unreachable(&error))?;
    socket.send(GuestMessage::text(request)).await.map_err(|error| unreachable(&error))?;
    Ok(socket)
}

/// How an exec stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// The command ended, or could not be run.
    Command(ExecEnd),
    /// The client hung up first.
    ClientGone,
    /// The guest went away, or broke the protocol.
    GuestLost,
}

/// Carries an exec between a client and the guest. `main` is told of the program if it is the VM's
/// main process.
pub(crate) async fn relay<C>(client: C, guest: &Guest, main: Option<&MainPid>) -> StreamEnd
where
    C: Stream<Item = Result<ClientMessage, axum::Error>> + Sink<ClientMessage> + Send,
{
    let (mut to_client, mut from_client) = client.split();
    let mut early = Vec::new();
    let opened = match first_message(&mut from_client).await {
        Ok(request) => tokio::select! {
            opened = open(guest, &request) => opened,
            // A guest may take its time, or not answer at all; its place must not be lost then.
            () = gone(&mut from_client, &mut early) => return StreamEnd::ClientGone,
        },
        Err(problem) => Err(problem),
    };
    match opened {
        Ok(socket) => {
            let early = futures_util::stream::iter(early.into_iter().map(Ok));
            carry(to_client, early.chain(from_client), socket, main).await
        }
        Err(problem) => {
            // A client that is gone does not need to know.
            let _ = send_failure(&mut to_client, problem).await;
            let _ = to_client.close().await;
            StreamEnd::GuestLost
        }
    }
}

/// Waits until a client hangs up whose command is not there yet. What it sends meanwhile, signals
/// and sizes of its terminal, is kept; one that sends too much of it is taken for gone.
async fn gone<S>(from_client: &mut S, early: &mut Vec<ClientMessage>)
where
    S: Stream<Item = Result<ClientMessage, axum::Error>> + Unpin,
{
    while let Some(Ok(message)) = from_client.next().await {
        match message {
            ClientMessage::Close(_) => return,
            message if early.len() < MAX_EARLY => early.push(message),
            _ => return,
        }
    }
}

async fn first_message<S>(from_client: &mut S) -> Result<ExecRequest, Problem>
where
    S: Stream<Item = Result<ClientMessage, axum::Error>> + Unpin,
{
    let bad = |text: &str| Problem::new(ErrorCode::InvalidArgument, text);
    match from_client.next().await {
        Some(Ok(ClientMessage::Text(text))) => serde_json::from_str(&text)
            .map_err(|error| bad("the exec request cannot be read").because(&error)),
        _ => Err(bad("an exec stream begins with a text message, the request")),
    }
}

async fn carry(
    mut to_client: impl Sink<ClientMessage> + Unpin,
    from_client: impl Stream<Item = Result<ClientMessage, axum::Error>> + Unpin,
    guest: GuestSocket,
    main: Option<&MainPid>,
) -> StreamEnd {
    let (to_guest, mut from_guest) = guest.split();
    let end = tokio::select! {
        end = carry_down(&mut from_guest, &mut to_client, main) => end,
        // The client hung up. Dropping the guest's stream makes the agent kill the command.
        () = carry_up(from_client, to_guest) => StreamEnd::ClientGone,
    };
    if end != StreamEnd::ClientGone {
        let _ = to_client.close().await;
    }
    end
}

/// From client to guest, until the client hangs up. While the guest takes nothing, for example
/// because it is paused, the client is read ahead: else nobody would notice that it is gone. All that
/// it may have under way has room here.
async fn carry_up(
    mut from_client: impl Stream<Item = Result<ClientMessage, axum::Error>> + Unpin,
    mut to_guest: impl Sink<GuestMessage> + Unpin,
) {
    let mut ahead: VecDeque<Bytes> = VecDeque::new();
    loop {
        let bytes = match ahead.pop_front() {
            Some(bytes) => bytes,
            None => match next_of_client(&mut from_client).await {
                Some(bytes) => bytes,
                None => return,
            },
        };
        let mut sending = to_guest.send(GuestMessage::Binary(bytes));
        loop {
            let taken: usize = ahead.iter().map(|bytes| bytes.len() + FRAME_COST).sum();
            tokio::select! {
                biased;
                sent = &mut sending => match sent {
                    Ok(()) => break,
                    // The other direction learns why.
                    Err(_) => std::future::pending::<()>().await,
                },
                next = next_of_client(&mut from_client), if taken < MAX_AHEAD => match next {
                    Some(bytes) => ahead.push_back(bytes),
                    None => return,
                },
            }
        }
    }
}

/// The client's next frame; None if it hangs up, or sends what is none. May be cancelled.
async fn next_of_client<S>(from_client: &mut S) -> Option<Bytes>
where
    S: Stream<Item = Result<ClientMessage, axum::Error>> + Unpin,
{
    while let Some(Ok(message)) = from_client.next().await {
        match message {
            ClientMessage::Binary(bytes) => {
                return ClientFrame::decode(&bytes).is_ok().then_some(bytes);
            }
            ClientMessage::Ping(_) | ClientMessage::Pong(_) => {}
            ClientMessage::Close(_) | ClientMessage::Text(_) => return None,
        }
    }
    None
}

/// From guest to client, until the end.
async fn carry_down(
    from_guest: &mut SplitStream<GuestSocket>,
    to_client: &mut (impl Sink<ClientMessage> + Unpin),
    main: Option<&MainPid>,
) -> StreamEnd {
    loop {
        let frame = match next_frame(from_guest).await {
            Ok(message) => message,
            Err(problem) => {
                let _ = send_failure(to_client, problem).await;
                return StreamEnd::GuestLost;
            }
        };
        let end = match ServerFrame::decode(&frame) {
            Ok(ServerFrame::Control(ServerControl::Started { pid })) => {
                main.inspect(|main| main.started(pid));
                None
            }
            Ok(ServerFrame::Control(ServerControl::Exit(end))) => Some(end),
            Ok(ServerFrame::Control(ServerControl::Failed(problem))) => {
                let end = ExecEnd::Exited(failure_code(problem.code));
                let _ = send_failure(to_client, plain(problem)).await;
                return StreamEnd::Command(end);
            }
            _ => None,
        };
        let sent = to_client.send(ClientMessage::Binary(frame)).await;
        match end {
            Some(end) => return StreamEnd::Command(end),
            None if sent.is_err() => return StreamEnd::ClientGone,
            None => {}
        }
    }
}

/// The next message of a guest that is a frame.
pub(crate) async fn next_frame<S>(from_guest: &mut S) -> Result<Bytes, Problem>
where
    S: StreamExt<Item = Result<GuestMessage, SocketError>> + Unpin,
{
    loop {
        match from_guest.next().await {
            Some(Ok(GuestMessage::Binary(bytes))) => {
                return match ServerFrame::decode(&bytes) {
                    Ok(_) => Ok(bytes),
                    Err(error) => Err(protocol_problem(&error)),
                };
            }
            Some(Ok(GuestMessage::Ping(_) | GuestMessage::Pong(_))) => {}
            Some(Ok(_)) => return Err(protocol_problem(&FrameError::Empty)),
            Some(Err(error)) => return Err(lost().because(&error)),
            None => return Err(lost()),
        }
    }
}

fn protocol_problem(error: &FrameError) -> Problem {
    Problem::new(ErrorCode::GuestProtocol, "the guest broke the exec protocol").because(error)
}

fn lost() -> Problem {
    Problem::new(ErrorCode::ExecFailed, "the guest went away while the command ran")
}

/// A guest's problem without anything that could command a terminal.
pub(crate) fn plain(problem: Problem) -> Problem {
    let clean = |text: String| printable_line(&text, MAX_PROBLEM_TEXT);
    Problem {
        code: problem.code,
        title: clean(problem.title),
        causes: problem.causes.into_iter().take(8).map(clean).collect(),
        hint: problem.hint.map(clean),
    }
}

/// The exit code of a command that could not be started.
pub(crate) fn failure_code(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::ExecNotFound => banger_api::exit::NOT_FOUND,
        ErrorCode::ExecNotExecutable => banger_api::exit::NOT_EXECUTABLE,
        _ => banger_api::exit::BANGER_FAILED,
    }
}

async fn send_failure<S>(client: &mut S, problem: Problem) -> Result<(), S::Error>
where
    S: Sink<ClientMessage> + Unpin,
{
    let frame = ServerFrame::Control(ServerControl::Failed(problem)).encode();
    client.send(ClientMessage::Binary(frame.into())).await
}

#[cfg(test)]
mod tests {
    use futures_util::{sink, stream};

    use super::*;

    /// So many bytes of input.
    fn input(bytes: usize) -> Result<ClientMessage, axum::Error> {
        Ok(ClientMessage::Binary(ClientFrame::Stdin(&vec![7; bytes]).encode().into()))
    }

    /// A guest that takes nothing, as one that is paused, or another that takes its time.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_hangs_up_is_noticed_while_its_guest_takes_nothing() {
        let window = (0..STDIN_WINDOW / MAX_PAYLOAD).map(|_| input(MAX_PAYLOAD));
        let stuck = sink::unfold((), async |(), _: GuestMessage| {
            std::future::pending::<Result<(), SocketError>>().await
        });
        carry_up(stream::iter(window), std::pin::pin!(stuck)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_ahead_arrives_in_order_and_is_bounded() {
        let (taken, mut arrived) = tokio::sync::mpsc::unbounded_channel();
        let slow = sink::unfold(taken, async |taken, message: GuestMessage| {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            let _ = taken.send(message.into_data());
            Ok::<_, SocketError>(taken)
        });
        let read = std::cell::Cell::new(0);
        let frames = (0..50).map(|number| {
            read.set(number);
            input(MAX_PAYLOAD - number)
        });
        let endless = stream::iter(frames).chain(stream::pending());
        let slow = std::pin::pin!(slow);
        let carrying = carry_up(endless, slow);
        tokio::select! {
            () = carrying => panic!("nobody hung up"),
            () = async {
                for number in 0..50 {
                    let bytes: Bytes = arrived.recv().await.expect("it goes on");
                    assert_eq!(bytes.len(), MAX_PAYLOAD - number + 1, "the channel, and its bytes");
                    assert!(read.get() <= number + 2 + MAX_AHEAD / (MAX_PAYLOAD - 50));
                }
            } => {}
        }
    }
}
