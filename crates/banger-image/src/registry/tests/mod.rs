//! Tests against a real registry, and a proxy in front of it that misbehaves.

mod auth;
mod faults;
mod network;
mod processes;
mod pull;
mod push;
mod sharing;
mod signature;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_api::operation::Progress;
use banger_testkit::registry::{FaultProxy, OciLayout, RegistryOptions, RegistryServer, TestImage};
use serde_json::Value;

use super::manifest::{Descriptor, Manifest};
use super::retry::Patience;
use super::*;
use crate::blobs::Blobs;

/// How long a test waits for what must happen.
const BOUND: Duration = Duration::from_secs(20);

/// A registry, a proxy in front of it, and a store to fetch into.
struct Scene {
    dir: tempfile::TempDir,
    server: RegistryServer,
    proxy: FaultProxy,
    layout: OciLayout,
    blobs: Blobs,
}

impl Scene {
    fn new() -> Self {
        Self::with(&RegistryOptions::default())
    }

    fn with(options: &RegistryOptions) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let server = RegistryServer::start_with(dir.path(), options);
        let proxy = FaultProxy::start(server.address());
        let layout = OciLayout::create(&dir.path().join("layout"));
        let blobs = Blobs::open(dir.path()).expect("it opens");
        Self { dir, server, proxy, layout, blobs }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Pushes an image and gives its descriptor.
    fn push(&self, image: &TestImage, name: &str) -> Value {
        let descriptor = self.layout.add_image(image);
        self.layout.push(&descriptor, &self.server, name);
        descriptor
    }

    /// The image's repository, through the proxy.
    fn registry(&self, name: &str) -> Registry {
        connect(&self.proxy.reference(name))
    }

    /// Pulls through the proxy, all of it.
    fn pull(&self, name: &str) -> Result<PulledManifest, RegistryError> {
        pull(&self.registry(name), &self.blobs)
    }
}

/// Surroundings without any files, and little patience.
fn surroundings() -> Surroundings {
    let patience = Patience {
        attempts: 4,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(10),
        longest_request: Duration::from_secs(2),
        connect: Duration::from_secs(5),
        silence: Duration::from_secs(60),
    };
    Surroundings { patience, ..Surroundings::default() }
}

fn connect(reference: &str) -> Registry {
    connect_with(&surroundings(), reference, &RegistryAccess::default())
}

fn connect_with(surroundings: &Surroundings, at: &str, access: &RegistryAccess) -> Registry {
    let purpose = (Purpose::Pull, &Cancel::new());
    Registry::connect_in(surroundings, &reference(at), access, purpose).expect("settings are fine")
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).expect("a reference")
}

fn silent() -> ProgressSink {
    Arc::new(|_| {})
}

/// Takes progress down.
fn recorder() -> (ProgressSink, Arc<Mutex<Vec<Progress>>>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&said);
    (Arc::new(move |progress| sink.lock().expect("no panic").push(progress)), said)
}

fn pull(registry: &Registry, blobs: &Blobs) -> Result<PulledManifest, RegistryError> {
    let resolved = registry.resolve()?;
    let pulled = registry.manifest(&resolved)?;
    registry.fetch(&pulled.manifest.layers, blobs, silent())?.finish()?;
    Ok(pulled)
}

/// The bytes of a stored blob.
fn contents(blobs: &Blobs, digest: &Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut contents = blobs.contents(digest).expect("it is here");
    contents.read_to_end(&mut bytes).expect("it can be read");
    bytes
}

/// Whether every layer of an image is stored and right.
fn has_all(blobs: &Blobs, pulled: &PulledManifest) -> bool {
    let is_right = |layer: &Descriptor| {
        let bytes = contents(blobs, &layer.digest);
        digest_of(&bytes) == layer.digest && bytes.len() as u64 == layer.size
    };
    pulled.manifest.layers.iter().all(is_right) && blobs.partials().expect("a list").is_empty()
}

fn write(path: &Path, text: &str) -> String {
    std::fs::write(path, text).expect("our own directory");
    path.display().to_string()
}
