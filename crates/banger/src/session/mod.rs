//! A command in a guest, as if it ran here: its streams, its terminal, its signals, its end.
//!
//! Three activities share one exec stream and never wait for each other: receiving (frames from the
//! guest to the writer thread), transmitting (control frames first, then stdin as far as there is
//! credit), and listening to this process's own signals. So a command that does not read its input
//! can be interrupted, and a reader that does not read our output slows the command and nothing
//! else. Reading stdin and writing stdout block, each in a thread of its own.

mod input;
mod output;
mod signals;
mod terminal_mode;

use std::io;

use banger_api::exec::{
    ClientControl, ClientFrame, ExecEnd, ExecRequest, FrameError, MAX_REQUEST, ServerControl,
    ServerFrame,
};
use banger_api::{ErrorCode, Problem, trace};
use banger_host::terminal::RawTerminal;
use banger_host::trace::{Began, Trace};
use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use input::Input;
use output::{Output, Target};
use signals::{Listener, Patience, Verdict};

pub use signals::{SessionSignal, of_this_process as signals_of_this_process};
pub use terminal_mode::{Streams, TtyFlags, wants_terminal};

use crate::failure::Failure;
use crate::ui::{BROKEN_PIPE_EXIT, output_failure};

/// The near end of a session: this process's streams and signals.
pub struct Surroundings {
    /// Where stdin comes from; None if the command gets none.
    pub stdin: Option<Box<dyn io::Read + Send>>,
    /// Where the command's stdout goes.
    pub stdout: Box<dyn io::Write + Send>,
    /// Where the command's stderr goes.
    pub stderr: Box<dyn io::Write + Send>,
    /// Signals to this process.
    pub signals: mpsc::UnboundedReceiver<SessionSignal>,
    /// Whether stdin is a terminal that the command takes over.
    pub takes_terminal: bool,
    /// Where the time goes.
    pub trace: Trace,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended.
    Ended(ExecEnd),
    /// We hung up, because of a signal or because nobody reads us any more; banger ends with this.
    HungUp(u8),
}

impl Outcome {
    /// What the process ends with.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Ended(end) => end.exit_code(),
            Self::HungUp(code) => code,
        }
    }
}

