//! What a reference stands for, and what that consists of: from a tag to an image for this machine.

use banger_core::reference::Digest;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, StatusCode};

use super::endpoint::{Ask, Endpoint};
use super::error::RegistryError;
use super::manifest::{self, ConfigFault, Descriptor, Document, Manifest, Platform};
use super::{CONTENT_DIGEST, Registry, digest_of};

/// How often wrong bytes are asked for again: something on the way may have spoilt them.
const WRONG_ANSWERS: usize = 2;

/// What a reference stands for right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Digest of an index or a manifest.
    pub(crate) digest: Digest,
    /// The document itself, if finding out brought it along.
    document: Option<(Vec<u8>, Option<String>)>,
}

/// An image for this machine, checked from end to end, without its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PulledManifest {
    /// Digest of what the reference named: an index, or the manifest itself.
    pub(crate) index_digest: Digest,
    /// Digest of the manifest.
    pub(crate) manifest_digest: Digest,
    /// What the image consists of.
    pub(crate) manifest: Manifest,
    /// The manifest as it came, with its type.
    pub(crate) manifest_bytes: Vec<u8>,
    /// The configuration as it came; its digest is in the manifest.
    pub(crate) config: Vec<u8>,
    /// Digests of the layers when they are unpacked, the lowest first; as many as there are layers.
    pub(crate) diff_ids: Vec<Digest>,
}

impl Registry {
    /// What the reference stands for now: one small request where the registry behaves.
    pub(crate) fn resolve(&self) -> Result<Resolved, RegistryError> {
        if let Some(digest) = self.inner.reference.digest() {
            return Ok(Resolved { digest: digest.clone(), document: None });
        }
        let tag = self.inner.reference.tag().unwrap_or_default();
        self.run(self.first_of(async |endpoint| endpoint.resolve(tag, self.what()).await))
    }

    /// The image for this machine that `resolved` has.
    pub(crate) fn manifest(&self, resolved: &Resolved) -> Result<PulledManifest, RegistryError> {
        self.run(
            self.first_of(async |endpoint| endpoint.pull_manifest(resolved, self.what()).await),
        )
    }
}

impl Endpoint {
    async fn resolve(&self, tag: &str, what: String) -> Result<Resolved, RegistryError> {
        const NO_HEAD: &[StatusCode] =
            &[StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED];
        let path = format!("manifests/{tag}");
        let ask =
            Ask::new(Method::HEAD, &*path, &*what).accept(&manifest::ACCEPT).tolerate(NO_HEAD);
        let answer = self.ask(&ask).await?;
        let told = answer.header(CONTENT_DIGEST).and_then(|text| Digest::parse(text).ok());
        if let Some(digest) = told.filter(|_| answer.status.is_success()) {
            return Ok(Resolved { digest, document: None });
        }
        let ask = Ask::new(Method::GET, &*path, &*what).accept(&manifest::ACCEPT);
        let (bytes, headers) = self.ask_for_bytes(&ask, manifest::MAX_MANIFEST).await?;
        let digest = digest_of(&bytes);
        Ok(Resolved { digest, document: Some((bytes, content_type(&headers))) })
    }

    async fn pull_manifest(
        &self,
        resolved: &Resolved,
        what: String,
    ) -> Result<PulledManifest, RegistryError> {
        let invalid = |reason: String| RegistryError::Invalid { what: what.clone(), reason };
        let machine = Platform::of_this_machine();
        let no_platform = |found: Vec<String>| RegistryError::NoPlatform {
            what: what.clone(),
            wanted: machine.name(),
            found,
        };
        let (mut bytes, kind) = match &resolved.document {
            Some(document) => document.clone(),
            None => self.document(&resolved.digest, &what).await?,
        };
        let mut digest = resolved.digest.clone();
        let mut document = Document::parse(&bytes, kind.as_deref()).map_err(invalid)?;
        if let Document::Index(entries) = &document {
            let entry = manifest::choose(entries, &machine).map_err(no_platform)?;
            digest = Digest::parse(&entry.digest).map_err(|error| invalid(error.to_string()))?;
            let size = entry.size;
            let (found, kind) = self.document(&digest, &what).await?;
            if found.len() as u64 != size {
                return Err(invalid(format!("its index gives manifest {digest} a wrong size")));
            }
            document = Document::parse(&found, kind.as_deref()).map_err(invalid)?;
            bytes = found;
        }
        let Document::Manifest(manifest) = document else {
            return Err(invalid("its index leads to another index".to_owned()));
        };
        manifest.check().map_err(invalid)?;
        let about = format!("the configuration of {what}");
        let config = self.small_blob(&manifest.config, about).await?;
        let diff_ids =
            manifest::check_config(&config, &manifest, &machine).map_err(|fault| match fault {
                ConfigFault::Platform(found) => no_platform(vec![found]),
                ConfigFault::Other(reason) => invalid(reason),
            })?;
        Ok(PulledManifest {
            index_digest: resolved.digest.clone(),
            manifest_digest: digest,
            manifest,
            manifest_bytes: bytes,
            config,
            diff_ids,
        })
    }

    /// A manifest or index by its digest, with the type that the registry gives it.
    async fn document(
        &self,
        digest: &Digest,
        what: &str,
    ) -> Result<(Vec<u8>, Option<String>), RegistryError> {
        let ask = Ask::new(Method::GET, format!("manifests/{digest}"), what);
        let ask = ask.accept(&manifest::ACCEPT);
        let (bytes, headers) = self.checked(&ask, digest, manifest::MAX_MANIFEST).await?;
        Ok((bytes, content_type(&headers)))
    }

    /// A blob that fits into memory; its descriptor has been checked to be small.
    pub(super) async fn small_blob(
        &self,
        blob: &Descriptor,
        what: String,
    ) -> Result<Vec<u8>, RegistryError> {
        let ask = Ask::new(Method::GET, format!("blobs/{}", blob.digest), &*what);
        let (bytes, _) = self.checked(&ask, &blob.digest, blob.size).await?;
        if bytes.len() as u64 != blob.size {
            let reason = format!("it has {} bytes instead of {}", bytes.len(), blob.size);
            return Err(RegistryError::Invalid { what, reason });
        }
        Ok(bytes)
    }

    /// Bytes that have that digest, whatever the registry says.
    async fn checked(
        &self,
        ask: &Ask,
        digest: &Digest,
        limit: u64,
    ) -> Result<(Vec<u8>, HeaderMap), RegistryError> {
        let mut reason = String::new();
        for _ in 0..WRONG_ANSWERS {
            let (bytes, headers) = self.ask_for_bytes(ask, limit).await?;
            let found = digest_of(&bytes);
            if found == *digest {
                return Ok((bytes, headers));
            }
            reason = format!("what comes for {digest} has the digest {found}");
        }
        Err(RegistryError::Invalid { what: ask.what.clone(), reason })
    }
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    headers.get(CONTENT_TYPE)?.to_str().ok().map(str::to_owned)
}
