//! Making an image local: from the Debian archive, a registry, or a file somewhere.

use banger_api::image::{Image, ImageConfig, PullRequest};
use banger_api::step;
use banger_core::reference::Reference;
use banger_host::clock::now_ms;
use banger_host::command::Cancel;

use super::images::{DISK, Wanted, write_manifest};
use super::make::{DISK_BYTES, Draft, recipe};
use super::oci::Target;
use super::{Library, ensure_room};
use crate::catalog::{DebianImage, ImageEntry, ImageSource};
use crate::debian::bootstrap::bootstrap;
use crate::error::PullError;
use crate::registry::ProgressSink;
use crate::rootfs::{DiskPlan, make_root_disk, tree_digest};
use crate::stage::Reporter;
use crate::store::WorkDir;

/// Label of the file system of every image.
pub(super) const LABEL: &str = "banger-root";

impl Library {
    /// Make an image local.
    ///
    /// A Debian image that is here and whole is taken as it is, unless a refresh asks for a new
    /// version. A tag of a registry is looked up, and fetched only if it names something else than
    /// what is here.
    ///
    /// # Errors
    /// See [`PullError`]. Nothing half-made stays visible.
    pub fn pull_image(
        &self,
        request: &PullRequest,
        sink: &ProgressSink,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        let mut progress = |progress| sink(progress);
        let mut reporter = Reporter::new(&mut progress);
        match self.wanted(&request.name)? {
            Wanted::Entry(entry) => match entry.source() {
                ImageSource::Debian(debian) => {
                    refuse_key(request, &entry.name)?;
                    self.pull_debian((&entry, debian), request.refresh, &mut reporter, cancel)
                }
                ImageSource::Oci(oci) => {
                    let reference = Reference::parse(&oci.reference)
                        .map_err(|error| PullError::unexpected(&entry.name, error))?;
                    let target = Target::of_entry(&entry, reference);
                    self.pull_oci(&target, request, sink, cancel)
                }
                ImageSource::File(file) => {
                    refuse_key(request, &entry.name)?;
                    self.pull_file(&entry, file, &mut reporter, cancel)
                }
            },
            Wanted::Reference(reference) => {
                let target = Target::of_reference(reference);
                self.pull_oci(&target, request, sink, cancel)
            }
            Wanted::Local => match self.whole_image(&request.name) {
                Some(local) => Ok(local.image),
                None => Err(super::images::not_found(&request.name, None).into()),
            },
        }
    }

    fn pull_debian(
        &self,
        (entry, debian): (&ImageEntry, &DebianImage),
        refresh: bool,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        if let (false, Some(local)) = (refresh, self.whole_image(&entry.name)) {
            return Ok(local.image);
        }
        let began = now_ms();
        let _lock = self.images.lock_name(&entry.name, cancel, &mut || {
            reporter.wait("image.wait", "waiting for another process that builds this image");
        })?;
        // Whoever had the lock has made it.
        if let Some(local) = self.whole_image(&entry.name)
            && (!refresh || local.image.created_at_ms >= began)
        {
            return Ok(local.image);
        }
        ensure_room(self.images.dir(), entry.build_mib)?;
        self.in_work_dir(|work| self.build_debian((entry, debian), work, reporter, cancel))
    }

    /// Do something in a directory that is removed afterwards.
    pub(super) fn in_work_dir<T>(
        &self,
        make: impl FnOnce(&WorkDir) -> Result<T, PullError>,
    ) -> Result<T, PullError> {
        let work = self.images.begin()?;
        let made = make(&work);
        // The result is what counts; what cannot be removed now is removed at the next opening.
        if let Err(error) = work.remove() {
            tracing::warn!("left for later: {error}");
        }
        made
    }

    fn build_debian(
        &self,
        (entry, debian): (&ImageEntry, &DebianImage),
        work: &WorkDir,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        let tree = bootstrap(debian, &work.subdir("debian")?, reporter, cancel)?;
        reporter.stage(step::IMAGE_UNPACK, "measuring the root filesystem")?;
        let made_of = recipe("tree", &tree_digest(&tree, cancel)?, DISK_BYTES);
        if let Some(image) = self.still_current(entry, &made_of)? {
            return Ok(image);
        }
        reporter.stage(step::IMAGE_DISK, "building the disk")?;
        let made = work.subdir("made")?;
        let plan = DiskPlan { label: LABEL, bytes: DISK_BYTES, journal: true, identity: &made_of };
        make_root_disk(&tree, &made.join(DISK), &plan, cancel)?;
        let draft = Draft {
            name: entry.name.clone(),
            source: entry.source_text(),
            config: ImageConfig::default(),
            oci: None,
            kernel: Some(entry.kernel.clone()),
            init: entry.init,
            made_of,
            disk_bytes: DISK_BYTES,
        };
        self.publish_image(&made, draft)
    }

    /// The image of that name if it was made of the same as a new one would be: then it is as new as
    /// the packages it was just compared with.
    fn still_current(&self, entry: &ImageEntry, made_of: &str) -> Result<Option<Image>, PullError> {
        let Some(local) = self.whole_image(&entry.name) else { return Ok(None) };
        let digest = &local.image.digest;
        let Some(mut manifest) = self.read_manifest(digest, &entry.name)? else { return Ok(None) };
        if manifest.made_of != made_of {
            return Ok(None);
        }
        manifest.image.created_at_ms = now_ms();
        write_manifest(local.root.parent().unwrap_or(&local.root), &manifest)?;
        Ok(Some(manifest.image))
    }
}

/// A key can only be asked for where there are signatures.
fn refuse_key(request: &PullRequest, name: &str) -> Result<(), PullError> {
    match request.verify_key {
        Some(_) => Err(PullError::NoSignatures { name: name.to_owned() }),
        None => Ok(()),
    }
}
