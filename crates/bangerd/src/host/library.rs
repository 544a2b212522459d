//! Images and kernels as `banger-image` keeps them.

use std::path::{Path, PathBuf};

use banger_api::Problem;
use banger_api::image::{CatalogImage, Image};
use banger_api::kernel::{CatalogKernel, Kernel};
use banger_image::{Kind, Library, LibraryError};

use super::{Artifacts, LocalImage, LocalKernel, Pull};

/// The library in the data directory.
#[derive(Debug)]
pub(super) struct RealArtifacts {
    library: Library,
    agent: PathBuf,
}

impl RealArtifacts {
    /// Opens the library and clears up what killed pulls have left.
    pub(super) fn open(data: &Path, agent: PathBuf) -> Result<Self, Problem> {
        let library = Library::open(data).map_err(Problem::from)?;
        Ok(Self { library, agent })
    }

    fn local_kernel(&self, digest: &str) -> Result<banger_image::LocalKernel, Problem> {
        self.library.find_kernel(digest).map_err(Problem::from)?.ok_or_else(|| {
            let (kind, name) = (Kind::Kernel, digest.to_owned());
            Problem::from(LibraryError::NotFound { kind, name, nearest: None })
        })
    }
}

impl Artifacts for RealArtifacts {
    fn images(&self) -> Result<Vec<Image>, Problem> {
        self.library.images().map_err(Problem::from)
    }

    fn find_image(&self, name_or_digest: &str) -> Result<Option<LocalImage>, Problem> {
        let found = self.library.find_image(name_or_digest).map_err(Problem::from)?;
        Ok(found.map(|local| LocalImage { image: local.image, root: local.root }))
    }

    fn verify_image(&self, image: &LocalImage) -> Result<(), Problem> {
        let LocalImage { image, root } = image.clone();
        self.library.verify_image(&banger_image::LocalImage { image, root }).map_err(Problem::from)
    }

    fn pull_image(&self, pull: Pull<'_>) -> Result<Image, Problem> {
        let Pull { name, refresh, progress, cancel } = pull;
        self.library.pull_image(name, refresh, progress, cancel).map_err(Problem::from)
    }

    fn remove_image(&self, name_or_digest: &str) -> Result<(), Problem> {
        self.library.remove_image(name_or_digest).map_err(Problem::from)
    }

    fn catalog_images(&self) -> Vec<CatalogImage> {
        self.library.catalog_images()
    }

    fn kernels(&self) -> Result<Vec<Kernel>, Problem> {
        self.library.kernels().map_err(Problem::from)
    }

    fn find_kernel(&self, name_or_digest: &str) -> Result<Option<LocalKernel>, Problem> {
        let found = self.library.find_kernel(name_or_digest).map_err(Problem::from)?;
        Ok(found.map(|local| LocalKernel {
            kernel: local.kernel,
            // Uncompressed it boots faster: nothing is unpacked by the guest.
            boot_file: local.vmlinux.unwrap_or(local.vmlinuz),
            modules_image: local.modules_image,
        }))
    }

    fn verify_kernel(&self, kernel: &LocalKernel) -> Result<(), Problem> {
        let local = self.local_kernel(&kernel.kernel.digest)?;
        self.library.verify_kernel(&local).map_err(Problem::from)
    }

    fn pull_kernel(&self, pull: Pull<'_>) -> Result<Kernel, Problem> {
        let Pull { name, refresh, progress, cancel } = pull;
        self.library.pull_kernel(name, refresh, progress, cancel).map_err(Problem::from)
    }

    fn remove_kernel(&self, name_or_digest: &str) -> Result<(), Problem> {
        self.library.remove_kernel(name_or_digest).map_err(Problem::from)
    }

    fn catalog_kernels(&self) -> Vec<CatalogKernel> {
        self.library.catalog_kernels()
    }

    fn initramfs(&self, kernel: &LocalKernel) -> Result<PathBuf, Problem> {
        let local = self.local_kernel(&kernel.kernel.digest)?;
        self.library.initramfs(&local, &self.agent).map_err(Problem::from)
    }
}
