//! One request and its answer: no retries, no logins, no redirects, but bounds on everything.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::connector::{Connector, TlsError};
use super::payload::Payload;
use super::retry::Patience;

const AGENT: &str = concat!("banger/", env!("CARGO_PKG_VERSION"));
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(20);
/// A small answer may take that many times the longest silence.
const SMALL_ANSWER: u32 = 3;

/// Sends requests.
#[derive(Debug)]
pub(super) struct Transport {
    client: Client<Connector, Payload>,
    connector: Connector,
    silence: Duration,
}

/// An answer whose body has not been read.
#[derive(Debug)]
pub(super) struct Answer {
    /// Where it came from.
    pub(super) uri: Uri,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Incoming,
    silence: Duration,
}

/// Why there was no answer, or not all of one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TransportError {
    /// What kind of failure.
    pub(super) kind: TransportFailure,
    /// What happened, for people.
    pub(super) reason: String,
}

/// Kinds of failures between us and a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransportFailure {
    /// Nobody is there.
    Absent,
    /// It answered, but not with TLS.
    NotTls,
    /// It closed the connection where TLS would begin.
    HungUp,
    /// Its certificate is not to be trusted.
    Certificate,
    /// The connection broke, or went silent.
    Broken,
    /// The answer is too large.
    TooLarge,
}

impl Transport {
    pub(super) fn new(
        proxies: &BTreeMap<String, String>,
        authorities: Vec<CertificateDer<'static>>,
        patience: &Patience,
    ) -> Self {
        let connector = Connector::new(proxies, authorities, patience.connect);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector.clone());
        Self { client, connector, silence: patience.silence }
    }

    /// Send a request and wait for the head of its answer.
    pub(super) async fn send(
        &self,
        mut request: Request<Payload>,
    ) -> Result<Answer, TransportError> {
        let uri = request.uri().clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if let Some(authorization) = self.connector.proxy_authorization(&uri) {
            headers.insert(PROXY_AUTHORIZATION, authorization);
        }
        headers.remove(HOST);
        let sent = request.body().sent();
        let mut answer = pin!(self.client.request(request));
        loop {
            let before = sent.load(Ordering::Relaxed);
            match timeout(self.silence, &mut answer).await {
                Ok(Ok(answer)) => {
                    let (head, body) = answer.into_parts();
                    let (status, headers) = (head.status, head.headers);
                    return Ok(Answer { uri, status, headers, body, silence: self.silence });
                }
                Ok(Err(error)) => return Err(TransportError::of(&error)),
                Err(_) if sent.load(Ordering::Relaxed) > before => {}
                Err(_) => return Err(TransportError::silent(self.silence)),
            }
        }
    }
}

impl Answer {
    /// A header as text.
    pub(super) fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The next bytes of the body; None at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            let frame = timeout(self.silence, self.body.frame()).await;
            match frame.map_err(|_| TransportError::silent(self.silence))? {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    // What is no data is of no interest.
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(error)) => return Err(TransportError::of(&error)),
            }
        }
    }

    /// The whole body, if it has at most `limit` bytes.
    pub(super) async fn bytes(self, limit: u64) -> Result<Vec<u8>, TransportError> {
        let bound = self.silence * SMALL_ANSWER;
        let too_large = || TransportError {
            kind: TransportFailure::TooLarge,
            reason: format!("the answer has more than {limit} bytes"),
        };
        let read = timeout(bound, self.prefix(limit + 1)).await;
        let bytes = read.map_err(|_| TransportError::silent(bound))??;
        if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
    }

    /// The first `limit` bytes of the body, or all of it.
    async fn prefix(mut self, limit: u64) -> Result<Vec<u8>, TransportError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            let room = usize::try_from(limit).unwrap_or(usize::MAX) - bytes.len();
            bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if bytes.len() as u64 >= limit {
                break;
            }
        }
        Ok(bytes)
    }

    /// What there is to be read of the reason for a failure, at most `limit` bytes.
    pub(super) async fn complaint(self, limit: u64) -> Vec<u8> {
        let bound = self.silence;
        timeout(bound, self.prefix(limit)).await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

impl TransportError {
    fn silent(bound: Duration) -> Self {
        let reason = format!("nothing came for {} seconds", bound.as_secs_f32());
        Self { kind: TransportFailure::Broken, reason }
    }

    /// What an error of the HTTP library comes from.
    fn of(error: &(dyn Error + 'static)) -> Self {
        let mut kind = TransportFailure::Broken;
        let mut reason = error.to_string();
        let mut next = Some(error);
        while let Some(cause) = next {
            reason = cause.to_string();
            if let Some(TlsError(source)) = cause.downcast_ref() {
                let (kind, reason) = judge_tls(source);
                return Self { kind, reason };
            }
            if let Some(source) = cause.downcast_ref::<io::Error>() {
                if let Some(inner) = source.get_ref() {
                    next = Some(inner);
                    continue;
                }
                if is_absence(source) {
                    kind = TransportFailure::Absent;
                }
            }
            if cause.to_string() == "dns error" {
                kind = TransportFailure::Absent;
            }
            next = cause.source();
        }
        Self { kind, reason: super::error::printable(&reason) }
    }
}

fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | TimedOut)
}

fn judge_tls(error: &io::Error) -> (TransportFailure, String) {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidMessage(_)) => {
            (TransportFailure::NotTls, "it does not speak TLS".to_owned())
        }
        Some(rustls::Error::InvalidCertificate(reason)) => {
            let reason = match reason {
                rustls::CertificateError::UnknownIssuer => {
                    "no authority that this host trusts has signed its certificate".to_owned()
                }
                other => format!("its certificate is not right: {other}"),
            };
            (TransportFailure::Certificate, super::error::printable(&reason))
        }
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            (TransportFailure::HungUp, "it closes the connection where TLS would begin".to_owned())
        }
        _ => (TransportFailure::Broken, super::error::printable(&error.to_string())),
    }
}
