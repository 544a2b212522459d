//! A simulated machine: shims that are entries in a table, images that are there at once.
//!
//! It keeps what a real machine keeps when a daemon dies: which VMs run, and what their shims wrote.
//! So a test can end a daemon anywhere and start another one on the same machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use banger_api::image::{CatalogImage, Image, ImageConfig, PruneImages, PrunedImage, PrunedImages};
use banger_api::kernel::{CatalogKernel, Kernel};
use banger_api::operation::{OperationResult, Progress};
use banger_api::shim::{EngineSpec, JailUser, LAUNCH_FILE, LaunchEvent, LaunchSpec, STATUS_FILE};
use banger_api::vm::{Accelerator, EndCause, EngineChoice, InitMode, StopVm, VmState, VmStatus};
use banger_api::{ErrorCode, Problem};
use banger_core::lifecycle::{fresh, plain_end};
use banger_core::spec::HostCapacity;
use tokio::sync::{mpsc, watch};

use super::{Artifacts, Host, Job, Later, Layers, LocalImage, LocalKernel, Machine, Report, Shims};
use crate::testing::PATIENCE;

/// How simulated shims behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Manner {
    /// As they should.
    #[default]
    Good,
    /// The guest never comes up, and the shim never says so.
    Hangs,
    /// The shim reports that the VM failed.
    Fails,
    /// The shim dies without a word.
    Dies,
    /// The VM runs, but the shim answers no request.
    Deaf,
    /// The VM runs, but its guest ignores that it should stop.
    Ignores,
    /// The shim answers, but the guest does not: it never comes up, and a stop takes all its time.
    Mute,
    /// The VM ends by itself, and the shim says how.
    Ends(EndCause),
    /// The VM lost its network, and runs on.
    Offline,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Simulation {
    pub manner: Mutex<Manner>,
    /// Something happens to the next shim, or just happened to the one that runs.
    trouble: Mutex<Option<Manner>>,
    shims: Mutex<BTreeMap<PathBuf, watch::Sender<Option<VmStatus>>>>,
    images: Mutex<Vec<Image>>,
    kernels: Mutex<Vec<Kernel>>,
    pub pulls: AtomicUsize,
    /// Long work other than pulls.
    pub jobs: Mutex<Vec<Job>>,
    /// A pull waits until it is cancelled.
    pub slow_pulls: AtomicBool,
    pub used_bytes: AtomicU64,
}

const FREE_BYTES: u64 = 1 << 40;

impl Simulation {
    pub fn host(self: &Arc<Self>) -> Host {
        Host {
            shims: Arc::new(Seen(Arc::clone(self))),
            artifacts: Arc::new(Seen(Arc::clone(self))),
            machine: Arc::new(Seen(Arc::clone(self))),
        }
    }

