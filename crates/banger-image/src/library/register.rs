//! Images out of local files.

use banger_api::step;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use banger_api::image::{Image, ImageConfig, OciOrigin, RegisterImage, RegisterSource};
use banger_api::operation::Progress;
use banger_api::vm::InitMode;
use banger_core::name;
use banger_ext4::Reader;
use banger_host::clock::now_ms;
use banger_host::command::Cancel;
use sha2::{Digest, Sha256};

use super::images::DISK;
use super::make::{DISK_BYTES, Draft, disk_bytes_for, recipe};
use super::promote::{check_new_name, read_limits};
use super::pull::LABEL;
use super::{Library, ensure_room};
use crate::archive::{self, ArchivedImage, Source};
use crate::error::PullError;
use crate::layer::Layer;
use crate::rootfs::{DiskPlan, make_root_disk, tree_digest};
use crate::stage::Reporter;
use banger_host::sparse::disk_digest;

/// What files are called besides their names.
const ENDINGS: [&str; 9] =
    [".gz", ".tgz", ".zst", ".tar", ".oci", ".docker", ".ext4", ".img", ".rootfs"];

/// Local files, and what the image of them will be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Registration<'a> {
    /// The files.
    pub(super) path: &'a Path,
    /// Where they came from, for people.
    pub(super) source: &'a str,
    /// The image's name; None takes what the files say.
    pub(super) name: Option<&'a str>,
    pub(super) kernel: Option<&'a str>,
    pub(super) init: InitMode,
}

impl Library {
    /// Make an image of local files: an ext4 file system, a root filesystem as a directory or a tar,
    /// an OCI layout, or what `docker save` wrote. An upload must have become a path.
    ///
    /// # Errors
    /// See [`PullError`]. Nothing half-made stays visible.
    pub fn register_image(
        &self,
        request: &RegisterImage,
        on_progress: &mut dyn FnMut(Progress),
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        let RegisterSource::Path { path } = &request.source else {
            return Err(PullError::unexpected("an upload", "it has no path"));
        };
        let is_nameless = path.starts_with("/proc/self/fd/");
        let registration = Registration {
            path: Path::new(path),
            source: match &request.description {
                Some(description) => description,
                None if is_nameless => "standard input",
                None => path,
            },
            name: request.name.as_deref(),
            kernel: request.kernel.as_deref(),
            init: request.init,
        };
        self.register(registration, &mut Reporter::new(on_progress), cancel)
    }

