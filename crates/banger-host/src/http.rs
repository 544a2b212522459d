//! A small HTTP/1.1 client over any byte stream.
//!
//! Everything banger's processes say to each other goes through it: CLI to daemon and shim, daemon
//! to shim, shim to agent. One request per stream: the streams are local and cheap, and a stream
//! that carries one request cannot be left in a wrong state for the next.

use banger_api::Problem;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

/// Largest answer that is read into memory, in bytes; 1,000 VMs take about one megabyte.
pub const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Largest line of a stream of lines, in bytes.
pub const MAX_LINE: usize = 1024 * 1024;
/// Largest error body that is read, in bytes.
const MAX_PROBLEM: usize = 256 * 1024;

/// Why a request has no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The stream broke, or the other end speaks no HTTP.
    #[error("the connection failed")]
    Connection(#[source] hyper::Error),
    /// The request cannot be written as HTTP.
    #[error("the request cannot be sent")]
    Request(#[source] http::Error),
    /// The other end refused, and said why.
    #[error("{0}")]
    Problem(#[source] Problem),
    /// The other end refused without a reason that can be read.
    #[error("the answer was HTTP status {0}")]
    Status(StatusCode),
    /// The answer is larger than allowed, or broke off.
    #[error("the answer cannot be read: {0}")]
    Body(String),
    /// The answer is not the JSON that it should be.
    #[error("the answer cannot be understood")]
    Json(#[source] serde_json::Error),
}

/// Sends a request and waits for the head of the answer. The body is read from the result; when
/// that is dropped the stream is closed. A body of the request that fails breaks the stream, so that
/// the other end cannot take a part for the whole.
///
/// Must be called in a tokio runtime, which drives the stream.
///
/// # Errors
/// [`HttpError::Connection`] if the stream broke first.
pub async fn send<S, B>(io: S, mut request: Request<B>) -> Result<Response<Incoming>, HttpError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let host = http::HeaderValue::from_static("banger");
    request.headers_mut().entry(http::header::HOST).or_insert(host);
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(io)).await;
    let (mut sender, connection) = handshake.map_err(HttpError::Connection)?;
    tokio::spawn(async move {
        // Its failure is also the sender's or the body's, and is reported there.
        let _ = connection.with_upgrades().await;
    });
    sender.send_request(request).await.map_err(HttpError::Connection)
}

/// Sends `body` as JSON, if there is one, and reads the answer as JSON. An empty answer reads as
/// JSON's `null`, so `()` and `Option` can be asked for.
///
/// # Errors
/// [`HttpError::Problem`] if the other end refused with a reason, else what went wrong.
pub async fn json<T, S, B>(
    io: S,
    method: Method,
    path: &str,
    body: Option<&B>,
) -> Result<T, HttpError>
where
    T: DeserializeOwned,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Serialize + ?Sized,
{
    let answer = request(io, method, path, body).await?;
    read_json(answer, MAX_ANSWER).await
}

/// Sends `body` as JSON, if there is one; gives back the answer if it is a good one.
///
/// # Errors
/// As [`json`].
pub async fn request<S, B>(
    io: S,
    method: Method,
    path: &str,
    body: Option<&B>,
) -> Result<Response<Incoming>, HttpError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Serialize + ?Sized,
{
    let mut builder = Request::builder().method(method).uri(path);
    let payload = match body {
        Some(body) => {
            builder = builder.header(http::header::CONTENT_TYPE, "application/json");
            serde_json::to_vec(body).map_err(HttpError::Json)?
        }
        None => Vec::new(),
    };
    let request = builder.body(Full::new(payload.into())).map_err(HttpError::Request)?;
    accept(send(io, request).await?).await
}

/// Gives back an answer of success; turns any other into an error.
///
/// # Errors
/// [`HttpError::Problem`] or [`HttpError::Status`].
pub async fn accept(answer: Response<Incoming>) -> Result<Response<Incoming>, HttpError> {
    let status = answer.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer);
    }
    let body = read(answer, MAX_PROBLEM).await.unwrap_or_default();
    match serde_json::from_slice(&body) {
        Ok(problem) => Err(HttpError::Problem(problem)),
        Err(_) => Err(HttpError::Status(status)),
    }
}

