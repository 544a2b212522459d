//! Running commands, each over one WebSocket, as [`banger_api::exec`] describes.
//!
//! | module | what it decides or does |
//! |---|---|
//! | [`account`] | who a command runs as |
//! | [`command`] | program, arguments, environment, directory: a plan without effects |
//! | [`stdio`] | pipes or a terminal |
//! | [`cgroup`] | what holds a command's processes together |
//! | [`spawn`], [`child`] | the fork, and what the new process does before it becomes the program |
//! | [`input`], [`output`] | the two directions of the stream while it runs |
//! | [`failure`], [`interpreter`] | why it did not start, for people |

pub mod account;
pub mod cgroup;
mod child;
mod command;
mod failure;
mod input;
mod interpreter;
mod output;
mod spawn;
mod stdio;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use banger_api::exec::{ExecEnd, ExecRequest, ServerControl, ServerFrame};
use banger_api::{ErrorCode, Problem, step};
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};

use crate::agent::{Agent, Settings};
use crate::fault;
use account::Accounts;
use cgroup::{Cgroups, Group};
use output::Hangup;
use spawn::Child;
use stdio::Streams;

/// How long a client may take to close the WebSocket after the last frame.
const FAREWELL: Duration = Duration::from_secs(2);

/// A command that runs.
struct Running {
    child: Child,
    streams: Streams,
    group: Group,
    timed_out: AtomicBool,
}

/// Serves one exec stream from its first message to its close.
pub async fn serve(mut socket: WebSocket, agent: &Agent, settings: &Settings) {
    let request = match read_request(&mut socket).await {
        Ok(Some(request)) => request,
        Ok(None) => return,
        Err(problem) => return end(socket, ServerControl::Failed(problem)).await,
    };
    let limit = request.timeout_ms.map(Duration::from_millis);
    match start(agent, settings, &request).await {
        Ok(running) => running.stream(socket, limit, agent.cgroups()).await,
        Err(problem) => end(socket, ServerControl::Failed(problem)).await,
    }
}

/// Waits for the request; None if the client hung up instead.
async fn read_request(socket: &mut WebSocket) -> Result<Option<ExecRequest>, Problem> {
    let invalid = |reason: String| {
        Problem::new(ErrorCode::InvalidArgument, "The exec request makes no sense").cause(reason)
    };
    loop {
        match socket.recv().await {
            Some(Ok(Message::Text(text))) => {
                let request = serde_json::from_str(&text);
                return request.map(Some).map_err(|error| invalid(error.to_string()));
            }
            Some(Ok(Message::Binary(_))) => {
                return Err(invalid("the first message is not text".to_owned()));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(None),
        }
    }
}

async fn start(
    agent: &Agent,
    settings: &Settings,
    request: &ExecRequest,
) -> Result<Running, Problem> {
    let command = command::plan(request, settings, &Accounts::read())?;
    let owner = command.credentials.as_ref().map(|credentials| credentials.uid);
    let (streams, ends) = stdio::open(request.tty, request.stdin, owner)
        .map_err(|error| failure::resource("the command's streams", &error))?;
    let group = agent
        .cgroups()
        .create()
        .map_err(|error| failure::resource("the command's cgroup", &error))?;
    fault::reach(step::GUEST_EXEC)
        .await
        .map_err(|error| failure::resource("the command's process", &error))?;
    match spawn::spawn(agent.reaper(), &command, ends, &group).await {
        Ok(child) => Ok(Running { child, streams, group, timed_out: AtomicBool::new(false) }),
        Err(error) => {
            agent.cgroups().retire(group);
            Err(failure::problem(&command, &error))
        }
    }
}

/// Runs a program of the image as root, without input or output, until it has ended or `limit` is
/// over; then it is killed.
///
/// # Errors
/// The problem that kept it from starting, or what it ended with unless that is success.
pub async fn run_quietly(agent: &Agent, argv: &[&str], limit: Duration) -> Result<(), Problem> {
    let command = command::plain(argv)?;
    let ends =
        stdio::nothing().map_err(|error| failure::resource("the command's streams", &error))?;
    let group = agent
        .cgroups()
        .create()
        .map_err(|error| failure::resource("the command's cgroup", &error))?;
    let spawned = spawn::spawn(agent.reaper(), &command, ends, &group).await;
    let ended = match spawned {
        Ok(mut child) => match timeout(limit, output::wait(&mut child.ended)).await {
            Ok(end) => Ok(end),
            Err(_) => {
                group.kill(child.running());
                Ok(ExecEnd::TimedOut)
            }
        },
        Err(error) => Err(failure::problem(&command, &error)),
    };
    agent.cgroups().retire(group);
    match ended? {
        ExecEnd::Exited(0) => Ok(()),
        other => Err(failure::bad_end(&command, other)),
    }
}

impl Running {
    /// Carries the streams until the command has ended, or its client has.
    async fn stream(mut self, socket: WebSocket, limit: Option<Duration>, cgroups: &Cgroups) {
        let (mut sink, mut source) = socket.split();
        let control = self.streams.control(&self.child);
        let credit = input::Credit::default();
        let started = ServerControl::Started { pid: self.child.pid.unsigned_abs() };
        let ended = async {
            output::send(&mut sink, started).await?;
            let sources = &mut self.streams.outputs;
            output::pump(&mut sink, sources, &credit, self.child.ended.clone()).await
        };
        let outcome = tokio::select! {
            // First, so that a client that hangs up on the last byte still counts as served.
            biased;
            ended = ended => ended,
            () = input::pump(&mut source, &mut self.streams.stdin, &control, &credit) => {
                Err(Hangup)
            }
            never = deadline(limit, &self.child, &self.group, &self.timed_out) => match never {},
        };
        match outcome {
            Ok(end_of_child) => {
                let timed_out = self.timed_out.load(Ordering::Relaxed);
                let how = if timed_out { ExecEnd::TimedOut } else { end_of_child };
                // What it left in the background may go on writing; nobody reads it.
                self.streams.outputs.drain(..).for_each(output::Source::discard);
                if let Ok(socket) = sink.reunite(source) {
                    end(socket, ServerControl::Exit(how)).await;
                }
                // Nobody waits for that.
                cgroups.retire(self.group);
            }
            Err(Hangup) => {
                // Before its input closes.
                self.group.kill(self.child.running());
                cgroups.retire(self.group);
            }
        }
    }
}

/// Kills everything the command started when its time is over. Its end then shows as any other.
async fn deadline(
    limit: Option<Duration>,
    child: &Child,
    group: &Group,
    timed_out: &AtomicBool,
) -> Infallible {
    if let Some(limit) = limit {
        sleep(limit).await;
        if child.ended.borrow().is_none() {
            timed_out.store(true, Ordering::Relaxed);
            group.kill(child.running());
        }
    }
    std::future::pending().await
}

/// Sends the last frame and sees the WebSocket closed.
async fn end(mut socket: WebSocket, last: ServerControl) {
    let frame = ServerFrame::Control(last).encode();
    if socket.send(Message::Binary(frame.into())).await.is_err() {
        return;
    }
    let farewell = async {
        let _ = socket.send(Message::Close(None)).await;
        while let Some(Ok(_)) = socket.recv().await {}
    };
    let _ = timeout(FAREWELL, farewell).await;
}
