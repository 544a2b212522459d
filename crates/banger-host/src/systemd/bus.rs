//! As much of D-Bus as it takes to ask systemd one thing, and to be asked by it: connect as oneself,
//! call a method of the manager, read whether it was done; blocking, with a limit on every read. Then
//! wait for a signal.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;

const MANAGER: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
/// Largest message that is read. Answers are some hundred bytes.
const MAX_MESSAGE: usize = 64 * 1024;
/// Longest line while the bus decides who we are.
const MAX_LINE: usize = 512;
/// Types of messages.
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;
/// Header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// Why a call was not done.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The bus cannot be reached, or hung up, or was silent too long.
    #[error("cannot talk to the message bus")]
    Io(#[source] io::Error),
    /// It did not believe who we are.
    #[error("the message bus turned us away: {0}")]
    NotAdmitted(String),
    /// The answer makes no sense.
    #[error("the message bus answers what makes no sense")]
    Malformed,
    /// The other side refused.
    #[error("{name}: {text}")]
    Refused {
        /// The error's name: `org.freedesktop.systemd1.UnitExists`.
        name: String,
        /// Its words.
        text: String,
    },
}

/// A connection.
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// What the bus calls this connection: `:1.42`.
    name: String,
}

impl Bus {
    /// Connects as the calling user. No read or write takes longer than `limit`.
    pub(super) fn connect(socket: &Path, uid: u32, limit: Duration) -> Result<Self, BusError> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        // Who we are the bus learns from the kernel; the number must be the same.
        write!(stream, "\0AUTH EXTERNAL {}\r\n", hex(&uid.to_string()))?;
        let answer = read_line(&mut stream)?;
        if !answer.starts_with("OK ") {
            return Err(BusError::NotAdmitted(answer));
        }
        stream.write_all(b"BEGIN\r\n")?;
        let mut bus = Self { stream, serial: 0, name: String::new() };
        bus.name = bus.exchange([BUS, BUS_PATH, BUS, "Hello"], "", &[])?;
        Ok(bus)
    }

    /// What others reach this connection by.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The connection itself, for [`wait_for_signal`].
    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Calls a method of systemd's manager whose answer has no other use.
    pub(super) fn call(
        &mut self,
        method: &str,
        signature: &str,
        body: &[u8],
    ) -> Result<(), BusError> {
        self.exchange([MANAGER, MANAGER_PATH, MANAGER_INTERFACE, method], signature, body).map(drop)
    }

    /// Calls a method. Returns the first string of the answer, if it begins with one.
    fn exchange(
        &mut self,
        to: [&str; 4],
        signature: &str,
        body: &[u8],
    ) -> Result<String, BusError> {
        self.serial += 1;
        self.stream.write_all(&call_message(self.serial, to, signature, body))?;
        loop {
            let answer = read_message(&mut self.stream)?;
            if answer.reply_to != Some(self.serial) {
                continue;
            }
            return match answer.kind {
                RETURN => Ok(answer.text),
                ERROR => Err(BusError::Refused { name: answer.error_name, text: answer.text }),
                _ => Err(BusError::Malformed),
            };
        }
    }
}