    pub fn set_manner(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn manner(&self) -> Manner {
        self.trouble.lock().unwrap().unwrap_or(*self.manner.lock().unwrap())
    }

    /// Something happens to the VM that runs, or else to the next that is started.
    pub fn strike(&self, trouble: Manner) {
        *self.trouble.lock().unwrap() = Some(trouble);
        let alive = |(dir, shim): (&PathBuf, &watch::Sender<Option<VmStatus>>)| {
            shim.borrow().clone().map(|status| (dir.clone(), status))
        };
        let running: Vec<_> = self.shims.lock().unwrap().iter().filter_map(alive).collect();
        for (dir, status) in running {
            match trouble {
                Manner::Dies => self.vanish(&dir),
                Manner::Fails => self.end(&dir, EndCause::LaunchFailed),
                Manner::Ends(cause) => self.end(&dir, cause),
                Manner::Offline => {
                    let warnings = vec!["the VM lost its network".to_owned()];
                    self.say(&dir, &VmStatus { warnings, ..status });
                }
                Manner::Good | Manner::Hangs | Manner::Deaf | Manner::Ignores | Manner::Mute => {}
            }
        }
    }

    /// What is started from now on behaves. What runs stays as it is.
    pub fn heal(&self) {
        if !matches!(self.manner(), Manner::Hangs | Manner::Mute) || self.alive() == 0 {
            *self.trouble.lock().unwrap() = None;
        }
    }

    /// How many VMs run.
    pub fn alive(&self) -> usize {
        self.shims.lock().unwrap().values().filter(|shim| shim.borrow().is_some()).count()
    }

    /// Ends a VM as its shim would: the last word first, then silence.
    pub fn end(&self, vm_dir: &Path, cause: EndCause) {
        let status = VmStatus {
            end: Some(plain_end(cause, "the test says so")),
            ..fresh(cause.state(), banger_host::clock::now_ms())
        };
        self.say(vm_dir, &status);
        self.vanish(vm_dir);
    }

    /// Whether something of a VM is alive.
    pub fn is_alive(&self, vm_dir: &Path) -> bool {
        self.shims.lock().unwrap().get(vm_dir).is_some_and(|shim| shim.borrow().is_some())
    }

    /// Ends a VM without a word.
    pub fn vanish(&self, vm_dir: &Path) {
        if let Some(shim) = self.shims.lock().unwrap().get(vm_dir) {
            shim.send_replace(None);
        }
    }

    /// Whether a shim takes requests.
    fn ask(&self, vm_dir: &Path) -> Result<(), Problem> {
        let answers = !matches!(self.manner(), Manner::Deaf | Manner::Hangs);
        let is_there = self.is_alive(vm_dir) && answers;
        is_there.then_some(()).ok_or_else(|| Problem::new(ErrorCode::Internal, "no answer"))
    }

    fn say(&self, vm_dir: &Path, status: &VmStatus) {
        let json = serde_json::to_vec(status).unwrap();
        // As the shim does: somebody may be reading it.
        banger_host::files::write_atomic(&vm_dir.join(STATUS_FILE), &json).unwrap();
        if let Some(shim) = self.shims.lock().unwrap().get(vm_dir) {
            shim.send_replace(Some(status.clone()));
        }
    }

    pub fn forget_artifacts(&self) {
        self.images.lock().unwrap().clear();
        self.kernels.lock().unwrap().clear();
    }

    /// Another image, of that name and digest.
    pub fn add_image(&self, name: &str, digest: &str) {
        let other = Image { name: name.to_owned(), digest: digest.to_owned(), ..image(1) };
        self.images.lock().unwrap().push(other);
    }

    /// Gives the image another name.
    pub fn add_name(&self, name: &str) {
        let mut images = self.images.lock().unwrap();
        let named = Image { name: name.to_owned(), ..images[0].clone() };
        images.push(named);
    }

    pub fn add_artifacts(&self) {
        self.images.lock().unwrap().push(image(1));
        self.kernels.lock().unwrap().push(kernel(1));
    }
}

/// One side of the simulation: foreign traits want an owner of their own.
#[derive(Debug)]
struct Seen(Arc<Simulation>);

impl Shims for Seen {
    fn spawn(&self, vm_dir: &Path) -> Result<mpsc::Receiver<LaunchEvent>, Problem> {
        assert!(!self.is_locked(vm_dir).unwrap(), "a VM must not run twice");
        let launch = std::fs::read(vm_dir.join(LAUNCH_FILE)).expect("the launch file is there");
        let launch: LaunchSpec = serde_json::from_slice(&launch).expect("a launch spec");
        let (events, receiver) = mpsc::channel(8);
        let starting = fresh(VmState::Starting, 1);
        let shim = watch::Sender::new(Some(starting.clone()));
        self.0.shims.lock().unwrap().insert(vm_dir.to_owned(), shim);
        self.0.say(vm_dir, &starting);
        let progress = Progress::stage("vm.boot", "booting");
        events.try_send(LaunchEvent::Progress(progress)).unwrap();
        match self.0.manner() {
            Manner::Good | Manner::Deaf | Manner::Ignores | Manner::Offline => {
                let warnings = match self.0.manner() {
                    Manner::Offline => vec!["the VM has no network".to_owned()],
                    _ => Vec::new(),
                };
                let resources = Some(launch.resources());
                let status = VmStatus { warnings, resources, ..fresh(VmState::Running, 2) };
                self.0.say(vm_dir, &status);
                events.try_send(LaunchEvent::Ready { status }).unwrap();
            }
            Manner::Ends(cause) => {
                let problem = Problem::new(ErrorCode::BootFailed, "the VM ended as it started");
                events.try_send(LaunchEvent::Failed { problem }).unwrap();
                self.0.end(vm_dir, cause);
            }
            Manner::Hangs | Manner::Mute => {
                let (simulation, dir) = (Arc::clone(&self.0), vm_dir.to_owned());
                // Keeps the pipe open as long as the shim lives.
                tokio::spawn(async move {
                    let mut alive = simulation.shims.lock().unwrap()[&dir].subscribe();
                    let _ = alive.wait_for(Option::is_none).await;
                    drop(events);
                });
            }
            Manner::Fails => {
                let problem = Problem::new(ErrorCode::GuestPanic, "the guest's kernel panicked");
                events.try_send(LaunchEvent::Failed { problem }).unwrap();
                self.0.end(vm_dir, EndCause::GuestPanic);
            }
            Manner::Dies => self.0.vanish(vm_dir),
        }
        Ok(receiver)
    }