/// Why a session did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The command line and its environment are too large.
    #[error("the command and its environment take {bytes} bytes, and may take {MAX_REQUEST}")]
    TooLong {
        /// As JSON.
        bytes: usize,
    },
    /// The other end refused to run the command.
    #[error("{0}")]
    Refused(#[source] Problem),
    /// The stream ended and the command had not: the VM is gone.
    #[error("the VM ended while the command ran")]
    Lost(#[source] Option<WsError>),
    /// The shim lost the guest while the command ran.
    #[error("{0}")]
    Broken(#[source] Problem),
    /// The other end breaks the protocol.
    #[error("the VM's answer cannot be understood")]
    Frame(#[source] FrameError),
    /// The terminal cannot be taken over.
    #[error("the terminal cannot be used")]
    Terminal(#[source] io::Error),
    /// What the command wrote cannot be written.
    #[error("cannot write what the command wrote")]
    Output(#[source] io::Error),
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        let code = match &error {
            SessionError::TooLong { .. } => ErrorCode::InvalidArgument,
            SessionError::Frame(_) => ErrorCode::GuestProtocol,
            SessionError::Lost(_) => ErrorCode::ExecFailed,
            SessionError::Refused(problem) | SessionError::Broken(problem) => problem.code,
            SessionError::Terminal(_) | SessionError::Output(_) => ErrorCode::Internal,
        };
        match error {
            SessionError::Refused(problem) | SessionError::Broken(problem) => problem.into(),
            SessionError::Output(error) => output_failure(&error),
            other => {
                let mut problem = Problem::new(code, other.to_string());
                if let Some(cause) = std::error::Error::source(&other) {
                    problem = problem.because(cause);
                }
                problem.into()
            }
        }
    }
}

/// Runs a command on an open exec stream, to its end or ours.
///
/// # Errors
/// [`SessionError`]. Whatever the command wrote before that has been written.
pub async fn run<S>(
    socket: WebSocketStream<S>,
    request: &ExecRequest,
    near: Surroundings,
) -> Result<Outcome, SessionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let text = request_text(request)?;
    let (mut sink, source) = socket.split();
    let began = near.trace.begin();
    if let Err(error) = sink.send(Message::text(text)).await {
        return Err(SessionError::Lost(Some(error)));
    }
    let (control, controls) = mpsc::unbounded_channel();
    let (input, chunks) = Input::new(near.stdin);
    let mut output = Output::start(near.stdout, near.stderr);
    let mut signals = near.signals;
    let mut listener =
        Listener::new(if request.tty.is_some() { Patience::None } else { Patience::Some });
    let sending = output.sender();
    let receiver = Receiver {
        input,
        sending,
        takes_terminal: near.takes_terminal,
        started: false,
        raw: None,
        trace: near.trace,
        began,
    };

    let received = tokio::select! {
        received = receiver.receive(source) => received,
        never = transmit(sink, controls, chunks) => match never {},
        code = listen(&mut listener, &mut signals, &control) => return Ok(Outcome::HungUp(code)),
        broken = output.broken() => return hung_up(broken),
    };
    // What the command wrote is on its way. There is nobody left to forward a signal to.
    let mut listener = Listener::new(Patience::None);
    tokio::select! {
        written = output.finish() => match written {
            Ok(()) => received.map(|(end, _raw)| Outcome::Ended(end)),
            Err(error) => hung_up(error),
        },
        code = listen(&mut listener, &mut signals, &control) => Ok(Outcome::HungUp(code)),
    }
}

fn request_text(request: &ExecRequest) -> Result<String, SessionError> {
    let text = serde_json::to_string(request).expect("an exec request has only string keys");
    if text.len() > MAX_REQUEST {
        return Err(SessionError::TooLong { bytes: text.len() });
    }
    Ok(text)
}

/// Nobody reads our output: end as a Unix tool does.
fn hung_up(error: io::Error) -> Result<Outcome, SessionError> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Ok(Outcome::HungUp(BROKEN_PIPE_EXIT));
    }
    Err(SessionError::Output(error))
}

struct Receiver {
    input: Input,
    sending: mpsc::Sender<(Target, Bytes)>,
    takes_terminal: bool,
    started: bool,
    raw: Option<RawTerminal>,
    trace: Trace,
    /// When the command was sent; from its start on, when it started.
    began: Began,
}

impl Receiver {
    /// Takes frames from the guest until the command's end. The terminal stays raw until the
    /// caller has written everything.
    async fn receive(
        mut self,
        mut source: impl Stream<Item = Result<Message, WsError>> + Unpin,
    ) -> Result<(ExecEnd, Option<RawTerminal>), SessionError> {
        loop {
            let message = match source.next().await {
                Some(Ok(Message::Binary(message))) => message,
                Some(Ok(Message::Close(_))) | None => return Err(SessionError::Lost(None)),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(SessionError::Lost(Some(error))),
            };
            let frame = ServerFrame::decode(&message).map_err(SessionError::Frame)?;
            match frame {
                // The first byte of the message is the channel.
                ServerFrame::Stdout(_) => self.write(Target::Stdout, message.slice(1..)).await,
                ServerFrame::Stderr(_) => self.write(Target::Stderr, message.slice(1..)).await,
                ServerFrame::Control(control) => {
                    if let Some(end) = self.control(control)? {
                        return Ok((end, self.raw));
                    }
                }
            }
        }
    }

    /// Waits while the writer is behind, which in the end slows the command.
    async fn write(&self, target: Target, bytes: Bytes) {
        if !bytes.is_empty() && self.sending.send((target, bytes)).await.is_err() {
            // The writer has ended with an error, which `Output::broken` reports.
            std::future::pending::<()>().await;
        }
    }

    fn control(&mut self, control: ServerControl) -> Result<Option<ExecEnd>, SessionError> {
        match control {
            ServerControl::Started { .. } => {
                // Not before: a command that cannot be run leaves terminal and stdin untouched.
                if self.takes_terminal {
                    self.raw = Some(RawTerminal::enter().map_err(SessionError::Terminal)?);
                }
                self.trace.end(trace::COMMAND_START, self.began);
                self.began = self.trace.begin();
                self.started = true;
                self.input.start();
            }
            ServerControl::StdinCredit(bytes) => self.input.add_credit(bytes),
            ServerControl::Exit(end) => {
                self.trace.end(trace::COMMAND_RUN, self.began);
                return Ok(Some(end));
            }
            ServerControl::Failed(problem) if self.started => {
                return Err(SessionError::Broken(problem));
            }
            ServerControl::Failed(problem) => return Err(SessionError::Refused(problem)),
        }
        Ok(None)
    }
}

/// Sends what there is to send; what concerns the command's life goes before its input. When the
/// stream is broken there is nobody to send to, and the receiver tells how it ended.
async fn transmit<S>(
    mut sink: S,
    mut controls: mpsc::UnboundedReceiver<ClientControl>,
    mut chunks: mpsc::Receiver<input::Chunk>,
) -> std::convert::Infallible
where
    S: futures_util::Sink<Message> + Unpin,
{
    loop {
        let frame = tokio::select! {
            biased;
            Some(control) = controls.recv() => ClientFrame::Control(control).encode(),
            Some(chunk) = chunks.recv() => chunk.encode(),
            else => break,
        };
        if sink.send(Message::binary(frame)).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// Passes signals on until one of them means that we hang up; gives back the exit code then.
async fn listen(
    listener: &mut Listener,
    signals: &mut mpsc::UnboundedReceiver<SessionSignal>,
    control: &mpsc::UnboundedSender<ClientControl>,
) -> u8 {
    while let Some(signal) = signals.recv().await {
        match listener.judge(signal) {
            Verdict::Forward(message) => {
                let _ = control.send(message);
            }
            Verdict::HangUp(code) => return code,
            Verdict::Nothing => {}
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests;
