//! A file from a web server, whose digest is known before.

use std::io::{self, Read};
use std::sync::Arc;

use banger_core::reference::Digest;
use banger_host::command::Cancel;
use bytes::Bytes;
use http::header::LOCATION;
use http::{Method, Request, Uri};
use tokio::runtime::Runtime;

use super::error::{RegistryError, Remedy};
use super::location::follow;
use super::payload::Content;
use super::surroundings::Surroundings;
use super::transport::{Answer, Transport, TransportError};
use crate::blobs::{BlobError, Blobs};

/// How often a server may send us somewhere else.
const REDIRECTS: usize = 5;
/// How often a file is asked for if the connection breaks.
const ATTEMPTS: usize = 3;

/// Bring the file at `url` into the store, unless it is there. Its digest is checked, so it does not
/// matter who sends it.
pub(crate) fn fetch_file(
    surroundings: &Surroundings,
    url: &str,
    digest: &Digest,
    (blobs, cancel): (&Blobs, &Cancel),
) -> Result<(), RegistryError> {
    let start: Uri = url.parse().map_err(|_| RegistryError::Invalid {
        what: url.to_owned(),
        reason: "it is no URL".to_owned(),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| unavailable(&start, &error))?;
    let transport = Transport::new(&surroundings.proxies, Vec::new(), &surroundings.patience);
    let mut attempt = 1;
    loop {
        let answer = runtime.block_on(get(&transport, &start))?;
        let mut body = Body { runtime: &runtime, answer, chunk: Bytes::new() };
        match blobs.add(&mut body, Some(digest), cancel) {
            Ok(_) => return Ok(()),
            Err(BlobError::Source(_)) if attempt < ATTEMPTS => attempt += 1,
            Err(BlobError::Source(error)) => return Err(unavailable(&start, &error)),
            Err(BlobError::WrongDigest { found, .. }) => {
                let reason =
                    format!("its sha256 is {}, and should be {}", found.hex(), digest.hex());
                return Err(RegistryError::Invalid { what: url.to_owned(), reason });
            }
            Err(other) => return Err(other.into()),
        }
    }
}

/// The head of the answer, wherever it is in the end.
async fn get(transport: &Transport, start: &Uri) -> Result<Answer, RegistryError> {
    let mut uri = start.clone();
    for _ in 0..=REDIRECTS {
        let nothing = Content::Nothing.open(&Arc::default());
        let nothing = nothing.map_err(|error| unavailable(start, &error))?;
        let request = Request::builder().method(Method::GET).uri(&uri).body(nothing);
        let request = request.map_err(|error| unavailable(start, &error))?;
        let answer = transport.send(request).await;
        let answer = answer.map_err(|TransportError { reason, .. }| unavailable(start, &reason))?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        if !answer.status.is_redirection() {
            return Err(unavailable(start, &format!("it answers {}", answer.status)));
        }
        let location = answer.header(LOCATION).unwrap_or_default();
        uri = follow(&uri, location).map_err(|reason| unavailable(start, &reason))?;
    }
    Err(unavailable(start, &"it sends us from one place to another"))
}

fn unavailable(uri: &Uri, reason: &dyn std::fmt::Display) -> RegistryError {
    let registry = uri.authority().map(ToString::to_string).unwrap_or_default();
    RegistryError::Unavailable { registry, reason: reason.to_string(), remedy: Remedy::None }
}

/// The body of an answer, for somebody who may wait.
struct Body<'a> {
    runtime: &'a Runtime,
    answer: Answer,
    chunk: Bytes,
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.answer.chunk()) {
                Ok(Some(chunk)) => self.chunk = chunk,
                Ok(None) => return Ok(0),
                Err(error) => return Err(io::Error::other(error.reason)),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}