/// Reads a whole answer of at most `limit` bytes.
///
/// # Errors
/// [`HttpError::Body`] if it is longer, or breaks off.
pub async fn read(answer: Response<Incoming>, limit: usize) -> Result<Bytes, HttpError> {
    let body = Limited::new(answer.into_body(), limit).collect().await;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|error| HttpError::Body(error.to_string()))
}

/// Reads a whole answer of at most `limit` bytes as JSON.
///
/// # Errors
/// [`HttpError::Body`] or [`HttpError::Json`].
pub async fn read_json<T: DeserializeOwned>(
    answer: Response<Incoming>,
    limit: usize,
) -> Result<T, HttpError> {
    let body = read(answer, limit).await?;
    let text = if body.is_empty() { b"null".as_slice() } else { &body };
    serde_json::from_slice(text).map_err(HttpError::Json)
}

/// An endless answer, line by line: JSON lines, or server-sent events.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    /// How much of the buffer holds no line feed for sure.
    searched: usize,
}

impl Lines {
    /// The lines of an answer.
    #[must_use]
    pub fn of(answer: Response<Incoming>) -> Self {
        Self { body: answer.into_body(), buffer: Vec::new(), searched: 0 }
    }

    /// The next line without its end, or None at the end of the answer. May be cancelled without
    /// losing anything.
    ///
    /// # Errors
    /// [`HttpError::Body`] if a line is longer than [`MAX_LINE`], or the answer breaks off.
    pub async fn next(&mut self) -> Result<Option<String>, HttpError> {
        loop {
            if let Some(line) = self.take_line()? {
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(HttpError::Body(format!("a line of more than {MAX_LINE} bytes")));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => return Err(HttpError::Body(chain(&error))),
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    self.searched = 0;
                    let rest = std::mem::take(&mut self.buffer);
                    return text(rest).map(Some);
                }
            }
        }
    }

    /// The payload of the next server-sent event; comments and other fields are passed over.
    ///
    /// # Errors
    /// As [`Lines::next`].
    pub async fn next_event(&mut self) -> Result<Option<String>, HttpError> {
        while let Some(line) = self.next().await? {
            if let Some(data) = line.strip_prefix("data:") {
                return Ok(Some(data.trim_start().to_owned()));
            }
        }
        Ok(None)
    }

    fn take_line(&mut self) -> Result<Option<String>, HttpError> {
        let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return Ok(None);
        };
        let end = self.searched + at;
        let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        self.searched = 0;
        text(line).map(Some)
    }
}

