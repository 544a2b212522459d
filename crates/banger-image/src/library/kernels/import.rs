//! Making a kernel of files that somebody has: built here, or of any distribution.

use banger_api::step;
use std::path::{Path, PathBuf};

use banger_api::kernel::{ImportKernel, Kernel};
use banger_api::operation::Progress;
use banger_core::name;
use banger_host::command::Cancel;

use super::{KernelDraft, Library, ensure_room, identity_of};
use crate::error::PullError;
use crate::kernel::source::{GivenFile, read_config, stage_modules};
use crate::stage::Reporter;
use crate::store::WorkDir;

/// Free space that making a kernel needs: its modules lie there twice, plain.
const BUILD_MIB: u64 = 400;

impl Library {
    /// Make a kernel of local files, and check at once that guests can run on it. The same files
    /// again are the same kernel: then nothing is made, and it gets the name.
    ///
    /// # Errors
    /// [`PullError::Unsuitable`] with all that guests need and the kernel has not;
    /// [`PullError::Unexpected`] if something is not what it should be. Nothing half-made stays
    /// visible.
    pub fn import_kernel(
        &self,
        request: &ImportKernel,
        on_progress: &mut dyn FnMut(Progress),
        cancel: &Cancel,
    ) -> Result<Kernel, PullError> {
        name::validate(&request.name).map_err(|error| PullError::Argument {
            what: format!("{:?} cannot be a kernel's name", request.name),
            reason: error.to_string(),
        })?;
        let mut reporter = Reporter::new(on_progress);
        let _lock = self.kernels.lock_name(&request.name, cancel, &mut || {
            reporter.wait("kernel.wait", "waiting for another process that makes this kernel");
        })?;
        ensure_room(self.kernels.dir(), BUILD_MIB)?;
        self.in_kernel_work_dir(|work| self.import(request, work, &mut reporter, cancel))
    }

    fn import(
        &self,
        request: &ImportKernel,
        work: &WorkDir,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Kernel, PullError> {
        reporter.stage(step::KERNEL_READ, "reading the kernel")?;
        let file = GivenFile::measure(&absolute(&request.kernel)?, cancel)?;
        let mut inputs = vec![file.sha256.clone()];
        let mut config = None;
        if let Some(path) = &request.config {
            let (sha256, given) = read_config(&absolute(path)?, cancel)?;
            inputs.push(format!("config {sha256}"));
            config = Some(given);
        }
        if request.modules.is_none()
            && let Some(kernel) = self.named_kernel(&identity_of(&inputs), &request.name)?
        {
            return Ok(kernel);
        }
        let mut source = file.read(&work.subdir("modules")?, cancel)?;
        if let Some(path) = &request.modules {
            reporter.stage(step::KERNEL_MODULES, "unpacking the modules")?;
            let staging = work.subdir("given-modules")?;
            let release = &source.image.release;
            let (dir, digest) = stage_modules(&absolute(path)?, release, &staging, cancel)?;
            inputs.push(format!("modules {digest}"));
            source.modules = Some(dir);
            if let Some(kernel) = self.named_kernel(&identity_of(&inputs), &request.name)? {
                return Ok(kernel);
            }
        }
        source.config = source.config.or(config);
        let draft = KernelDraft {
            name: &request.name,
            digest: identity_of(&inputs),
            origin: format!("imported from {}", request.kernel),
            source: &source,
        };
        self.publish_kernel(draft, work, reporter, cancel)
    }
}

/// A path of a request. The daemon's own directory is not the caller's, so it must be whole.
fn absolute(path: &str) -> Result<PathBuf, PullError> {
    let path = Path::new(path);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let what = format!("{:?} cannot be read", path.display().to_string());
    Err(PullError::Argument { what, reason: "it is not an absolute path".to_owned() })
}
