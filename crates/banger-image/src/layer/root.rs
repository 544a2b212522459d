//! A root disk in the making.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::thread;

use banger_ext4::{Tree, Writer};
use banger_host::command::Cancel;

use super::Limits;
use super::compression::{Compression, ahead, decompress};
use super::digest::verified;
use super::error::{LayerError, shown};
use super::merge::{Merge, Refusal};
use super::tar::{Stream, TarReader};
use crate::error::PullError;
use crate::rootfs::{DiskPlan, check_disk, format_disk};

/// A layer as it comes.
pub(crate) struct Layer<'a> {
    /// What errors call it: `layer 2 of 5`.
    pub(crate) name: String,
    /// What the digest of the stream has to be, `sha256:<64 hex>`.
    pub(crate) digest: Option<String>,
    /// What the digest of the tar in it has to be.
    pub(crate) diff_id: Option<String>,
    /// A tar, compressed or not.
    pub(crate) stream: Box<dyn Read + Send + 'a>,
}

/// A disk that layers are put on, the lowest first. Whatever fails, the disk is of no use then.
pub(crate) struct Root {
    disk: PathBuf,
    tree: Tree,
    writer: Writer,
    limits: Limits,
    /// What has been used of the limits.
    used: Used,
}

#[derive(Debug, Default)]
struct Used {
    bytes: u64,
    entries: usize,
    text: u64,
}

impl Root {
    /// Begin with an empty disk.
    pub(crate) fn create(
        disk: &Path,
        plan: &DiskPlan<'_>,
        cancel: &Cancel,
    ) -> Result<Self, PullError> {
        format_disk(disk, plan, cancel)?;
        let file = File::options().read(true).write(true).open(disk);
        let file = file.map_err(PullError::io("open", disk))?;
        Ok(Self {
            disk: disk.to_owned(),
            tree: Tree::new(),
            writer: Writer::open(file).map_err(LayerError::Disk)?,
            limits: Limits::of_disk(plan.bytes),
            used: Used::default(),
        })
    }

    /// Change what the layers may amount to.
    #[cfg(test)]
    pub(super) fn limit(&mut self, change: impl FnOnce(&mut Limits)) {
        change(&mut self.limits);
    }

    /// Put a layer on top.
    pub(crate) fn apply(&mut self, layer: Layer<'_>, cancel: &Cancel) -> Result<(), LayerError> {
        let Layer { name, digest, diff_id, stream } = layer;
        let read = |error| LayerError::read(name.clone(), error);
        let stream: Box<dyn Read + Send + '_> = match digest {
            Some(digest) => Box::new(verified(stream, digest)),
            None => stream,
        };
        let (compression, stream) = decompress(stream).map_err(read)?;
        let applied = thread::scope(|scope| {
            // One thread decompresses, this one does all the rest.
            let stream: Box<dyn Read + '_> = match compression {
                Compression::None => stream,
                _ => Box::new(ahead(scope, stream)),
            };
            match diff_id {
                Some(diff_id) => self.merge(&name, verified(stream, diff_id), cancel),
                None => self.merge(&name, stream, cancel),
            }
        });
        if cancel.is_cancelled() { Err(LayerError::Cancelled) } else { applied }
    }

    fn merge(&mut self, name: &str, stream: impl Read, cancel: &Cancel) -> Result<(), LayerError> {
        let Self { tree, writer, limits, used, .. } = self;
        let watched =
            Watched { inner: stream, cancel, bytes: &mut used.bytes, limit: limits.bytes };
        let mut tar = TarReader::new(Stream::new(watched));
        let mut merge = Merge::new(tree, writer, limits, &mut used.text);
        while let Some(entry) = tar.next_entry().map_err(|error| LayerError::tar(name, error))? {
            let path = entry.path.clone();
            let invalid = |reason| {
                let entry = Some(shown(&path));
                LayerError::Invalid { layer: name.to_owned(), entry, reason }
            };
            used.entries += 1;
            if used.entries > limits.entries {
                return Err(invalid(format!("there are more than {} entries", limits.entries)));
            }
            if cancel.is_cancelled() {
                return Err(LayerError::Cancelled);
            }
            let merged = merge.entry(entry, &mut tar.data());
            merged.map_err(|refusal| match (refusal, tar.take_failure()) {
                (Refusal::Invalid(reason), _) => invalid(reason),
                (Refusal::Contents(_), Some(failure)) => LayerError::tar(name, failure),
                (Refusal::Contents(error), None) => LayerError::Disk(error),
            })?;
        }
        merge.finish();
        Ok(())
    }

    /// Write all that is not on the disk yet, and check it. The disk is durable then, its directory
    /// entry is not.
    pub(crate) fn finish(self, cancel: &Cancel) -> Result<(), PullError> {
        let Self { disk, tree, writer, .. } = self;
        writer.finish(&tree).map_err(LayerError::Disk)?;
        // Checking takes a while, and needs no memory of ours.
        drop(tree);
        let synced = File::open(&disk).and_then(|file| file.sync_all());
        synced.map_err(PullError::io("sync", &disk))?;
        check_disk(&disk, cancel)
    }
}

/// A stream that ends with an error when the work is called off, or when there is too much of it.
struct Watched<'a, R> {
    inner: R,
    cancel: &'a Cancel,
    bytes: &'a mut u64,
    limit: u64,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let count = self.inner.read(buffer)?;
        *self.bytes += count as u64;
        if *self.bytes > self.limit {
            let reason = format!("it unpacks to more than {} MiB", self.limit >> 20);
            return Err(io::Error::new(ErrorKind::FileTooLarge, reason));
        }
        Ok(count)
    }
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
