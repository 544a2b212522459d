//! What the daemon asks of the machine, as three traits: shims, artifacts, and the machine itself.
//!
//! [`real`] is the machine; tests put a simulated one in its place. Everything that decides is on
//! this side of the traits, so all of it is tested without a virtual machine.

mod known_shims;
mod library;
pub mod real;
#[cfg(test)]
pub mod simulated;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use banger_api::Problem;
use banger_api::image::{
    CatalogImage, Image, PruneImages, PrunedImages, PullRequest, PushImage, RegisterImage,
};
use banger_api::kernel::{CatalogKernel, ImportKernel, Kernel};
use banger_api::operation::OperationResult;
use banger_api::shim::{Captured, EngineSpec, JailUser, LaunchEvent};
use banger_api::vm::{EngineChoice, StopVm, VmStatus};
use banger_core::expiry::Clocks;
use banger_core::lifecycle::Traces;
use banger_core::spec::HostCapacity;
use banger_host::command::Cancel;
use banger_image::ProgressSink;
use serde::Serialize;
use tokio::sync::mpsc;

/// An answer that comes later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The machine, real or simulated.
#[derive(Debug, Clone)]
pub struct Host {
    /// Running VMs.
    pub shims: Arc<dyn Shims>,
    /// Images and kernels.
    pub artifacts: Arc<dyn Artifacts>,
    /// The rest.
    pub machine: Arc<dyn Machine>,
}

/// Starting, watching and ending shims. VMs are named by their directories.
pub trait Shims: Debug + Send + Sync {
    /// Takes the VM's lock and starts its shim. Blocks; the receiver gets what the shim reports and
    /// is closed when the shim is gone or has nothing more to report.
    ///
    /// # Errors
    /// Nothing runs then.
    fn spawn(&self, vm_dir: &Path) -> Result<mpsc::Receiver<LaunchEvent>, Problem>;

    /// The same for a guest that stands ready, until it gets the word.
    ///
    /// # Errors
    /// As for [`Shims::spawn`].
    fn spawn_waiting(&self, vm_dir: &Path) -> Result<WaitingShim, Problem>;

    /// Whether anything may still write the VM's disks.
    ///
    /// # Errors
    /// If that cannot be told.
    fn is_locked(&self, vm_dir: &Path) -> io::Result<bool>;

    /// Connects to a shim: its status now, then every change. Closed when the shim is gone.
    ///
    /// # Errors
    /// If there is no shim that answers, or it speaks another protocol.
    fn watch<'a>(
        &'a self,
        vm_dir: &'a Path,
    ) -> Later<'a, Result<mpsc::Receiver<VmStatus>, Problem>>;

    /// Asks a shim to stop its VM cleanly.
    ///
    /// # Errors
    /// If it does not answer, or refuses.
    fn stop<'a>(&'a self, vm_dir: &'a Path, how: StopVm) -> Later<'a, Result<(), Problem>>;

    /// Asks a shim to kill its VM.
    ///
    /// # Errors
    /// If it does not answer, or refuses.
    fn kill<'a>(&'a self, vm_dir: &'a Path) -> Later<'a, Result<(), Problem>>;

    /// Has a shim halt the virtual CPUs of its VM. Done when they stand still.
    ///
    /// # Errors
    /// If it does not answer, or refuses; `not_found` if it is of a release that cannot do that.
    fn pause<'a>(&'a self, vm_dir: &'a Path) -> Later<'a, Result<(), Problem>>;

    /// Has a shim's VM go on. Done when it does, and its clock is right.
    ///
    /// # Errors
    /// As for [`Shims::pause`].
    fn resume<'a>(&'a self, vm_dir: &'a Path) -> Later<'a, Result<(), Problem>>;

    /// Has a shim save its running VM, memory and disks, in an empty directory. The VM goes on, whatever
    /// comes of it.
    ///
    /// # Errors
    /// As for [`Shims::pause`]; `vm_wrong_state` if the VM does not run any more.
    fn capture<'a>(
        &'a self,
        vm_dir: &'a Path,
        dir: &'a Path,
    ) -> Later<'a, Result<Captured, Problem>>;

    /// Kills a shim without asking, and with it everything of the VM. Whether there was one.
    ///
    /// # Errors
    /// Of the kernel.
    fn kill_shim(&self, vm_dir: &Path) -> io::Result<bool>;

    /// What tells how a shim ended that is gone; whether the host was restarted is not asked here.
    /// Takes a moment if news of its process is still to come.
    fn traces<'a>(&'a self, vm_dir: &'a Path) -> Later<'a, Traces>;

    /// Nobody will ask any more how the shim of a VM ended that is gone.
    fn forget(&self, vm_dir: &Path);
}

