//! What a simulated machine has of images and kernels: they are there at once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use banger_api::image::{CatalogImage, Image, ImageConfig, PruneImages, PrunedImage, PrunedImages};
use banger_api::kernel::{CatalogKernel, Kernel};
use banger_api::operation::{OperationResult, Progress};
use banger_api::vm::InitMode;
use banger_api::{ErrorCode, Problem};

use super::super::{Artifacts, Job, Layers, LocalImage, LocalKernel, Report};
use super::Seen;
use crate::testing::PATIENCE;

pub(super) fn image(version: usize) -> Image {
    Image {
        name: "debian-bookworm".into(),
        digest: format!("sha256:image{version}"),
        disk_sha256: "0".repeat(64),
        disk_bytes: 2 << 30,
        allocated_bytes: 300 << 20,
        source: "a test".into(),
        created_at_ms: 1,
        config: ImageConfig { workdir: Some("/srv".into()), ..ImageConfig::default() },
        oci: None,
        kernel: None,
        init: InitMode::Agent,
        superseded: false,
    }
}

pub(super) fn kernel(version: usize) -> Kernel {
    Kernel {
        name: "debian-cloud".into(),
        digest: format!("sha256:kernel{version}"),
        release: "6.1.0-test".into(),
        allocated_bytes: 30 << 20,
        source: "a test".into(),
        created_at_ms: 1,
        boot_modules: Vec::new(),
    }
}

impl Seen {
    fn pull(&self, name: &str, report: &Report<'_>) -> Result<usize, Problem> {
        (report.progress)(Progress::stage("pull", name));
        wait_while(&self.0.slow_pulls, name, report)?;
        Ok(self.0.pulls.fetch_add(1, Ordering::SeqCst) + 1)
    }
}

/// Takes its time until it is told otherwise, or cancelled.
fn wait_while(slow: &AtomicBool, what: &str, report: &Report<'_>) -> Result<(), Problem> {
    let deadline = Instant::now() + PATIENCE;
    while slow.load(Ordering::SeqCst) {
        assert!(Instant::now() < deadline, "nobody lets the slow work on {what} go on");
        if report.cancel.is_cancelled() {
            return Err(Problem::new(ErrorCode::Cancelled, "cancelled"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

impl Artifacts for Seen {
    fn images(&self) -> Result<Vec<Image>, Problem> {
        Ok(self.0.images.lock().unwrap().clone())
    }

    fn find_image(&self, wanted: &str) -> Result<Option<LocalImage>, Problem> {
        let images = self.0.images.lock().unwrap();
        let found = images.iter().rev().find(|i| i.name == wanted || i.digest == wanted);
        Ok(found.map(|image| LocalImage { image: image.clone(), root: "/image/root.ext4".into() }))
    }

    fn verify_image(&self, _image: &LocalImage) -> Result<(), Problem> {
        Ok(())
    }

    fn check_image(&self, name: &str) -> Result<(), Problem> {
        let known = self.find_image(name)?.is_some() || name == "debian-bookworm";
        if known {
            return Ok(());
        }
        Err(Problem::new(ErrorCode::ImageNotFound, format!("there is no image {name}"))
            .hint("banger image catalog"))
    }

    fn prune_images(
        &self,
        request: PruneImages,
        used: &BTreeSet<String>,
    ) -> Result<PrunedImages, Problem> {
        let mut images = self.0.images.lock().unwrap();
        let goes = |image: &Image| request.all && !used.contains(&image.digest);
        let gone = images
            .iter()
            .filter(|image| goes(image))
            .map(|image| PrunedImage { name: image.name.clone(), digest: image.digest.clone() });
        let pruned = PrunedImages { images: gone.collect(), layers: 0, bytes: 1 };
        if !request.dry_run {
            images.retain(|image| !goes(image));
        }
        Ok(pruned)
    }

    fn layers(&self) -> Result<Layers, Problem> {
        Ok(Layers { count: 2, used: 1, bytes: 10, unused_bytes: 3 })
    }

    fn clear_cache(&self) -> Result<(), Problem> {
        Ok(())
    }

    fn outlast_others(&self) -> Result<(), Problem> {
        Ok(())
    }

    fn perform(&self, job: &Job, report: Report<'_>) -> Result<OperationResult, Problem> {
        match job {
            Job::PullImage(request) => {
                let image = image(self.pull(&request.name, &report)?);
                self.0.images.lock().unwrap().push(image.clone());
                Ok(OperationResult::Image(Box::new(image)))
            }
            Job::PullKernel(request) => {
                let kernel = kernel(self.pull(&request.name, &report)?);
                self.0.kernels.lock().unwrap().push(kernel.clone());
                Ok(OperationResult::Kernel(kernel))
            }
            other => {
                wait_while(&self.0.slow_jobs, &other.description(), &report)?;
                self.0.jobs.lock().unwrap().push(other.clone());
                Ok(OperationResult::Nothing)
            }
        }
    }

    fn remove_image(&self, wanted: &str) -> Result<(), Problem> {
        let mut images = self.0.images.lock().unwrap();
        let before = images.len();
        images.retain(|i| i.name != wanted && i.digest != wanted);
        if images.len() == before {
            return Err(Problem::new(ErrorCode::ImageNotFound, "there is no such image"));
        }
        Ok(())
    }

    fn catalog_images(&self) -> Result<Vec<CatalogImage>, Problem> {
        Ok(vec![CatalogImage {
            name: "debian-bookworm".into(),
            description: "a test".into(),
            source: "a test".into(),
            kernel: "debian-cloud".into(),
            init: InitMode::Agent,
            size_hint_bytes: 1,
            local: false,
            user_defined: false,
        }])
    }

    fn kernels(&self) -> Result<Vec<Kernel>, Problem> {
        Ok(self.0.kernels.lock().unwrap().clone())
    }

    fn find_kernel(&self, wanted: &str) -> Result<Option<LocalKernel>, Problem> {
        let kernels = self.0.kernels.lock().unwrap();
        let found = kernels.iter().rev().find(|k| k.name == wanted || k.digest == wanted);
        Ok(found.map(|kernel| LocalKernel {
            kernel: kernel.clone(),
            boot_file: "/kernel/vmlinux".into(),
            modules_image: None,
        }))
    }

    fn verify_kernel(&self, _kernel: &LocalKernel) -> Result<(), Problem> {
        Ok(())
    }

    fn remove_kernel(&self, wanted: &str) -> Result<(), Problem> {
        self.0.kernels.lock().unwrap().retain(|k| k.name != wanted && k.digest != wanted);
        Ok(())
    }

    fn catalog_kernels(&self) -> Result<Vec<CatalogKernel>, Problem> {
        Ok(vec![CatalogKernel {
            name: "debian-cloud".into(),
            description: "a test".into(),
            source: "a test".into(),
            size_hint_bytes: 1,
            local: false,
        }])
    }

    fn make_work_disk(&self, path: &Path, bytes: u64) -> Result<(), Problem> {
        let made = std::fs::File::create_new(path).and_then(|file| file.set_len(bytes));
        made.map_err(|error| Problem::new(ErrorCode::Internal, "no disk").because(&error))
    }

    fn initramfs(&self, _kernel: &LocalKernel) -> Result<PathBuf, Problem> {
        Ok("/cache/initramfs".into())
    }
}
