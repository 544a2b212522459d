//! One blob, from a registry into the store.

use std::time::Duration;

use banger_host::command::Cancel;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderValue, Method, StatusCode};

use super::endpoint::{Ask, Endpoint};
use super::error::{RegistryError, Remedy};
use super::failure::Failure;
use super::manifest::Descriptor;
use super::meter::Meter;
use super::retry::Attempts;
use super::transport::Answer;
use crate::blobs::{Begun, BlobError, Blobs, Contents, Finished, Partial, Verified};

/// How often is looked whether somebody else's download is done.
const LOOK: Duration = Duration::from_millis(100);
/// How often a registry may send wrong bytes for one blob.
const STRIKES: u32 = 2;
const NOT_SATISFIABLE: &[StatusCode] = &[StatusCode::RANGE_NOT_SATISFIABLE];

/// A blob that is here.
#[derive(Debug)]
pub(super) enum Arrived {
    /// It was here before, or somebody else fetched it.
    Stored(Contents),
    /// It was fetched, and has no name yet.
    Fetched(Verified),
}

/// A download under way from one registry.
struct Download<'a> {
    endpoint: &'a Endpoint,
    blob: &'a Descriptor,
    partial: Partial,
    attempts: Attempts,
    /// Whether parts can be asked for.
    has_ranges: bool,
    strikes: u32,
    meter: &'a Meter,
}

/// Why a registry did not give a blob.
struct Stopped {
    /// What it gave of it.
    partial: Option<Box<Partial>>,
    error: RegistryError,
}

/// What happened to one attempt.
enum Fault {
    /// The registry or the way there failed.
    Failure(Failure),
    /// It sent something else.
    Wrong(String),
}

impl From<RegistryError> for Fault {
    fn from(error: RegistryError) -> Self {
        Self::Failure(Failure::Final(error))
    }
}

impl From<crate::error::LibraryError> for Fault {
    fn from(error: crate::error::LibraryError) -> Self {
        Self::Failure(Failure::Final(error.into()))
    }
}

/// Get a blob from the first of these registries that has it. Whoever wants the same blob at the
/// same time waits.
pub(super) async fn download(
    endpoints: &[Endpoint],
    blob: &Descriptor,
    blobs: &Blobs,
    (meter, cancel): (&Meter, &Cancel),
) -> Result<Arrived, RegistryError> {
    let mut partial = match begin(blob, blobs, meter).await? {
        Begun::Stored(contents) => {
            meter.at(blob.size);
            return Ok(Arrived::Stored(contents));
        }
        Begun::Partial(partial) => resume(partial, blob.size, cancel).await?,
        Begun::Busy => return Err(RegistryError::Cancelled),
    };
    let (own, mirrors) = endpoints.split_last().expect("there is always one");
    for mirror in mirrors {
        match Download::new(mirror, blob, partial, meter).run().await {
            Ok(verified) => return Ok(Arrived::Fetched(verified)),
            Err(Stopped { partial: Some(left), error }) if error.is_of_this_registry() => {
                tracing::warn!(mirror = mirror.registry, %error, "the mirror does not help");
                partial = *left;
            }
            Err(stopped) => return Err(stopped.error),
        }
    }
    let done = Download::new(own, blob, partial, meter).run().await;
    done.map(Arrived::Fetched).map_err(|stopped| foreign(blob, stopped.error))
}

/// Layers that their maker lets nobody give away are often not in the registry at all.
fn foreign(blob: &Descriptor, error: RegistryError) -> RegistryError {
    match error {
        RegistryError::NotFound { .. } if blob.is_foreign() => RegistryError::Invalid {
            what: format!("layer {}", blob.digest),
            reason: "its maker allows no registry to store it, and this one does not".to_owned(),
        },
        error => error,
    }
}

async fn begin(blob: &Descriptor, blobs: &Blobs, meter: &Meter) -> Result<Begun, RegistryError> {
    let mut was_told = false;
    loop {
        match blobs.begin(&blob.digest, blob.size)? {
            Begun::Busy => {
                if !was_told {
                    meter.waits("waiting for another download");
                    was_told = true;
                }
                tokio::time::sleep(LOOK).await;
            }
            begun => return Ok(begun),
        }
    }
}

/// Read what is there, in another thread: others download meanwhile.
async fn resume(partial: Partial, size: u64, cancel: &Cancel) -> Result<Partial, RegistryError> {
    let cancel = cancel.clone();
    let read = tokio::task::spawn_blocking(move || partial.resume(size, &cancel)).await;
    // Only a panic, or the end of the runtime.
    read.unwrap_or(Err(BlobError::Cancelled)).map_err(Into::into)
}

impl<'a> Download<'a> {
    fn new(
        endpoint: &'a Endpoint,
        blob: &'a Descriptor,
        partial: Partial,
        meter: &'a Meter,
    ) -> Self {
        let attempts = Attempts::new(endpoint.patience);
        Self { endpoint, blob, partial, attempts, has_ranges: true, strikes: 0, meter }
    }

