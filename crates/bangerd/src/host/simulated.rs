//! A simulated machine: shims that are entries in a table, images that are there at once.
//!
//! It keeps what a real machine keeps when a daemon dies: which VMs run, and what their shims wrote.
//! So a test can end a daemon anywhere and start another one on the same machine.

mod artifacts;
mod launching;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_api::image::Image;
use banger_api::kernel::Kernel;
use banger_api::shim::{
    COW_FILE, Captured, DEVICES_FILE, EngineSpec, JailUser, LaunchEvent, MEMORY_FILE, STATUS_FILE,
    WORK_FILE,
};
use banger_api::vm::{Accelerator, EndCause, EngineChoice, StopVm, VmState, VmStatus};
use banger_api::{ErrorCode, Problem};
use banger_core::expiry::Clocks;
use banger_core::lifecycle::{Traces, fresh, plain_end};
use banger_core::spec::HostCapacity;
use banger_core::standstill::{Happening, plan};
use banger_host::clock::now_ms;
use tokio::sync::{mpsc, watch};

use super::{Host, Job, Later, Machine, Shims, WaitingShim};
use artifacts::{image, kernel};
pub use launching::PRIVATE_BYTES;

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
    /// The guest does not go on from its template.
    Forgets,
    /// The shim is of a release that cannot pause its VM.
    Old,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Simulation {
    pub manner: Mutex<Manner>,
    /// Something happens to the next shim, or just happened to the one that runs.
    trouble: Mutex<Option<Manner>>,
    shims: Mutex<ShimsByDir>,
    images: Mutex<Vec<Image>>,
    kernels: Mutex<Vec<Kernel>>,
    pub pulls: AtomicUsize,
    /// Long work other than pulls.
    pub jobs: Mutex<Vec<Job>>,
    /// Which waits until it is cancelled.
    pub slow_jobs: AtomicBool,
    /// A pull waits until it is cancelled.
    pub slow_pulls: AtomicBool,
    /// No guest goes on from a template.
    pub bad_templates: AtomicBool,
    /// How many guests were saved.
    pub saves: AtomicUsize,
    pub used_bytes: AtomicU64,
    /// What there is to know of shims that vanished.
    pub traces: Mutex<Traces>,
    /// How often the machine was started anew.
    pub boots: AtomicU64,
    /// How far the time of day is ahead of what it was, and how much time has passed, in
    /// milliseconds.
    pub set_ahead_ms: AtomicU64,
    pub passed_ms: AtomicU64,
    /// A VM that stands still for want of disk cannot go on yet.
    pub full: AtomicBool,
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
                Manner::Good | Manner::Old | Manner::Forgets => {}
                Manner::Hangs | Manner::Deaf | Manner::Ignores | Manner::Mute => {}
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
        let shims = self.shims.lock().unwrap();
        if tell(&shims, vm_dir, &last_word(cause)) {
            shims[vm_dir].send_replace(None);
        }
    }

    /// The guest begins to shut down by itself.
    pub fn winds_down(&self, vm_dir: &Path) {
        self.say(vm_dir, &fresh(VmState::Stopping, now_ms()));
    }

    /// Whether something of a VM is alive.
    pub fn is_alive(&self, vm_dir: &Path) -> bool {
        self.shims.lock().unwrap().get(vm_dir).is_some_and(|shim| shim.borrow().is_some())
    }

    fn is_stopping(&self, vm_dir: &Path) -> bool {
        let shims = self.shims.lock().unwrap();
        let said = shims.get(vm_dir).and_then(|shim| shim.borrow().clone());
        said.is_some_and(|status| status.state == VmState::Stopping)
    }

    /// The last word of a shim that has not let go of its lock yet.
    pub fn has_written(&self, vm_dir: &Path, cause: EndCause) {
        self.say(vm_dir, &last_word(cause));
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

    /// What the disk does to a VM that runs, or somebody to whoever answers.
    pub fn happens(&self, vm_dir: &Path, happening: Happening) {
        let shims = self.shims.lock().unwrap();
        let said = shims.get(vm_dir).and_then(|shim| shim.borrow().clone());
        let Some(status) = said.filter(|status| status.state.is_live()) else { return };
        let paused = plan(&status.paused, happening).reasons;
        let state = if paused.is_empty() { VmState::Running } else { VmState::Paused };
        tell(&shims, vm_dir, &VmStatus { state, paused, ..status });
    }

    fn turn(&self, vm_dir: &Path, happening: Happening) -> Result<(), Problem> {
        self.ask(vm_dir)?;
        match self.manner() {
            Manner::Old => return Err(Problem::new(ErrorCode::NotFound, "no such route")),
            Manner::Mute => return Err(Problem::new(ErrorCode::Internal, "no answer")),
            _ => self.happens(vm_dir, happening),
        }
        match happening {
            Happening::Resumed { has_space: false } => {
                Err(Problem::new(ErrorCode::HostDiskFull, "it stays paused"))
            }
            _ => Ok(()),
        }
    }

    /// The power is cut and comes back: nothing runs any more.
    pub fn cut_power(&self) {
        self.shims.lock().unwrap().clear();
        self.boots.fetch_add(1, Ordering::SeqCst);
    }

    /// Time goes by.
    pub fn pass(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap();
        self.passed_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Has a shim say something. Whether it was alive: the dead say nothing.
    fn say(&self, vm_dir: &Path, status: &VmStatus) -> bool {
        tell(&self.shims.lock().unwrap(), vm_dir, status)
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

fn last_word(cause: EndCause) -> VmStatus {
    let end = Some(plain_end(cause, "the test says so"));
    VmStatus { end, ..fresh(cause.state(), now_ms()) }
}

/// The shims that were ever started; None for one that is dead. Whoever ends one or has it speak
/// holds the lock meanwhile: else one that was ended could come back to life by its next word.
type ShimsByDir = BTreeMap<PathBuf, watch::Sender<Option<VmStatus>>>;

fn tell(shims: &ShimsByDir, vm_dir: &Path, status: &VmStatus) -> bool {
    let Some(shim) = shims.get(vm_dir).filter(|shim| shim.borrow().is_some()) else { return false };
    write_status(vm_dir, status);
    shim.send_replace(Some(status.clone()));
    true
}

/// As the shim does: somebody may be reading it.
fn write_status(vm_dir: &Path, status: &VmStatus) {
    let json = serde_json::to_vec(status).unwrap();
    banger_host::files::write_atomic(&vm_dir.join(STATUS_FILE), &json).unwrap();
}

/// One side of the simulation: foreign traits want an owner of their own.
#[derive(Debug)]
struct Seen(Arc<Simulation>);

impl Shims for Seen {
    fn spawn(&self, vm_dir: &Path) -> Result<mpsc::Receiver<LaunchEvent>, Problem> {
        assert!(!self.is_locked(vm_dir).unwrap(), "a VM must not run twice");
        Ok(launching::spawn(&self.0, vm_dir))
    }

    fn spawn_waiting(&self, vm_dir: &Path) -> Result<WaitingShim, Problem> {
        assert!(!self.is_locked(vm_dir).unwrap(), "a guest must not run twice");
        Ok(launching::spawn_waiting(&self.0, vm_dir))
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
            // One stop at a time. Its guest booted long ago, whatever others do now.
            if self.0.is_stopping(vm_dir) && !matches!(self.0.manner(), Manner::Deaf) {
                return Ok(());
            }
            self.0.ask(vm_dir)?;
            self.0.say(vm_dir, &fresh(VmState::Stopping, now_ms()));
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

    fn pause<'a>(&'a self, vm_dir: &'a Path) -> Later<'a, Result<(), Problem>> {
        Box::pin(async move { self.0.turn(vm_dir, Happening::Paused) })
    }

    fn resume<'a>(&'a self, vm_dir: &'a Path) -> Later<'a, Result<(), Problem>> {
        let has_space = !self.0.full.load(Ordering::SeqCst);
        Box::pin(async move { self.0.turn(vm_dir, Happening::Resumed { has_space }) })
    }

    fn capture<'a>(
        &'a self,
        vm_dir: &'a Path,
        dir: &'a Path,
    ) -> Later<'a, Result<Captured, Problem>> {
        Box::pin(async move {
            self.0.ask(vm_dir)?;
            match self.0.manner() {
                Manner::Old => return Err(Problem::new(ErrorCode::NotFound, "no such route")),
                Manner::Mute => return Err(Problem::new(ErrorCode::Internal, "no answer")),
                _ => {}
            }
            for name in [MEMORY_FILE, DEVICES_FILE] {
                std::fs::write(dir.join(name), name).expect("a file");
            }
            for name in [COW_FILE, WORK_FILE] {
                if vm_dir.join(name).exists() {
                    banger_host::sparse::copy(&vm_dir.join(name), &dir.join(name)).expect("a copy");
                }
            }
            Ok(Captured { paused_ms: 3, took_ms: 70 })
        })
    }

    fn kill_shim(&self, vm_dir: &Path) -> io::Result<bool> {
        let alive = self.is_locked(vm_dir)?;
        self.0.vanish(vm_dir);
        Ok(alive)
    }

    fn traces<'a>(&'a self, _vm_dir: &'a Path) -> Later<'a, Traces> {
        Box::pin(async { *self.0.traces.lock().unwrap() })
    }

    fn forget(&self, _vm_dir: &Path) {}
}

impl Machine for Seen {
    fn capacity(&self) -> HostCapacity {
        HostCapacity { cpus: 2, memory_mib: 4096 }
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(FREE_BYTES - self.0.used_bytes.load(Ordering::SeqCst))
    }

    fn clocks(&self) -> Clocks {
        let (passed_ms, ahead_ms) =
            (self.0.passed_ms.load(Ordering::SeqCst), self.0.set_ahead_ms.load(Ordering::SeqCst));
        Clocks {
            real_ms: now_ms() + passed_ms + ahead_ms,
            elapsed_ms: banger_host::clock::elapsed_ms() + passed_ms,
        }
    }

    fn boot_id(&self) -> Option<String> {
        Some(format!("boot-{}", self.0.boots.load(Ordering::SeqCst)))
    }

    fn engine(&self, _choice: EngineChoice) -> Result<EngineSpec, Problem> {
        Ok(EngineSpec {
            name: "simulated".into(),
            version: "1".into(),
            binary: "/bin/false".into(),
            build: None,
            libraries: Vec::new(),
            data_dirs: Vec::new(),
            accelerator: Accelerator::Tcg,
            tsc_khz: None,
        })
    }

    fn cpu(&self) -> String {
        "simulated".to_owned()
    }

    fn jail_user(&self) -> Result<Option<JailUser>, Problem> {
        Ok(None)
    }
}
