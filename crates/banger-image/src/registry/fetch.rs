//! Layers, several at a time, into the store of blobs.
//!
//! A [`Fetch`] works in a thread of its own, so that the lowest layers can be unpacked while the
//! others still come.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use banger_core::reference::Digest;
use banger_host::command::Cancel;
use banger_host::files::free_bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::download::{Arrived, download};
use super::error::RegistryError;
use super::manifest::Descriptor;
use super::meter::{ProgressSink, Stage};
use super::{Endpoint, Registry};
use crate::blobs::{Blobs, Contents};
use crate::error::LibraryError;

/// How many layers come at the same time.
const AT_ONCE: usize = 4;

/// Layers on their way. Dropping it calls the rest off; what has come is kept.
#[derive(Debug)]
pub(crate) struct Fetch {
    shared: Arc<Shared>,
    stop: Cancel,
    worker: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What has come and is what its digest says.
    ready: HashMap<Digest, Contents>,
    /// Why the rest will not come. Whoever asks first is told.
    failure: Option<RegistryError>,
    /// Nothing more will come.
    is_over: bool,
}

impl Registry {
    /// Begin to bring layers into the store. What is there already, or partly, does not come again.
    pub(crate) fn fetch(
        &self,
        layers: &[Descriptor],
        blobs: &Blobs,
        progress: ProgressSink,
    ) -> Result<Fetch, RegistryError> {
        let layers = distinct(layers);
        ensure_room(&layers, blobs)?;
        let stage = Stage { name: "image.layers", message: "fetching layers", sink: progress };
        let shared = Arc::new(Shared::default());
        let stop = Cancel::new();
        let job = Job { layers, blobs: blobs.clone(), stage, shared: Arc::clone(&shared) };
        let worker = {
            let (registry, stop) = (self.clone(), stop.clone());
            std::thread::spawn(move || {
                let end = End(Arc::clone(&job.shared));
                let done = registry.run_until(&stop, job.run(&registry.inner.endpoints, &stop));
                end.0.state().failure = done.err();
            })
        };
        Ok(Fetch { shared, stop, worker: Some(worker) })
    }
}

impl Fetch {
    /// Wait until a layer is here, and read it. It has been checked against its digest.
    pub(crate) fn wait_for(&self, digest: &Digest) -> Result<Contents, RegistryError> {
        let mut state = self.shared.state();
        loop {
            if let Some(contents) = state.ready.get(digest) {
                return Ok(contents.clone());
            }
            if state.is_over {
                return Err(state.failure.take().unwrap_or(RegistryError::Cancelled));
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wait until all layers are here, and on the disk.
    pub(crate) fn finish(mut self) -> Result<(), RegistryError> {
        if let Some(worker) = self.worker.take() {
            // A panic has left no trace in the state but that nothing more will come.
            worker.join().map_err(|_| RegistryError::Cancelled)?;
        }
        self.shared.state().failure.take().map_or(Ok(()), Err)
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Tells everybody that waits when the worker is gone, also if it panics.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.state().is_over = true;
        self.0.changed.notify_all();
    }
}

/// What the worker does.
struct Job {
    layers: Vec<Descriptor>,
    blobs: Blobs,
    stage: Stage,
    shared: Arc<Shared>,
}

impl Job {
    async fn run(&self, endpoints: &[Endpoint], stop: &Cancel) -> Result<(), RegistryError> {
        let transfers = self.layers.iter().map(|layer| self.bring(endpoints, layer, stop));
        stream::iter(transfers).buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn bring(
        &self,
        endpoints: &[Endpoint],
        layer: &Descriptor,
        stop: &Cancel,
    ) -> Result<(), RegistryError> {
        let meter = self.stage.meter(&layer.digest, layer.size);
        match download(endpoints, layer, &self.blobs, (&meter, stop)).await? {
            Arrived::Stored(contents) => self.show(layer, contents),
            Arrived::Fetched(verified) => {
                self.show(layer, verified.contents()?);
                // Waiting for the disk is for another thread: layers still come, and the first are
                // being unpacked.
                let published = tokio::task::spawn_blocking(move || verified.publish()).await;
                // Only a panic, or the end of the runtime.
                published.map_err(|_| RegistryError::Cancelled)??;
            }
        }
        Ok(())
    }

    fn show(&self, layer: &Descriptor, contents: Contents) {
        self.shared.state().ready.insert(layer.digest.clone(), contents);
        self.shared.changed.notify_all();
    }
}

/// The same layer may be in an image twice.
fn distinct(layers: &[Descriptor]) -> Vec<Descriptor> {
    let mut distinct: Vec<Descriptor> = Vec::new();
    for layer in layers {
        if !distinct.iter().any(|known| known.digest == layer.digest) {
            distinct.push(layer.clone());
        }
    }
    distinct
}

/// Fail early, and clearly, if it cannot fit.
fn ensure_room(layers: &[Descriptor], blobs: &Blobs) -> Result<(), RegistryError> {
    let partials = blobs.partials()?;
    let here = |layer: &Descriptor| {
        let part = partials.iter().find(|partial| partial.digest == layer.digest);
        blobs.bytes(&layer.digest).or(part.map(|part| part.bytes)).unwrap_or(0)
    };
    let needed: u64 = layers.iter().map(|layer| layer.size.saturating_sub(here(layer))).sum();
    let free = free_bytes(blobs.dir()).map_err(LibraryError::io("measure", blobs.dir()))?;
    if needed > free {
        return Err(RegistryError::NoRoom {
            needed_mib: needed.div_ceil(1 << 20),
            free_mib: free >> 20,
        });
    }
    Ok(())
}