    async fn run(mut self) -> Result<Verified, Stopped> {
        loop {
            let attempt = if self.partial.bytes() < self.blob.size {
                self.continue_download().await
            } else {
                match self.partial.finish(&self.blob.digest) {
                    Ok(Finished::Whole(verified)) => return Ok(verified),
                    Ok(Finished::Wrong { partial, found }) => {
                        self.partial = partial;
                        Err(Fault::Wrong(format!("its digest is {found}")))
                    }
                    Err(error) => return Err(Stopped { partial: None, error: error.into() }),
                }
            };
            if let Err(fault) = attempt
                && let Err(error) = self.mend(fault).await
            {
                return Err(Stopped { partial: Some(Box::new(self.partial)), error });
            }
        }
    }

    /// Make another attempt possible.
    async fn mend(&mut self, fault: Fault) -> Result<(), RegistryError> {
        match fault {
            Fault::Failure(failure) => self.endpoint.wait_after(failure, &mut self.attempts).await,
            Fault::Wrong(reason) => {
                self.strikes += 1;
                self.partial.restart()?;
                if self.strikes < STRIKES {
                    tracing::warn!(digest = %self.blob.digest, reason, "wrong bytes, once more");
                    return Ok(());
                }
                let registry = self.endpoint.registry.clone();
                let digest = self.blob.digest.to_string();
                Err(RegistryError::WrongBlob { registry, digest, reason })
            }
        }
    }

    /// Ask for what is missing, and write down what comes.
    async fn continue_download(&mut self) -> Result<(), Fault> {
        let what = format!("layer {}", self.blob.digest);
        let path = format!("blobs/{}", self.blob.digest);
        let mut ask = Ask::new(Method::GET, path, what).tolerate(NOT_SATISFIABLE);
        let offset = self.partial.bytes();
        if offset > 0 && !self.has_ranges {
            self.partial.restart()?;
        } else if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            ask = ask.header(RANGE, range.expect("digits are text"));
        }
        let mut answer = self.endpoint.ask_within(&ask, &mut self.attempts).await?;
        self.place(&answer)?;
        loop {
            self.meter.at(self.partial.bytes());
            match answer.chunk().await {
                Ok(Some(bytes)) => {
                    if self.partial.bytes() + bytes.len() as u64 > self.blob.size {
                        return Err(self.wrong_size("more"));
                    }
                    self.partial.write(&bytes)?;
                    self.attempts.reached(self.partial.bytes());
                }
                Ok(None) => break,
                Err(error) => {
                    return Err(Fault::Failure(self.endpoint.judge_transport(error, &ask)));
                }
            }
        }
        let is_all = self.partial.bytes() == self.blob.size;
        // A server may give less than it is asked for, as long as it says so and gives something.
        let is_part = answer.status == StatusCode::PARTIAL_CONTENT && self.partial.bytes() > offset;
        if is_all || is_part { Ok(()) } else { Err(self.wrong_size("fewer")) }
    }

    /// Find out where in the blob the answer's bytes belong, and be there.
    fn place(&mut self, answer: &Answer) -> Result<(), Fault> {
        let offset = self.partial.bytes();
        match answer.status {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.header(CONTENT_RANGE).and_then(parse_content_range);
                let fits = range.is_some_and(|(start, total)| {
                    start == offset && total.is_none_or(|total| total == self.blob.size)
                });
                if !fits {
                    return Err(self.without_ranges("it answers with another part than asked for"));
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(self.without_ranges("it has no such part"));
            }
            // All of it.
            _ if offset > 0 => self.partial.restart()?,
            _ => {}
        }
        let length = answer.header(CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        let missing = self.blob.size - self.partial.bytes();
        match length {
            Some(length) if length > missing => Err(self.wrong_size("more")),
            Some(length) if length < missing && answer.status == StatusCode::OK => {
                Err(self.wrong_size("fewer"))
            }
            _ => Ok(()),
        }
    }

    fn without_ranges(&mut self, reason: &str) -> Fault {
        self.has_ranges = false;
        Fault::Failure(Failure::Again(
            RegistryError::Unavailable {
                registry: self.endpoint.registry.clone(),
                reason: reason.to_owned(),
                remedy: Remedy::None,
            },
            None,
        ))
    }

    fn wrong_size(&self, relation: &str) -> Fault {
        Fault::Wrong(format!("it has {relation} than {} bytes", self.blob.size))
    }
}

/// Start and, if it is told, total of `bytes 100-199/200`.
fn parse_content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(parse_content_range("bytes 100-199/200"), Some((100, Some(200))));
        assert_eq!(parse_content_range("bytes 0-1/*"), Some((0, None)));
        for wrong in ["", "bytes", "bytes */200", "bytes -5/6", "items 1-2/3", "bytes x-y/z"] {
            assert_eq!(parse_content_range(wrong), None, "{wrong}");
        }
    }
}