    fn is_locked(&self, vm_dir: &Path) -> io::Result<bool> {
        Ok(self.0.is_alive(vm_dir))
    }

    fn watch<'a>(
        &'a self,
        vm_dir: &'a Path,
    ) -> Later<'a, Result<mpsc::Receiver<VmStatus>, Problem>> {
        Box::pin(async move {
            let shim = self.0.shims.lock().unwrap().get(vm_dir).map(watch::Sender::subscribe);
            let absent = || Problem::new(ErrorCode::Internal, "no shim");
            let mut shim = shim.filter(|shim| shim.borrow().is_some()).ok_or_else(absent)?;
            let (changes, receiver) = mpsc::channel(8);
            tokio::spawn(async move {
                loop {
                    let status = shim.borrow_and_update().clone();
                    let Some(status) = status else { return };
                    if changes.send(status).await.is_err() || shim.changed().await.is_err() {
                        return;
                    }
                }
            });
            Ok(receiver)
        })
    }

    fn stop<'a>(&'a self, vm_dir: &'a Path, how: StopVm) -> Later<'a, Result<(), Problem>> {
        Box::pin(async move {
            self.0.ask(vm_dir)?;
            self.0.say(vm_dir, &fresh(VmState::Stopping, 3));
            match self.0.manner() {
                Manner::Ignores => {}
                Manner::Mute => {
                    tokio::time::sleep(Duration::from_millis(how.grace_ms)).await;
                    self.0.end(vm_dir, EndCause::StopTimedOut);
                }
                _ => self.0.end(vm_dir, EndCause::Stopped),
            }
            Ok(())
        })
    }

    fn kill<'a>(&'a self, vm_dir: &'a Path) -> Later<'a, Result<(), Problem>> {
        Box::pin(async move {
            self.0.ask(vm_dir)?;
            self.0.end(vm_dir, EndCause::Killed);
            Ok(())
        })
    }

    fn kill_shim(&self, vm_dir: &Path) -> io::Result<bool> {
        let alive = self.is_locked(vm_dir)?;
        self.0.vanish(vm_dir);
        Ok(alive)
    }
}

fn image(version: usize) -> Image {
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

fn kernel(version: usize) -> Kernel {
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
        let deadline = Instant::now() + PATIENCE;
        while self.0.slow_pulls.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "nobody lets the slow pull of {name} go on");
            if report.cancel.is_cancelled() {
                return Err(Problem::new(ErrorCode::Cancelled, "cancelled"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(self.0.pulls.fetch_add(1, Ordering::SeqCst) + 1)
    }
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

impl Machine for Seen {
    fn capacity(&self) -> HostCapacity {
        HostCapacity { cpus: 2, memory_mib: 4096 }
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(FREE_BYTES - self.0.used_bytes.load(Ordering::SeqCst))
    }

    fn engine(&self, _choice: EngineChoice) -> Result<EngineSpec, Problem> {
        Ok(EngineSpec {
            name: "simulated".into(),
            version: "1".into(),
            binary: "/bin/false".into(),
            libraries: Vec::new(),
            data_dirs: Vec::new(),
            accelerator: Accelerator::Tcg,
            tsc_khz: None,
        })
    }

    fn jail_user(&self) -> Result<Option<JailUser>, Problem> {
        Ok(None)
    }
}