    pub(super) fn register(
        &self,
        what: Registration<'_>,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        if let Some(name) = what.name {
            check_new_name(name)?;
        }
        self.in_work_dir(|work| {
            reporter.stage(step::IMAGE_LOOK, "looking at what it is")?;
            let source = archive::open(what.path, &work.subdir("archive")?, cancel);
            match source.map_err(|error| what.named(error))? {
                Source::Image(image) => self.register_archive(&what, &image, reporter, cancel),
                Source::Tar => self.register_tar(&what, reporter, cancel),
                Source::Directory => {
                    self.register_directory(&what, &work.subdir("made")?, reporter, cancel)
                }
                Source::Ext4 => self.register_disk(&what, reporter, cancel),
            }
        })
    }

    fn register_archive(
        &self,
        what: &Registration<'_>,
        image: &ArchivedImage,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        ensure_room(self.images.dir(), (image.bytes() >> 20) * 3 + 64)?;
        let disk_bytes = disk_bytes_for(image.bytes());
        let name = match (what.name, &image.name) {
            (Some(name), _) => name.to_owned(),
            (None, Some(name)) => name.clone(),
            (None, None) => what.name_of_file()?,
        };
        let made_of = recipe("oci", &image.digest.to_string(), disk_bytes);
        let draft = Draft {
            config: image.config.clone(),
            oci: image.origin.clone().map(|origin| OciOrigin { reference: None, ..origin }),
            ..what.draft(name, made_of, disk_bytes)
        };
        match self.made_before(&draft)? {
            Some(image) => Ok(image),
            None => self.assemble(draft, image.layers(), reporter, cancel),
        }
    }

    fn register_tar(
        &self,
        what: &Registration<'_>,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        let open = || File::open(what.path).map_err(PullError::io("open", what.path));
        let file = open()?;
        let bytes = file.metadata().map_err(PullError::io("read", what.path))?.len();
        ensure_room(self.images.dir(), (bytes >> 20) * 3 + 64)?;
        reporter.stage(step::IMAGE_MEASURE, "measuring the root filesystem")?;
        let digest = digest_of(file, what.path, cancel)?;
        let disk_bytes = disk_bytes_for(bytes);
        let made_of = recipe("tar", &digest, disk_bytes);
        let draft = what.draft(what.chosen_name()?, made_of, disk_bytes);
        if let Some(image) = self.made_before(&draft)? {
            return Ok(image);
        }
        let layer = Layer {
            name: what.source.to_owned(),
            digest: Some(format!("sha256:{digest}")),
            diff_id: None,
            stream: Box::new(open()?),
        };
        self.assemble(draft, [Ok(layer)].into_iter(), reporter, cancel)
    }

    fn register_directory(
        &self,
        what: &Registration<'_>,
        made: &Path,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        reporter.stage(step::IMAGE_MEASURE, "measuring the root filesystem")?;
        let made_of = recipe("tree", &tree_digest(what.path, cancel)?, DISK_BYTES);
        let draft = what.draft(what.chosen_name()?, made_of, DISK_BYTES);
        if let Some(image) = self.made_before(&draft)? {
            return Ok(image);
        }
        reporter.stage(step::IMAGE_DISK, "building the disk")?;
        let (label, bytes) = (LABEL, DISK_BYTES);
        let plan = DiskPlan { label, bytes, journal: true, identity: &draft.made_of };
        make_root_disk(what.path, &made.join(DISK), &plan, cancel)?;
        self.publish_image(made, draft)
    }

    fn register_disk(
        &self,
        what: &Registration<'_>,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        let unusable = |error: banger_ext4::Error| PullError::invalid(what.source, error);
        reporter.stage(step::IMAGE_MEASURE, "measuring the root filesystem")?;
        let digest = disk_digest(what.path).map_err(PullError::io("read", what.path))?;
        let file = File::open(what.path).map_err(PullError::io("open", what.path))?;
        let bytes = file.metadata().map_err(PullError::io("read", what.path))?.len();
        let disk_bytes = DISK_BYTES.max(bytes.next_multiple_of(1 << 20));
        let made_of = recipe("ext4", &digest, disk_bytes);
        let draft = what.draft(what.chosen_name()?, made_of, disk_bytes);
        if let Some(image) = self.made_before(&draft)? {
            return Ok(image);
        }
        let reader = Reader::open(file).map_err(unusable)?;
        let tree = reader.tree(&read_limits(disk_bytes)).map_err(unusable)?;
        self.write_anew(draft, (&reader, &tree), reporter, cancel)
    }

    /// The image that was made of the same before, now also under the wanted name.
    fn made_before(&self, draft: &Draft) -> Result<Option<Image>, PullError> {
        let found = self.image_where(|manifest| {
            manifest.made_of == draft.made_of
                && manifest.image.config == draft.config
                && (&manifest.image.kernel, manifest.image.init) == (&draft.kernel, draft.init)
        })?;
        let Some(local) = found else { return Ok(None) };
        self.images.set_name(&draft.name, &local.image.digest)?;
        self.touch(&local.image.digest, now_ms())?;
        Ok(Some(local.under(draft.name.clone()).image))
    }
}

impl Registration<'_> {
    fn draft(&self, name: String, made_of: String, disk_bytes: u64) -> Draft {
        Draft {
            name,
            source: self.source.to_owned(),
            config: ImageConfig::default(),
            oci: None,
            kernel: self.kernel.map(str::to_owned),
            init: self.init,
            made_of,
            disk_bytes,
        }
    }

    /// The same error, with what a person knows in place of a path that only this process does.
    fn named(&self, error: PullError) -> PullError {
        match error {
            PullError::Invalid { what, reason } if Path::new(&what) == self.path => {
                PullError::invalid(self.source, reason)
            }
            other => other,
        }
    }

    fn chosen_name(&self) -> Result<String, PullError> {
        match self.name {
            Some(name) => Ok(name.to_owned()),
            None => self.name_of_file(),
        }
    }

    /// The name that the file's own name suggests.
    fn name_of_file(&self) -> Result<String, PullError> {
        // What was sent has no file.
        let is_nameless = self.path.starts_with("/proc/self/fd");
        let file = if is_nameless { Path::new("") } else { self.path };
        let file = file.file_name().unwrap_or_default().to_string_lossy();
        let mut stem: &str = &file;
        while let Some(shorter) = ENDINGS.iter().find_map(|ending| stem.strip_suffix(ending)) {
            stem = shorter;
        }
        name::mend(stem).ok_or_else(|| PullError::NoName { source_text: self.source.to_owned() })
    }
}

/// sha256 of a file, 64 hex digits.
pub(super) fn digest_of(mut file: File, path: &Path, cancel: &Cancel) -> Result<String, PullError> {
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        if cancel.is_cancelled() {
            return Err(PullError::Cancelled);
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(sum.finalize())),
            Ok(count) => sum.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(PullError::io("read", path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_after_its_file() {
        let name = |path| {
            let (kernel, init, path) = (None, InitMode::Agent, Path::new(path));
            Registration { path, source: "", name: None, kernel, init }.name_of_file().ok()
        };
        let cases = [
            ("/x/My Root.tar.gz", Some("my-root")),
            ("/x/alpine.rootfs.tar.zst", Some("alpine")),
            ("/x/disk.ext4", Some("disk")),
            ("/srv/tree", Some("tree")),
            ("/", None),
            ("/proc/self/fd/7", None),
        ];
        for (path, want) in cases {
            assert_eq!(name(path).as_deref(), want, "{path}");
        }
    }
}
