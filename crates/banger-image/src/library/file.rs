//! Images out of files that a catalog names.

use banger_api::step;
use std::path::{Path, PathBuf};

use banger_api::image::Image;
use banger_core::reference::Digest;
use banger_host::command::Cancel;

use super::Library;
use super::register::{Registration, digest_of};
use crate::catalog::{FileImage, ImageEntry};
use crate::error::PullError;
use crate::registry::{Surroundings, fetch_file};
use crate::stage::Reporter;

impl Library {
    /// Make an image of a file that has the digest that the catalog says. One that was made of the
    /// same file is taken as it is.
    pub(super) fn pull_file(
        &self,
        entry: &ImageEntry,
        file: &FileImage,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Image, PullError> {
        let digest = Digest::parse(&format!("sha256:{}", file.sha256.to_ascii_lowercase()))
            .map_err(|error| PullError::unexpected(&entry.name, error))?;
        if let Some(local) = self.whole_image(&entry.name)
            && local.image.source == source_of(file)
        {
            return Ok(local.image);
        }
        let path = self.bring(file, &digest, reporter, cancel)?;
        let source = source_of(file);
        let registration = Registration {
            path: &path,
            source: &source,
            name: Some(&entry.name),
            kernel: Some(&entry.kernel),
            init: entry.init,
        };
        let made = self.register(registration, reporter, cancel);
        // The file itself is not needed any more, or can be had again.
        self.remove_unneeded(&[digest].into())?;
        made
    }

    /// The file, here, with its digest checked.
    fn bring(
        &self,
        file: &FileImage,
        digest: &Digest,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<PathBuf, PullError> {
        if let Some(local) = file.url.strip_prefix("file://") {
            reporter.stage(step::IMAGE_MEASURE, "checking the file")?;
            let path = Path::new(local);
            let opened = std::fs::File::open(path).map_err(PullError::io("open", path))?;
            let found = digest_of(opened, path, cancel)?;
            if found != digest.hex() {
                let reason = format!("its sha256 is {found}, and should be {}", digest.hex());
                return Err(PullError::invalid(&file.url, reason));
            }
            return Ok(path.to_owned());
        }
        if self.blobs.bytes(digest).is_none() {
            reporter.stage(step::IMAGE_DOWNLOAD, &format!("fetching {}", file.url))?;
            let surroundings = Surroundings::of_this_process();
            fetch_file(&surroundings, &file.url, digest, (&self.blobs, cancel))?;
        }
        Ok(self.blobs.path(digest))
    }
}

/// What an image of that file says where it came from: another file is another source.
fn source_of(file: &FileImage) -> String {
    format!("{} (sha256 {:.12})", file.url, file.sha256)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use banger_api::Problem;
    use banger_api::error::ErrorCode;
    use banger_api::image::PullRequest;
    use banger_testkit::registry::{Layer, RegistryServer};

    use super::*;

    /// A registry's layer is a root filesystem in a tar, at a place of the web.
    #[test]
    fn a_file_of_the_web_becomes_an_image_if_it_is_the_right_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let registry = RegistryServer::start(&dir.path().join("registry"));
        let tar = Layer::tar_of(&[("etc/greeting", b"hello")]);
        let digest = registry.put_blob("files", &tar);
        let url = format!("http://{}/v2/files/blobs/{digest}", registry.address());
        let entry = |name: &str, sha256: &str| {
            format!(
                "[[image]]\nname = '{name}'\n[image.file]\nurl = '{url}'\nsha256 = '{sha256}'\n"
            )
        };
        let hex = digest.trim_start_matches("sha256:");
        let catalog = entry("good", hex) + &entry("bad", &"0".repeat(64));
        std::fs::write(dir.path().join("catalog.toml"), catalog).expect("writable");
        let library = Library::open(&dir.path().join("data"), dir.path()).expect("it opens");
        let pull = |name: &str| {
            let request = PullRequest { name: name.to_owned(), ..PullRequest::default() };
            let pulled = library.pull_image(&request, &(Arc::new(|_| {}) as _), &Cancel::new());
            pulled.map_err(Problem::from)
        };
        let good = pull("good").expect("it is the right one");
        assert!(good.source.starts_with(&url), "{}", good.source);
        assert_eq!(pull("good").expect("it is here").digest, good.digest);
        assert_eq!(library.layers().expect("readable").count, 0, "the file is not kept");
        let bad = pull("bad").expect_err("another file");
        assert_eq!(bad.code, ErrorCode::ImageInvalid, "{bad}");
        assert!(bad.to_string().contains("should be 000000"), "{bad}");
    }
}
