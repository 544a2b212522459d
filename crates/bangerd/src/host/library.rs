//! Images and kernels as `banger-image` keeps them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use banger_api::Problem;
use banger_api::image::{CatalogImage, Image, PruneImages, PrunedImages};
use banger_api::kernel::{CatalogKernel, Kernel};
use banger_api::operation::OperationResult;
use banger_image::{Kind, LayerUse, Library, LibraryError, VmDisk};

use super::{Artifacts, Job, Layers, LocalImage, LocalKernel, Promotion, Report};

/// The library in the data directory.
#[derive(Debug)]
pub(super) struct RealArtifacts {
    library: Library,
    agent: PathBuf,
}

impl RealArtifacts {
    /// Opens the library and clears up what killed pulls have left.
    pub(super) fn open(data: &Path, config: &Path, agent: PathBuf) -> Result<Self, Problem> {
        let library = Library::open(data, config).map_err(Problem::from)?;
        Ok(Self { library, agent })
    }

    fn local_kernel(&self, digest: &str) -> Result<banger_image::LocalKernel, Problem> {
        self.library.find_kernel(digest).map_err(Problem::from)?.ok_or_else(|| {
            let (kind, name) = (Kind::Kernel, digest.to_owned());
            Problem::from(LibraryError::NotFound { kind, name, nearest: None })
        })
    }
}

fn image(image: Image) -> OperationResult {
    OperationResult::Image(Box::new(image))
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

    fn remove_image(&self, name_or_digest: &str) -> Result<(), Problem> {
        self.library.remove_image(name_or_digest).map_err(Problem::from)
    }

    fn catalog_images(&self) -> Result<Vec<CatalogImage>, Problem> {
        self.library.catalog_images().map_err(Problem::from)
    }

    fn check_image(&self, name: &str) -> Result<(), Problem> {
        self.library.check_image(name).map_err(Problem::from)
    }

    fn prune_images(
        &self,
        request: PruneImages,
        used: &BTreeSet<String>,
    ) -> Result<PrunedImages, Problem> {
        self.library.prune_images(request, used).map_err(Problem::from)
    }

    fn layers(&self) -> Result<Layers, Problem> {
        let LayerUse { count, used, bytes, unused_bytes } = self.library.layers()?;
        Ok(Layers { count, used, bytes, unused_bytes })
    }

    fn clear_cache(&self) -> Result<(), Problem> {
        self.library.clear_cache().map_err(Problem::from)
    }

    fn outlast_others(&self) -> Result<(), Problem> {
        self.library.outlast_others().map_err(Problem::from)
    }

    fn perform(&self, job: &Job, report: Report<'_>) -> Result<OperationResult, Problem> {
        let Report { progress: sink, cancel } = report;
        let progress = &mut |progress| sink(progress);
        let library = &self.library;
        let done = match job {
            Job::PullImage(request) => library.pull_image(request, &sink, cancel).map(image),
            Job::RegisterImage(request) => {
                library.register_image(request, progress, cancel).map(image)
            }
            Job::PromoteVm(Promotion { name, vm, image_digest, vm_dir, disk_bytes }) => {
                let disk = VmDisk { vm, image_digest, vm_dir, bytes: *disk_bytes };
                library.promote(name, &disk, progress, cancel).map(image)
            }
            Job::PushImage(request) => {
                library.push_image(request, &sink, cancel).map(OperationResult::Pushed)
            }
            Job::PullKernel(request) => library
                .pull_kernel(&request.name, request.refresh, progress, cancel)
                .map(OperationResult::Kernel),
            Job::ImportKernel(request) => {
                library.import_kernel(request, progress, cancel).map(OperationResult::Kernel)
            }
        };
        done.map_err(Problem::from)
    }

    fn kernels(&self) -> Result<Vec<Kernel>, Problem> {
        self.library.kernels().map_err(Problem::from)
    }

    fn find_kernel(&self, name_or_digest: &str) -> Result<Option<LocalKernel>, Problem> {
        let found = self.library.find_kernel(name_or_digest).map_err(Problem::from)?;
        Ok(found.map(|local| LocalKernel {
            kernel: local.kernel,
            boot_file: local.boot_file,
            modules_image: local.modules_image,
        }))
    }

    fn verify_kernel(&self, kernel: &LocalKernel) -> Result<(), Problem> {
        let local = self.local_kernel(&kernel.kernel.digest)?;
        self.library.verify_kernel(&local).map_err(Problem::from)
    }

    fn remove_kernel(&self, name_or_digest: &str) -> Result<(), Problem> {
        self.library.remove_kernel(name_or_digest).map_err(Problem::from)
    }

    fn catalog_kernels(&self) -> Result<Vec<CatalogKernel>, Problem> {
        self.library.catalog_kernels().map_err(Problem::from)
    }

    fn make_work_disk(&self, path: &Path, bytes: u64) -> Result<(), Problem> {
        banger_image::make_work_disk(path, bytes).map_err(Problem::from)
    }

    fn initramfs(&self, kernel: &LocalKernel) -> Result<PathBuf, Problem> {
        let local = self.local_kernel(&kernel.kernel.digest)?;
        self.library.initramfs(&local, &self.agent).map_err(Problem::from)
    }
}
