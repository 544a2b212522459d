//! Running a command in a guest: the request, and the stream that carries it.
//!
//! The same WebSocket protocol is spoken between CLI and shim and between shim and agent.
//!
//! 1. The client opens `GET /v1/exec` and sends one text message, an [`ExecRequest`].
//! 2. From then on every message is binary: one byte of [`Channel`], then the payload, at most
//!    [`MAX_PAYLOAD`] bytes. [`ClientFrame`] and [`ServerFrame`] are those messages.
//! 3. The server's first frame is `started` or `failed`; its last is `exit` or `failed`, after which
//!    it closes the WebSocket. Everything the command wrote comes before `exit`.
//!
//! **Stdin has credit.** The client may have at most [`STDIN_WINDOW`] bytes of stdin under way and
//! gets more through `stdin_credit` frames as the command reads. So a command that does not read
//! never blocks the signal or the resize that is queued behind its input. Output needs no credit:
//! a slow reader blocks the stream, the stream blocks the agent, and the agent stops reading the
//! command's pipe.
//!
//! **The stream is the lease.** When the client hangs up before `exit`, the agent kills everything
//! the command started. After `exit`, what it left in the background lives on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Problem;

/// Largest payload of one frame, in bytes. Larger ones are a protocol error.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// How much stdin a client may send ahead of the command's reading, in bytes.
pub const STDIN_WINDOW: usize = 256 * 1024;
/// Largest [`ExecRequest`] as JSON, in bytes. Linux itself allows 2 MiB of arguments.
pub const MAX_REQUEST: usize = 2 * 1024 * 1024;

/// What to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecRequest {
    /// Program and arguments. Empty: the user's login shell. A program without a slash is looked up
    /// in the command's `PATH`.
    pub argv: Vec<String>,
    /// Environment on top of the VM's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory; None takes the VM's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; None takes the VM's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A terminal of this size; stdout and stderr are then one stream, on the stdout channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<WindowSize>,
    /// Whether the client will send stdin. If not, it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Limit; then everything the command started is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Size of a terminal in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ExecEnd {
    /// It exited with this code.
    Exited(u8),
    /// This signal killed it.
    Signaled(i32),
    /// Its limit ran out, so banger killed it.
    TimedOut,
}

impl ExecEnd {
    /// The exit code that `banger` itself ends with.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(number) => crate::exit::for_signal(number),
            Self::TimedOut => crate::exit::TIMEOUT,
        }
    }
}

/// The first byte of a binary message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    /// Client to server: bytes for the command.
    Stdin = 0,
    /// Server to client: bytes from the command.
    Stdout = 1,
    /// Server to client: bytes from the command.
    Stderr = 2,
    /// Both ways: one JSON object, [`ClientControl`] or [`ServerControl`].
    Control = 3,
}

/// What a client says on the control channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientControl {
    /// No more stdin will come.
    StdinEof,
    /// The terminal has a new size.
    Resize(WindowSize),
    /// Send this signal to the command's process group.
    Signal(i32),
}

/// What a server says on the control channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerControl {
    /// The command runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// The client may send that many bytes of stdin more.
    StdinCredit(u32),
    /// The command ended; nothing follows.
    Exit(ExecEnd),
    /// The command could not be run; nothing follows.
    Failed(Problem),
}

/// A message from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFrame<'a> {
    /// Bytes for the command.
    Stdin(&'a [u8]),
    /// Everything else.
    Control(ClientControl),
}

/// A message from a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerFrame<'a> {
    /// Bytes from the command.
    Stdout(&'a [u8]),
    /// Bytes from the command.
    Stderr(&'a [u8]),
    /// Everything else.
    Control(ServerControl),
}

/// Why a message is not a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameError {
    /// It has no bytes at all.
    Empty,
    /// It is longer than a frame may be.
    TooLong {
        /// How long its payload is.
        bytes: usize,
    },
    /// Its first byte names no channel that this side may use.
    WrongChannel(u8),
    /// Its control object cannot be read.
    BadControl,
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => write!(f, "an exec frame without bytes"),
            Self::TooLong { bytes } => {
                write!(f, "an exec frame of {bytes} bytes (at most {MAX_PAYLOAD})")
            }
            Self::WrongChannel(byte) => write!(f, "an exec frame on channel {byte}"),
            Self::BadControl => write!(f, "an exec control frame that cannot be read"),
        }
    }
}