/// The shim of a guest that stands ready to become a VM.
#[derive(Debug)]
pub struct WaitingShim {
    /// What it reports; closed when it is gone.
    pub events: mpsc::Receiver<LaunchEvent>,
    /// What it waits for.
    pub word: Word,
}

/// The word that a guest stands ready for: that its launch file has a VM now. Dropped without having been
/// given it ends the guest, as the end of this process does.
pub struct Word(Box<dyn FnOnce() -> io::Result<()> + Send + Sync>);

impl Word {
    /// A word that is given like that.
    pub fn new(give: impl FnOnce() -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Box::new(give))
    }

    /// Gives it.
    ///
    /// # Errors
    /// If nobody is there any more.
    pub fn give(self) -> io::Result<()> {
        (self.0)()
    }
}

impl Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Word").finish_non_exhaustive()
    }
}

/// A local image and its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// What it is.
    pub image: Image,
    /// Its disk.
    pub root: PathBuf,
}

/// A local kernel and its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalKernel {
    /// What it is.
    pub kernel: Kernel,
    /// What is booted.
    pub boot_file: PathBuf,
    /// Disk with its modules.
    pub modules_image: Option<PathBuf>,
}

/// Images and kernels on this host. Every method blocks.
pub trait Artifacts: Debug + Send + Sync {
    /// All local images, every version of each.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn images(&self) -> Result<Vec<Image>, Problem>;
    /// The local image of that name or digest.
    ///
    /// # Errors
    /// If that cannot be told.
    fn find_image(&self, name_or_digest: &str) -> Result<Option<LocalImage>, Problem>;
    /// Checks cheaply that the image's disk is what it was.
    ///
    /// # Errors
    /// `image_corrupt`.
    fn verify_image(&self, image: &LocalImage) -> Result<(), Problem>;
    /// Removes the image of that name or digest.
    ///
    /// # Errors
    /// `image_not_found`, or of the file system.
    fn remove_image(&self, name_or_digest: &str) -> Result<(), Problem>;
    /// Every image that can be pulled by a short name.
    ///
    /// # Errors
    /// If the user's catalog cannot be used.
    fn catalog_images(&self) -> Result<Vec<CatalogImage>, Problem>;
    /// Checks that an image of that name is here or could be fetched.
    ///
    /// # Errors
    /// `image_not_found`, with the nearest name.
    fn check_image(&self, name: &str) -> Result<(), Problem>;
    /// Removes the images that nobody needs, or says which would go; `used` are the digests of those
    /// that VMs use.
    ///
    /// # Errors
    /// Of the file system.
    fn prune_images(
        &self,
        request: PruneImages,
        used: &BTreeSet<String>,
    ) -> Result<PrunedImages, Problem>;
    /// How many layers are kept, and what they take.
    ///
    /// # Errors
    /// Of the file system.
    fn layers(&self) -> Result<Layers, Problem>;
    /// Empties the cache.
    ///
    /// # Errors
    /// Of the first thing that cannot be removed; the rest is gone.
    fn clear_cache(&self) -> Result<(), Problem>;
    /// Waits until whoever pulled or built when this daemon began is done, or dead, and removes what is
    /// still there of it.
    ///
    /// # Errors
    /// Of the first thing that cannot be removed.
    fn outlast_others(&self) -> Result<(), Problem>;
    /// Does long work.
    ///
    /// # Errors
    /// Whatever can go wrong with that; nothing half-made is left.
    fn perform(&self, job: &Job, report: Report<'_>) -> Result<OperationResult, Problem>;

    /// All local kernels, every version of each.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn kernels(&self) -> Result<Vec<Kernel>, Problem>;
    /// The local kernel of that name or digest.
    ///
    /// # Errors
    /// If that cannot be told.
    fn find_kernel(&self, name_or_digest: &str) -> Result<Option<LocalKernel>, Problem>;
    /// Checks cheaply that the kernel's files are what they were.
    ///
    /// # Errors
    /// `kernel_corrupt`.
    fn verify_kernel(&self, kernel: &LocalKernel) -> Result<(), Problem>;
    /// Removes the kernel of that name or digest.
    ///
    /// # Errors
    /// `kernel_not_found`, or of the file system.
    fn remove_kernel(&self, name_or_digest: &str) -> Result<(), Problem>;
    /// Every kernel that can be pulled by name.
    ///
    /// # Errors
    /// If the user's catalog cannot be used.
    fn catalog_kernels(&self) -> Result<Vec<CatalogKernel>, Problem>;

    /// Makes a new file an empty work disk.
    ///
    /// # Errors
    /// If a program is missing or fails, or of the file system.
    fn make_work_disk(&self, path: &Path, bytes: u64) -> Result<(), Problem>;

    /// The initramfs of a local kernel, made if it is not in the cache.
    ///
    /// # Errors
    /// If it cannot be made.
    fn initramfs(&self, kernel: &LocalKernel) -> Result<PathBuf, Problem>;
}

/// Long work on images and kernels. Two that are equal want the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "job", content = "request")]
pub enum Job {
    /// Fetch or build an image.
    PullImage(PullRequest),
    /// Make an image of local files; an upload has become a path by now.
    RegisterImage(RegisterImage),
    /// Make an image of a VM's disk.
    PromoteVm(Promotion),
    /// Send an image to a registry.
    PushImage(PushImage),
    /// Fetch a kernel.
    PullKernel(PullRequest),
    /// Make a kernel of local files.
    ImportKernel(ImportKernel),
}

impl Job {
    /// What it does, for people.
    #[must_use]
    pub fn description(&self) -> String {
        match self {
            Self::PullImage(request) => format!("pull image {}", request.name),
            Self::RegisterImage(request) => {
                format!("register image {}", request.name.as_deref().unwrap_or_default())
                    .trim_end()
                    .to_owned()
            }
            Self::PromoteVm(promotion) => {
                format!("promote vm {} to image {}", promotion.vm, promotion.name)
            }
            Self::PushImage(request) => format!("push image {}", request.name),
            Self::PullKernel(request) => format!("pull kernel {}", request.name),
            Self::ImportKernel(request) => format!("import kernel {}", request.name),
        }
    }
}

/// The disk of a stopped VM that becomes an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Promotion {
    /// The VM's name.
    pub vm: String,
    /// The new image's name.
    pub name: String,
    /// Digest of the VM's image.
    pub image_digest: String,
    /// The VM's directory.
    pub vm_dir: PathBuf,
    /// Size of its root disk.
    pub disk_bytes: u64,
}

