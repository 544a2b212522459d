//! Stored images, into a registry.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use banger_core::reference::Digest;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Method, StatusCode};

use super::endpoint::{Ask, Endpoint, Target};
use super::error::{RegistryError, Remedy, printable};
use super::failure::Failure;
use super::location::{follow, with_parameter};
use super::manifest::Descriptor;
use super::meter::{Meter, ProgressSink, Stage};
use super::payload::Content;
use super::retry::Attempts;
use super::{CONTENT_DIGEST, Registry, digest_of};
use crate::blobs::Blobs;

/// How many blobs go at the same time.
const AT_ONCE: usize = 3;
/// How often is looked how far an upload is.
const LOOK: Duration = Duration::from_millis(100);
const NOT_FOUND: &[StatusCode] = &[StatusCode::NOT_FOUND];

/// An image to be pushed. All its blobs are stored.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    /// The manifest, as it shall be there.
    pub(crate) manifest: Vec<u8>,
    /// Its type.
    pub(crate) media_type: String,
    /// Its configuration and its layers.
    pub(crate) blobs: Vec<Descriptor>,
}

impl Registry {
    /// Push an image to the reference; gives the manifest's digest there. What the registry has does
    /// not go again.
    pub(crate) fn push(
        &self,
        upload: &Upload,
        blobs: &Blobs,
        progress: ProgressSink,
    ) -> Result<Digest, RegistryError> {
        let own = self.inner.endpoints.last().expect("there is always one");
        let stage = Stage { name: "image.push", message: "pushing layers", sink: progress };
        self.run(async {
            let mut distinct = upload.blobs.clone();
            distinct.sort_by(|a, b| a.digest.cmp(&b.digest));
            distinct.dedup_by(|a, b| a.digest == b.digest);
            let pushes = distinct.iter().map(async |blob| {
                let meter = stage.meter(&blob.digest, blob.size);
                own.push_blob(blob, blobs, &meter).await
            });
            stream::iter(pushes).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
            own.push_manifest(upload, &self.inner.reference).await
        })
    }
}

impl Endpoint {
    async fn push_blob(
        &self,
        blob: &Descriptor,
        blobs: &Blobs,
        meter: &Meter,
    ) -> Result<(), RegistryError> {
        let path = format!("blobs/{}", blob.digest);
        let ask = Ask::new(Method::HEAD, path, self.path.clone()).tolerate(NOT_FOUND);
        if self.ask(&ask).await?.status.is_success() {
            meter.at(blob.size);
            return Ok(());
        }
        meter.at(0);
        let mut attempts = Attempts::new(self.patience);
        loop {
            match self.upload(blob, blobs, meter).await {
                Ok(()) => return Ok(()),
                // An upload that broke cannot be relied on, so the next attempt is a new one.
                Err(failure) => self.wait_after(failure, &mut attempts).await?,
            }
        }
    }

    /// One upload, from its beginning to its end.
    async fn upload(&self, blob: &Descriptor, blobs: &Blobs, meter: &Meter) -> Result<(), Failure> {
        let ask = Ask::new(Method::POST, "blobs/uploads/", self.path.clone());
        let begun = self.ask_once(&ask).await?;
        let Some(location) = begun.header(LOCATION) else {
            let reason = "it takes uploads, and does not say where".to_owned();
            return Err(Failure::Final(self.uploads_fail(reason)));
        };
        let wrong = |reason: &str| {
            let reason = format!("it wants uploads at {}: {reason}", printable(location));
            Failure::Final(self.uploads_fail(reason))
        };
        let uri = follow(&begun.uri, location)
            .and_then(|uri| with_parameter(&uri, "digest", blob.digest.as_str()))
            .map_err(wrong)?;
        let mut ask = Ask::new(Method::PUT, "", format!("layer {}", blob.digest))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .content(Content::File(blobs.path(&blob.digest), blob.size));
        ask.target = Target::Uri(uri);
        let sent = Arc::clone(&ask.sent);
        let watch = async {
            loop {
                tokio::time::sleep(LOOK).await;
                meter.at(sent.load(Ordering::Relaxed).min(blob.size.saturating_sub(1)));
            }
        };
        tokio::select! {
            answer = self.ask_once(&ask) => answer.map(|_| meter.at(blob.size)),
            () = watch => Ok(()),
        }
    }

    async fn push_manifest(
        &self,
        upload: &Upload,
        reference: &banger_core::reference::Reference,
    ) -> Result<Digest, RegistryError> {
        let digest = digest_of(&upload.manifest);
        let tag = reference.tag().unwrap_or(digest.as_str());
        let kind =
            HeaderValue::from_str(&upload.media_type).map_err(|_| RegistryError::Invalid {
                what: "the manifest".to_owned(),
                reason: "its type is no text".to_owned(),
            })?;
        let ask = Ask::new(Method::PUT, format!("manifests/{tag}"), format!("{}:{tag}", self.path))
            .header(CONTENT_TYPE, kind)
            .content(Content::Bytes(Bytes::from(upload.manifest.clone())));
        let answer = self.ask(&ask).await?;
        match answer.header(CONTENT_DIGEST) {
            Some(told) if told != digest.as_str() => {
                Err(self.uploads_fail(format!("it took another manifest, {}", printable(told))))
            }
            _ => Ok(digest),
        }
    }

    fn uploads_fail(&self, reason: String) -> RegistryError {
        RegistryError::Unavailable { registry: self.registry.clone(), reason, remedy: Remedy::None }
    }
}