impl std::error::Error for FrameError {}

impl<'a> ClientFrame<'a> {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Stdin(bytes) => encode(Channel::Stdin, bytes),
            Self::Control(control) => encode_control(control),
        }
    }

    /// Reads a message from a client.
    ///
    /// # Errors
    /// [`FrameError`] if it is not one.
    pub fn decode(message: &'a [u8]) -> Result<Self, FrameError> {
        match split(message)? {
            (0, payload) => Ok(Self::Stdin(payload)),
            (3, payload) => decode_control(payload).map(Self::Control),
            (other, _) => Err(FrameError::WrongChannel(other)),
        }
    }
}

impl<'a> ServerFrame<'a> {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Stdout(bytes) => encode(Channel::Stdout, bytes),
            Self::Stderr(bytes) => encode(Channel::Stderr, bytes),
            Self::Control(control) => encode_control(control),
        }
    }

    /// Reads a message from a server.
    ///
    /// # Errors
    /// [`FrameError`] if it is not one.
    pub fn decode(message: &'a [u8]) -> Result<Self, FrameError> {
        match split(message)? {
            (1, payload) => Ok(Self::Stdout(payload)),
            (2, payload) => Ok(Self::Stderr(payload)),
            (3, payload) => decode_control(payload).map(Self::Control),
            (other, _) => Err(FrameError::WrongChannel(other)),
        }
    }
}

fn encode(channel: Channel, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(1 + payload.len());
    message.push(channel as u8);
    message.extend_from_slice(payload);
    message
}

fn encode_control(control: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_vec(control).expect("control frames have only string keys");
    encode(Channel::Control, &json)
}

fn split(message: &[u8]) -> Result<(u8, &[u8]), FrameError> {
    let (&channel, payload) = message.split_first().ok_or(FrameError::Empty)?;
    if payload.len() > MAX_PAYLOAD {
        return Err(FrameError::TooLong { bytes: payload.len() });
    }
    Ok((channel, payload))
}

fn decode_control<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|_| FrameError::BadControl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        let client = [
            ClientFrame::Stdin(b"\0\xffabc"),
            ClientFrame::Control(ClientControl::StdinEof),
            ClientFrame::Control(ClientControl::Resize(WindowSize { rows: 24, cols: 80 })),
            ClientFrame::Control(ClientControl::Signal(15)),
        ];
        for frame in client {
            assert_eq!(ClientFrame::decode(&frame.encode()).as_ref(), Ok(&frame));
        }
        let server = [
            ServerFrame::Stdout(b"out"),
            ServerFrame::Stderr(b""),
            ServerFrame::Control(ServerControl::Started { pid: 7 }),
            ServerFrame::Control(ServerControl::StdinCredit(4096)),
            ServerFrame::Control(ServerControl::Exit(ExecEnd::Signaled(9))),
        ];
        for frame in server {
            assert_eq!(ServerFrame::decode(&frame.encode()).as_ref(), Ok(&frame));
        }
    }

    #[test]
    fn hostile_messages_are_refused() {
        let long = vec![1; MAX_PAYLOAD + 2];
        let cases: [(&[u8], FrameError); 5] = [
            (b"", FrameError::Empty),
            (&long, FrameError::TooLong { bytes: MAX_PAYLOAD + 1 }),
            (b"\0stdin from a server", FrameError::WrongChannel(0)),
            (b"\x09", FrameError::WrongChannel(9)),
            (b"\x03{\"exit\":", FrameError::BadControl),
        ];
        for (message, want) in cases {
            assert_eq!(ServerFrame::decode(message), Err(want));
        }
    }

    #[test]
    fn ends_become_exit_codes() {
        assert_eq!(ExecEnd::Exited(3).exit_code(), 3);
        assert_eq!(ExecEnd::Signaled(9).exit_code(), 137);
        assert_eq!(ExecEnd::TimedOut.exit_code(), 124);
    }
}