/// Waits until a signal with this interface and member comes.
///
/// # Errors
/// If the bus hangs up, or says what makes no sense.
pub(super) async fn wait_for_signal(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    interface: &str,
    member: &str,
) -> Result<(), BusError> {
    loop {
        let mut start = [0; START];
        stream.read_exact(&mut start).await?;
        let sizes = Sizes::in_start(&start)?;
        let mut rest = vec![0; sizes.rest()];
        stream.read_exact(&mut rest).await?;
        let message = parse(start[1], &rest, sizes)?;
        if (message.kind, &*message.interface, &*message.member) == (SIGNAL, interface, member) {
            return Ok(());
        }
    }
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn read_line(stream: &mut UnixStream) -> Result<String, BusError> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        if line.len() > MAX_LINE {
            return Err(BusError::Malformed);
        }
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn call_message(serial: u32, to: [&str; 4], signature: &str, body: &[u8]) -> Vec<u8> {
    let [destination, path, interface, member] = to;
    let mut message = Writer::default();
    // Little endian, a call, no flags, version 1.
    message.bytes(&[b'l', CALL, 0, 1]);
    message.number(u32::try_from(body.len()).unwrap_or(u32::MAX));
    message.number(serial);
    message.array(8, |fields| {
        for (code, kind, value) in [
            (PATH, "o", path),
            (INTERFACE, "s", interface),
            (MEMBER, "s", member),
            (DESTINATION, "s", destination),
        ] {
            fields.align(8);
            fields.bytes(&[code]);
            fields.signature(kind);
            fields.string(value);
        }
        if !signature.is_empty() {
            fields.align(8);
            fields.bytes(&[SIGNATURE]);
            fields.signature("g");
            fields.signature(signature);
        }
    });
    message.align(8);
    message.bytes(body);
    message.into_bytes()
}

/// Writes values as D-Bus marshals them.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    pub(super) fn number(&mut self, value: u32) {
        self.align(4);
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn long(&mut self, value: u64) {
        self.align(8);
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn string(&mut self, value: &str) {
        self.number(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.bytes(value.as_bytes());
        self.bytes(&[0]);
    }

    fn signature(&mut self, value: &str) {
        self.bytes(&[u8::try_from(value.len()).unwrap_or(u8::MAX)]);
        self.bytes(value.as_bytes());
        self.bytes(&[0]);
    }

    /// An array whose elements begin at multiples of `alignment`. Its length counts neither itself
    /// nor the gap before the first element.
    pub(super) fn array(&mut self, alignment: usize, fill: impl FnOnce(&mut Self)) {
        self.number(0);
        let length_at = self.0.len() - 4;
        self.align(alignment);
        let start = self.0.len();
        fill(self);
        let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// An element of an array of name and value, the value of the given type.
    pub(super) fn property(&mut self, name: &str, kind: &str, value: impl FnOnce(&mut Self)) {
        self.align(8);
        self.string(name);
        self.signature(kind);
        value(self);
    }
}

/// As much of a message as matters here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    kind: u8,
    reply_to: Option<u32>,
    error_name: String,
    interface: String,
    member: String,
    /// The first string of an answer's body.
    text: String,
}

/// Length of what every message begins with.
const START: usize = 16;

/// How long the parts of a message are that follow its start.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    fields: usize,
    body: usize,
}

impl Sizes {
    fn in_start(start: &[u8; START]) -> Result<Self, BusError> {
        let number = |at: usize| -> usize {
            let bytes = [start[at], start[at + 1], start[at + 2], start[at + 3]];
            usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
        };
        let sizes = Self { body: number(4), fields: number(12) };
        if start[0] != b'l' || sizes.body > MAX_MESSAGE || sizes.fields > MAX_MESSAGE {
            return Err(BusError::Malformed);
        }
        Ok(sizes)
    }

    fn rest(self) -> usize {
        self.fields.next_multiple_of(8) + self.body
    }
}

fn read_message(stream: &mut impl Read) -> Result<Message, BusError> {
    let mut start = [0; START];
    stream.read_exact(&mut start)?;
    let sizes = Sizes::in_start(&start)?;
    let mut rest = vec![0; sizes.rest()];
    stream.read_exact(&mut rest)?;
    parse(start[1], &rest, sizes)
}

fn parse(kind: u8, rest: &[u8], sizes: Sizes) -> Result<Message, BusError> {
    let (header, body) = rest.split_at(rest.len() - sizes.body);
    parse_parts(kind, &header[..sizes.fields], body).ok_or(BusError::Malformed)
}

fn parse_parts(kind: u8, fields: &[u8], body: &[u8]) -> Option<Message> {
    let mut message = Message { kind, ..Message::default() };
    let mut reader = Reader { bytes: fields, at: 0 };
    let mut body_kind = String::new();
    while reader.at < fields.len() {
        reader.align(8);
        let code = reader.byte()?;
        match (code, reader.signature()?.as_str()) {
            (REPLY_SERIAL, "u") => message.reply_to = Some(reader.number()?),
            (ERROR_NAME, "s") => message.error_name = reader.string()?,
            (INTERFACE, "s") => message.interface = reader.string()?,
            (MEMBER, "s") => message.member = reader.string()?,
            (SIGNATURE, "g") => body_kind = reader.signature()?,
            (_, "s" | "o") => drop(reader.string()?),
            (_, "u") => drop(reader.number()?),
            (_, "g") => drop(reader.signature()?),
            _ => return None,
        }
    }
    if matches!(kind, RETURN | ERROR) && body_kind.starts_with('s') {
        message.text = Reader { bytes: body, at: 0 }.string()?;
    }
    Some(message)
}

/// Reads values as D-Bus marshals them.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn string(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        self.text(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.text(length)
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        (self.byte()? == 0).then_some(text)
    }
}

#[cfg(test)]
mod tests;
