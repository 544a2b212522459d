//! As much of HTTP/1.1 as a test needs: heads, bodies with a length, one request per connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longest head, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body, if it is a form.
    pub form: String,
}

impl Request {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        value_of(&self.headers, name)
    }
}

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<String> {
        value_of(&self.headers, name).map(str::to_owned)
    }
}

fn value_of<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
}

/// A first line and headers.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) first: String,
    pub(super) headers: Vec<(String, String)>,
}

impl Head {
    /// Reads up to and with the empty line; None if the stream ends before that or is no HTTP.
    pub(super) fn read(stream: &mut impl Read) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !bytes.ends_with(b"\r\n\r\n") {
            if bytes.len() > MAX_HEAD || stream.read(&mut byte)? == 0 {
                return Ok(None);
            }
            bytes.push(byte[0]);
            // The first byte of a TLS handshake.
            if bytes == [0x16] {
                return Ok(None);
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut lines = text.split("\r\n").filter(|line| !line.is_empty());
        let first = lines.next().unwrap_or_default().to_owned();
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Some(Self { first, headers }))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        value_of(&self.headers, name)
    }

    pub(super) fn content_length(&self) -> u64 {
        self.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.headers.retain(|(known, _)| known != name);
    }

    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.into()));
    }

    /// The status of an answer's head.
    pub(super) fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    pub(super) fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        stream.write_all(text.as_bytes())
    }
}

pub(super) fn get(target: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    request("GET", target, headers, b"")
}

pub(super) fn request(
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Vec<u8> {
    let length = body.len();
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n");
    text.push_str(&format!("Connection: close\r\nContent-Length: {length}\r\n"));
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Asks and reads the whole answer.
pub(super) fn ask(address: &str, request: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let head = Head::read(&mut stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut body = Vec::new();
    stream.read_to_end(&mut body)?;
    Ok(Answer { status: head.status(), headers: head.headers, body })
}

/// Asks, over TLS if so, and gives the answer as text. Over TLS the certificate is not looked at:
/// this only finds out whether somebody is there.
pub(super) fn ask_over(tls: bool, address: &str, request: &[u8]) -> io::Result<String> {
    if !tls {
        let answer = ask(address, request)?;
        return Ok(format!("{answer:?}"));
    }
    let mut child = Command::new("openssl")
        .args(["s_client", "-quiet", "-no_ign_eof", "-connect", address])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdin = child.stdin.take().expect("piped");
    // It may have failed to connect.
    let _ = stdin.write_all(request);
    let mut answer = String::new();
    let read = child.stdout.take().expect("piped").read_to_string(&mut answer);
    drop(stdin);
    child.wait()?;
    read.map(|_| answer)
}