/// Where long work tells how far it is, and learns that nobody wants it any more.
pub struct Report<'a> {
    /// Told how far it is.
    pub progress: ProgressSink,
    /// Set when nobody wants it any more.
    pub cancel: &'a Cancel,
}

impl Debug for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report").finish_non_exhaustive()
    }
}

/// Layers of OCI images that are kept as they came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Layers {
    /// How many, unfinished downloads included.
    pub count: u64,
    /// How many of them an image needs.
    pub used: u64,
    /// What they take.
    pub bytes: u64,
    /// What of it no image needs.
    pub unused_bytes: u64,
}

/// Facts about the machine. Every method may block for a moment.
pub trait Machine: Debug + Send + Sync {
    /// How much of what a VM takes there is.
    fn capacity(&self) -> HostCapacity;
    /// Free space where `path` is.
    ///
    /// # Errors
    /// Of the file system.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// The clocks now.
    fn clocks(&self) -> Clocks;
    /// The kernel's name for this run of the machine, if it has one.
    fn boot_id(&self) -> Option<String>;
    /// The engine to use.
    ///
    /// # Errors
    /// `host_program_missing`.
    fn engine(&self, choice: EngineChoice) -> Result<EngineSpec, Problem>;
    /// What the processor is, as far as a saved guest depends on it.
    fn cpu(&self) -> String;
    /// The user that a VMM becomes, where it must not stay who the daemon is.
    ///
    /// # Errors
    /// If there must be one and there is none.
    fn jail_user(&self) -> Result<Option<JailUser>, Problem>;
}
