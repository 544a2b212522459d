//! Registries: what a reference names, fetched, checked and stored; and stored images, pushed.
//!
//! A [`Registry`] speaks the distribution API of the OCI (Docker's registry API v2) for one
//! repository. Its methods block the calling thread, can be called off, and have bounds for
//! everything that comes: sizes, counts, times, attempts. Nothing that a registry sends is believed:
//! manifests and blobs are what their digests say, or are refused. `docs/decisions/007` says why the
//! client is our own.
//!
//! ```text
//! mod.rs          a repository, its mirrors, and calling things off
//! pull.rs         what a reference names now, and what that consists of
//! fetch.rs        layers into the store of blobs, several at a time
//! download.rs     one of them: resumed, checked, tried again
//! push.rs         the other direction
//! signature.rs    whose signature an image has
//! endpoint.rs     one repository in one registry: logins, redirects, retries
//! auth.rs         what a registry is shown: challenge.rs, authfile.rs, credentials.rs
//! transport.rs    one request: connector.rs, payload.rs
//! manifest.rs, settings.rs, retry.rs, failure.rs, location.rs    decisions
//! ```

mod auth;
mod authfile;
mod challenge;
mod connector;
mod credentials;
mod download;
mod endpoint;
mod error;
mod failure;
mod fetch;
mod file;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod location;
pub(crate) mod manifest;
mod meter;
mod payload;
mod pull;
mod push;
mod retry;
mod settings;
mod signature;
mod surroundings;
#[cfg(test)]
mod tests;
mod transport;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use banger_api::image::RegistryAccess;
use banger_core::reference::{Digest, Reference};
use banger_host::command::Cancel;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;

use auth::{Auth, Errand};
use credentials::Credentials;
use endpoint::{Endpoint, Scheme};
pub use error::RegistryError;
pub(crate) use file::fetch_file;
pub use meter::ProgressSink;
pub(crate) use pull::{PulledManifest, Resolved};
pub(crate) use push::Upload;
use settings::Settings;
pub(crate) use surroundings::Surroundings;
use transport::Transport;

/// Where Docker's own registry really is.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
/// The header in which a registry says what a tag stands for, and what it has taken.
const CONTENT_DIGEST: &str = "docker-content-digest";
/// How often is looked whether somebody called it off.
const LOOK: Duration = Duration::from_millis(50);

/// What somebody wants of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To read. Mirrors may do.
    Pull,
    /// To write.
    Push,
}

/// A repository of a registry. Clones share logins and connections.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    /// None only while it is dropped.
    runtime: Option<Runtime>,
    /// Mirrors first, the registry itself last.
    endpoints: Vec<Endpoint>,
    reference: Reference,
    cancel: Cancel,
}

impl Registry {
    /// The repository of a reference, for somebody with this access. Reads settings, but neither
    /// credentials nor anything from the network yet.
    pub(crate) fn connect(
        reference: &Reference,
        access: &RegistryAccess,
        purpose: Purpose,
        cancel: &Cancel,
    ) -> Result<Self, RegistryError> {
        Self::connect_in(&Surroundings::of_this_process(), reference, access, (purpose, cancel))
    }

    /// As [`Registry::connect`], in other surroundings than this process's.
    pub(crate) fn connect_in(
        surroundings: &Surroundings,
        reference: &Reference,
        access: &RegistryAccess,
        (purpose, cancel): (Purpose, &Cancel),
    ) -> Result<Self, RegistryError> {
        let (settings, credentials) = surroundings.read(access)?;
        let plan = Plan { surroundings, settings: &settings, credentials: &credentials, cancel };
        let own = (reference.registry(), "");
        let mut endpoints = Vec::new();
        if purpose == Purpose::Pull
            && let Some(mirror) = &settings.of(reference.registry()).mirror
        {
            let place = mirror.split_once('/').unwrap_or((mirror, ""));
            endpoints.push(plan.endpoint(place, reference, purpose)?);
        }
        endpoints.push(plan.endpoint(own, reference, purpose)?);
        // Names are looked up, files read and synced in other threads.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(8)
            .build()
            .map_err(|source| crate::error::LibraryError::Io {
                action: "begin to talk to",
                path: reference.registry().into(),
                source,
            })?;
        let (reference, cancel) = (reference.clone(), cancel.clone());
        let inner = Inner { runtime: Some(runtime), endpoints, reference, cancel };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What this is about, for people: `team/app:1`.
    fn what(&self) -> String {
        let text = self.inner.reference.canonical();
        text[self.inner.reference.registry().len() + 1..].to_owned()
    }

    /// What the first registry says that has an answer.
    async fn first_of<T>(
        &self,
        ask: impl AsyncFn(&Endpoint) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let (own, mirrors) = self.inner.endpoints.split_last().expect("there is always one");
        for mirror in mirrors {
            match ask(mirror).await {
                Err(error) if error.is_of_this_registry() => {
                    tracing::warn!(mirror = mirror.registry, %error, "the mirror does not help");
                }
                other => return other,
            }
        }
        ask(own).await
    }

    /// Do it, unless it is called off.
    fn run<T>(
        &self,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        self.run_until(&self.inner.cancel.clone(), work)
    }

    fn run_until<T>(
        &self,
        stop: &Cancel,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let called_off = async {
            while !stop.is_cancelled() && !self.inner.cancel.is_cancelled() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let runtime = self.inner.runtime.as_ref().expect("it is there until the end");
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = called_off => Err(RegistryError::Cancelled),
                done = work => done,
            }
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A name server that does not answer must not keep us.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("reference", &self.reference).finish_non_exhaustive()
    }
}

/// What all endpoints of a [`Registry`] are made of.
struct Plan<'a> {
    surroundings: &'a Surroundings,
    settings: &'a Settings,
    credentials: &'a Credentials,
    cancel: &'a Cancel,
}

impl Plan<'_> {
    fn endpoint(
        &self,
        (registry, prefix): (&str, &str),
        reference: &Reference,
        purpose: Purpose,
    ) -> Result<Endpoint, RegistryError> {
        let settings = self.settings.of(registry);
        let authorities = match &settings.ca {
            Some(file) => read_authorities(file)?,
            None => Vec::new(),
        };
        let repository = reference.repository().to_owned();
        let path = match prefix.trim_matches('/') {
            "" => repository.clone(),
            prefix => format!("{prefix}/{repository}"),
        };
        let actions = if purpose == Purpose::Pull { "pull" } else { "pull,push" };
        let errand =
            Errand { registry: registry.to_owned(), repository, path: path.clone(), actions };
        let patience = self.surroundings.patience;
        let authority = if registry == DOCKER_HUB.0 { DOCKER_HUB.1 } else { registry };
        Ok(Endpoint {
            registry: registry.to_owned(),
            authority: authority.to_owned(),
            path,
            auth: Auth::new(errand, self.credentials.clone(), self.cancel.clone()),
            transport: Transport::new(&self.surroundings.proxies, authorities, &patience),
            patience,
            scheme: Scheme::new(settings.plain_http),
        })
    }
}

fn read_authorities(file: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let bytes = surroundings::read_file(file)?;
    let wrong =
        |reason: String| RegistryError::Settings { place: file.display().to_string(), reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong("it has no certificate in PEM".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::of_sum(Sha256::digest(bytes).into())
}