fn text(bytes: Vec<u8>) -> Result<String, HttpError> {
    String::from_utf8(bytes).map_err(|_| HttpError::Body("a line is not UTF-8".to_owned()))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_api::ErrorCode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    /// One end of a stream whose other end answers any request with these bytes.
    fn answering(answer: impl Into<Vec<u8>>) -> DuplexStream {
        let answer = answer.into();
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let mut head = [0; 4096];
            let _ = far.read(&mut head).await;
            let _ = far.write_all(&answer).await;
        });
        near
    }

    fn with_body(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    async fn get<T: DeserializeOwned>(answer: impl Into<Vec<u8>>) -> Result<T, HttpError> {
        json(answering(answer), Method::GET, "/v1/x", None::<&()>).await
    }

    #[tokio::test]
    async fn json_goes_there_and_back() {
        let answer: Vec<u32> = get(with_body("200 OK", "[1,2]")).await.expect("a good answer");
        assert_eq!(answer, [1, 2]);
        get::<()>("HTTP/1.1 204 No Content\r\n\r\n").await.expect("an empty answer is null");
    }

    #[tokio::test]
    async fn the_request_is_what_the_other_end_reads() {
        let (near, mut far) = tokio::io::duplex(4096);
        let asked = tokio::spawn(async move {
            json::<(), _, _>(near, Method::POST, "/v1/x?y=z", Some(&[7])).await
        });
        let mut seen = Vec::new();
        while !seen.ends_with(b"[7]") {
            assert_ne!(far.read_buf(&mut seen).await.expect("readable"), 0);
        }
        let text = String::from_utf8(seen).expect("text");
        assert!(text.starts_with("POST /v1/x?y=z HTTP/1.1\r\n"), "{text}");
        assert!(text.contains("content-type: application/json\r\n"), "{text}");
        assert!(text.contains("host: banger\r\n"), "{text}");
        drop(far);
        assert!(matches!(asked.await.expect("no panic"), Err(HttpError::Connection(_))));
    }

    #[tokio::test]
    async fn problems_are_read_and_other_refusals_have_a_status() {
        let problem = Problem::new(ErrorCode::VmNotFound, "no VM is called web");
        let body = serde_json::to_string(&problem).expect("plain data");
        let error = get::<()>(with_body("404 Not Found", &body)).await.expect_err("refused");
        assert!(matches!(error, HttpError::Problem(found) if found == problem));
        let error = get::<()>(with_body("500 Oops", "<html>")).await.expect_err("refused");
        assert!(matches!(error, HttpError::Status(status) if status.as_u16() == 500));
    }

    #[tokio::test]
    async fn bad_answers_are_errors() {
        let error = get::<u32>(with_body("200 OK", "{")).await.expect_err("no JSON");
        assert!(matches!(error, HttpError::Json(_)));
        let error = get::<u32>("SSH-2.0-OpenSSH\r\n").await.expect_err("no HTTP");
        assert!(matches!(error, HttpError::Connection(_)));
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[1,";
        let error = get::<Vec<u32>>(cut).await.expect_err("it breaks off");
        assert!(matches!(error, HttpError::Body(_)));
    }

    #[tokio::test]
    async fn lines_and_events_are_taken_apart() {
        let text = ": hello\r\n\r\nevent: x\ndata: {\"a\":1}\n\ndata:2\n\nrest";
        let io = answering(with_body("200 OK", text));
        let answer = request(io, Method::GET, "/", None::<&()>).await.expect("an answer");
        let mut lines = Lines::of(answer);
        assert_eq!(lines.next().await.expect("fine").as_deref(), Some(": hello"));
        assert_eq!(lines.next_event().await.expect("fine").as_deref(), Some("{\"a\":1}"));
        assert_eq!(lines.next_event().await.expect("fine").as_deref(), Some("2"));
        assert_eq!(lines.next().await.expect("fine").as_deref(), Some(""));
        assert_eq!(lines.next().await.expect("fine").as_deref(), Some("rest"));
        assert_eq!(lines.next().await.expect("fine"), None);
    }

    #[tokio::test]
    async fn a_dropped_answer_hangs_up() {
        let (near, mut far) = tokio::io::duplex(4096);
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nx\n\r\n";
        let other_end = tokio::spawn(async move {
            far.read_u8().await.expect("a request comes");
            far.write_all(head.as_bytes()).await.expect("writable");
            let mut rest = Vec::new();
            far.read_to_end(&mut rest).await.expect("readable");
        });
        let answer = request(near, Method::GET, "/", None::<&()>).await.expect("an answer");
        let mut lines = Lines::of(answer);
        assert_eq!(lines.next().await.expect("fine").as_deref(), Some("x"));
        drop(lines);
        let bound = std::time::Duration::from_secs(10);
        let end = tokio::time::timeout(bound, other_end).await;
        end.expect("the stream is closed").expect("nothing failed");
    }
}
