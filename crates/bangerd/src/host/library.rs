//! Images and kernels as `banger-image` keeps them.

use std::path::{Path, PathBuf};

use banger_api::image::{CatalogImage, Image};
use banger_api::kernel::{CatalogKernel, Kernel};
use banger_api::{ErrorCode, Problem};

use super::{Artifacts, LocalImage, LocalKernel, Pull};

#[derive(Debug)]
pub(super) struct RealArtifacts {
    agent: PathBuf,
}

impl RealArtifacts {
    pub(super) fn open(_data: &Path, agent: PathBuf) -> Result<Self, Problem> {
        Ok(Self { agent })
    }
}

fn later<T>() -> Result<T, Problem> {
    Err(Problem::new(ErrorCode::Internal, "no library yet"))
}

impl Artifacts for RealArtifacts {
    fn images(&self) -> Result<Vec<Image>, Problem> {
        later()
    }
    fn find_image(&self, _: &str) -> Result<Option<LocalImage>, Problem> {
        later()
    }
    fn verify_image(&self, _: &LocalImage) -> Result<(), Problem> {
        later()
    }
    fn pull_image(&self, _: Pull<'_>) -> Result<Image, Problem> {
        later()
    }
    fn remove_image(&self, _: &str) -> Result<(), Problem> {
        later()
    }
    fn catalog_images(&self) -> Vec<CatalogImage> {
        Vec::new()
    }
    fn kernels(&self) -> Result<Vec<Kernel>, Problem> {
        later()
    }
    fn find_kernel(&self, _: &str) -> Result<Option<LocalKernel>, Problem> {
        later()
    }
    fn verify_kernel(&self, _: &LocalKernel) -> Result<(), Problem> {
        later()
    }
    fn pull_kernel(&self, _: Pull<'_>) -> Result<Kernel, Problem> {
        later()
    }
    fn remove_kernel(&self, _: &str) -> Result<(), Problem> {
        later()
    }
    fn catalog_kernels(&self) -> Vec<CatalogKernel> {
        Vec::new()
    }
    fn initramfs(&self, _: &LocalKernel) -> Result<PathBuf, Problem> {
        Ok(self.agent.clone())
    }
}
