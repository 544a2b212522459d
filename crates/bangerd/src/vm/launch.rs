//! Starting a VM: a table of small steps, then waiting until the guest answers.
//!
//! The steps before `spawn` only write what the next try writes again, so a start can be cut off
//! anywhere. From `spawn` on the VM's lock says whether anything is alive.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_api::exec::ExecRequest;
use banger_api::operation::{OperationEvent, Progress};
use banger_api::shim::{
    Begin, EngineSpec, JailUser, LAUNCH_FILE, LaunchEvent, LaunchSpec, SHIM_LOG_FILE, STATUS_FILE,
    Was,
};
use banger_api::vm::{StartVm, VmStatus};
use banger_api::{ErrorCode, Problem, step, trace};
use banger_core::id::Id;
use banger_core::lifecycle::Desired;
use banger_core::{size, spec};
use banger_host::config::read_certificates;
use banger_host::files;
use banger_host::qemu::arguments::machine_digest;
use banger_host::trace::Trace;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::end::{kill_until_unlocked, unlocked};
use super::{Saved, disks};
use crate::daemon::{Daemon, blocking, failed};
use crate::host::{LocalImage, LocalKernel};
use crate::operations::cancelled;
use crate::pool::Guest;
use crate::store::VmRow;
use crate::templates::Wanted;

/// How much longer than the guest's own limit a shim may take before it is taken for hung.
const SLACK: Duration = Duration::from_secs(15);
/// How long a shim may take until it is in its namespaces.
const ENTRANCE: Duration = Duration::from_secs(20);
/// Pause before one is killed again that hangs there.
const KILL_AGAIN: Duration = Duration::from_millis(50);
/// How much of the end of a shim's log is shown when it died without a word.
const LOG_TAIL: u64 = 2048;
/// How many of its last lines.
const LOG_LINES: usize = 5;

/// Why a VM did not come up.
#[derive(Debug)]
pub(super) struct Failure {
    /// Why.
    pub(super) problem: Problem,
    /// Whether there was a shim, so that this counts as a run that failed.
    pub(super) spawned: bool,
}

/// A start under way.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) daemon: Arc<Daemon>,
    pub(super) row: Arc<VmRow>,
    pub(super) request: StartVm,
    /// Where the guest was saved that it goes on from.
    pub(super) saved: Option<Saved>,
    /// A guest that stands ready to be it.
    pub(super) ready: Option<Box<Guest>>,
    pub(super) events: mpsc::UnboundedSender<OperationEvent>,
    pub(super) cancel: CancellationToken,
    pub(super) trace: Trace,
}

/// A VM that has come up.
#[derive(Debug)]
pub(super) struct Launched {
    /// What its shim says of it.
    pub(super) status: VmStatus,
    /// What its shim says further, if it shall tell where the time goes.
    pub(super) line: Option<mpsc::Receiver<LaunchEvent>>,
}

impl Launch {
    /// Starts the VM. On failure nothing of it is alive.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn run(mut self) -> Result<Launched, Failure> {
        let ready = self.ready.take();
        let launched = self.try_to(ready).await;
        for mark in self.trace.take() {
            self.send(OperationEvent::Mark(mark));
        }
        launched
    }

    async fn try_to(&self, ready: Option<Box<Guest>>) -> Result<Launched, Failure> {
        let vm_dir = self.daemon.vm_dir(&self.row.id);
        self.tell("vm.prepare", "preparing the VM");
        if let Some(guest) = ready
            && let Some(launched) = self.claim(*guest, &vm_dir).await?
        {
            return Ok(launched);
        }
        let begun = self.start(&vm_dir, self.request.cold).await;
        match begun {
            Err(failure) if failure.problem.code != ErrorCode::TemplateFailed => Err(failure),
            Err(failure) => {
                if let Some(saved) = &self.saved {
                    return Err(self.not_gone_on(saved.was, &failure));
                }
                self.give_up_template(&vm_dir, &failure.problem).await.map_err(unspawned)?;
                self.start(&vm_dir, true).await
            }
            Ok(status) => Ok(status),
        }
    }

    /// It cannot boot instead: what it shall go on from is in its memory.
    fn not_gone_on(&self, was: Was, failure: &Failure) -> Failure {
        let who = if was == Was::Another { "the copy" } else { "VM" };
        let title = format!("{who} {} did not go on from what was saved", self.row.name);
        let problem = Problem::new(ErrorCode::BootFailed, title).because(&failure.problem);
        Failure { problem, spawned: failure.spawned }
    }

    /// Starts it, by a boot if it shall begin `cold`.
    async fn start(&self, vm_dir: &Path, cold: bool) -> Result<Launched, Failure> {
        self.prepare(vm_dir, cold).await.map_err(unspawned)?;
        if self.cancel.is_cancelled() {
            return Err(unspawned(cancelled()));
        }
        self.daemon.gate.pass(step::START_SPAWN).await.map_err(unspawned)?;
        let began = self.trace.begin();
        let events = self.spawn(vm_dir).await.map_err(unspawned)?;
        self.trace.end(trace::DAEMON_SHIM, began);
        let outcome = self.await_ready(events, vm_dir).await;
        outcome.map_err(|problem| Failure { problem, spawned: true })
    }

    /// Everything that a shim needs to find.
    async fn prepare(&self, vm_dir: &Path, cold: bool) -> Result<(), Problem> {
        let gate = &self.daemon.gate;
        gate.pass(step::START_PREPARE).await?;
        let began = self.trace.begin();
        let needs = Needs::gather(&self.daemon, &self.row).await?;
        let (mut launch, warnings) = launch_spec(&self.daemon, &self.row, &self.request, &needs);
        self.warn(warnings);

        gate.pass(step::START_DISKS).await?;
        disks::fit(&self.daemon, &self.row).await?;
        self.trace.end(trace::DAEMON_NEEDS, began);
        if !cold {
            launch.begin = self.choose_begin(&needs, &launch, vm_dir).await?;
        }
        self.write_down(launch, vm_dir).await
    }

    /// Writes what the shim reads, and that the VM shall run.
    pub(super) async fn write_down(
        &self,
        launch: LaunchSpec,
        vm_dir: &Path,
    ) -> Result<(), Problem> {
        let (gate, began) = (&self.daemon.gate, self.trace.begin());
        gate.pass(step::START_FORGET_LAST_RUN).await?;
        let status = vm_dir.join(STATUS_FILE);
        blocking(move || forget(&status)).await?;

        // Before the row: it says since which start of the host the VM was wanted.
        gate.pass(step::START_WRITE_LAUNCH_FILE).await?;
        let file = vm_dir.join(LAUNCH_FILE);
        blocking(move || write_launch_file(&file, &launch)).await?;

        gate.pass(step::START_INTEND).await?;
        let id = self.row.id.clone();
        self.daemon.store(move |store| store.set_desired(&id, Desired::Running)).await?;
        self.trace.end(trace::DAEMON_LAUNCH, began);
        Ok(())
    }

    /// Starts the shim, and waits until it is in its namespaces. One that hangs before is killed,
    /// and so has died.
    async fn spawn(&self, vm_dir: &Path) -> Result<mpsc::Receiver<LaunchEvent>, Problem> {
        let shims = Arc::clone(&self.daemon.host.shims);
        let (starts, dir) = (Arc::clone(&shims), vm_dir.to_owned());
        let spawning = blocking(move || starts.spawn(&dir));
        tokio::pin!(spawning);
        let patience = async {
            tokio::select! {
                () = self.cancel.cancelled() => {}
                () = sleep(ENTRANCE) => {}
            }
        };
        tokio::select! {
            biased;
            spawned = &mut spawning => return spawned,
            () = patience => {}
        }
        loop {
            if let Err(error) = shims.kill_shim(vm_dir) {
                tracing::warn!(vm = %self.row.name, "cannot kill the shim: {error}");
            }
            tokio::select! {
                spawned = &mut spawning => return spawned,
                () = sleep(KILL_AGAIN) => {}
            }
        }
    }

    pub(super) async fn await_ready(
        &self,
        mut events: mpsc::Receiver<LaunchEvent>,
        vm_dir: &Path,
    ) -> Result<Launched, Problem> {
        let shims = self.daemon.host.shims.as_ref();
        let patience = Duration::from_secs(self.daemon.config.boot_timeout_s) + SLACK;
        let deadline = sleep(patience);
        tokio::pin!(deadline);
        let give_up = loop {
            let event = tokio::select! {
                biased;
                // First: one that was killed for it has died, too, but not by itself.
                () = self.cancel.cancelled() => break cancelled(),
                event = self.hear(&mut events) => match event {
                    Ok(event) => event,
                    Err(problem) => break problem,
                },
                () = &mut deadline => break self.hung(),
            };
            match event {
                Some(LaunchEvent::Progress(progress)) => {
                    self.send(OperationEvent::Progress(progress));
                }
                Some(LaunchEvent::Mark(mark)) => self.trace.add([mark]),
                Some(LaunchEvent::Ready { status }) => {
                    self.warn(status.warnings.clone());
                    let line = self.trace.is_wanted().then_some(events);
                    return Ok(Launched { status, line });
                }
                Some(LaunchEvent::Failed { problem }) => break problem,
                // Nobody asked for that.
                Some(LaunchEvent::Saved | LaunchEvent::Waits { .. }) | None => {
                    break self.died(vm_dir);
                }
            }
        };
        // A shim that failed ends by itself; anything else is ended.
        if tokio::time::timeout(self.farewell(&give_up), unlocked(shims, vm_dir)).await.is_err() {
            kill_until_unlocked(shims, vm_dir).await;
        }
        Err(give_up)
    }

    /// What the shim says next; None if it is gone.
    async fn hear(
        &self,
        events: &mut mpsc::Receiver<LaunchEvent>,
    ) -> Result<Option<LaunchEvent>, Problem> {
        self.daemon.gate.pass(step::START_AWAIT).await?;
        let event = events.recv().await;
        if matches!(event, Some(LaunchEvent::Ready { .. })) {
            self.daemon.gate.pass(step::START_READY).await?;
        }
        Ok(event)
    }

    /// How long a shim may take to leave by itself.
    fn farewell(&self, why: &Problem) -> Duration {
        match why.code {
            ErrorCode::Cancelled => Duration::ZERO,
            _ => Duration::from_secs(2),
        }
    }

    fn hung(&self) -> Problem {
        Problem::new(ErrorCode::GuestTimeout, format!("VM {} did not start in time", self.row.name))
            .hint(format!("banger logs --console {}", self.row.name))
    }

    fn died(&self, vm_dir: &Path) -> Problem {
        let mut problem =
            Problem::new(ErrorCode::BootFailed, "the VM's supervisor died while it started the VM");
        for line in tail(&vm_dir.join(SHIM_LOG_FILE)) {
            problem = problem.cause(line);
        }
        problem.hint("banger doctor")
    }

    pub(super) fn tell(&self, stage: &str, message: &str) {
        self.send(OperationEvent::Progress(Progress::stage(stage, message)));
    }

    pub(super) fn warn(&self, warnings: Vec<String>) {
        for message in warnings {
            self.send(OperationEvent::Warning { message });
        }
    }

    pub(super) fn send(&self, event: OperationEvent) {
        // Whoever asked may have gone; the start goes on.
        let _ = self.events.send(event);
    }
}

/// A failure before there was a shim.
pub(super) fn unspawned(problem: Problem) -> Failure {
    Failure { problem, spawned: false }
}

/// What a shim is told of a VM, and warnings.
pub(crate) fn launch_spec(
    daemon: &Daemon,
    row: &VmRow,
    request: &StartVm,
    needs: &Needs,
) -> (LaunchSpec, Vec<String>) {
    let spec = &row.spec;
    let config = &needs.image.image.config;
    let (ca_certificates, warnings) = read_certificates(&daemon.config.guest.ca_certificates);
    let mut launch = LaunchSpec {
        vm_id: row.id.to_string(),
        name: row.name.clone(),
        machine_id: row.machine_id.clone(),
        engine: needs.engine.clone(),
        cpus: spec.cpus,
        memory_mib: spec.memory_mib,
        kernel: text(&needs.kernel.boot_file),
        kernel_release: needs.kernel.kernel.release.clone(),
        initramfs: text(&needs.initramfs),
        root_image: text(&needs.image.root),
        root_image_bytes: needs.image.image.disk_bytes,
        disk_bytes: row.disk_bytes,
        work_disk_bytes: spec.work_disk_bytes,
        modules_image: needs.kernel.modules_image.as_deref().map(text),
        durable: !spec.remove_on_exit,
        network: spec.network,
        env: spec::environment(&config.env, &spec.env, &request.session_env),
        user: spec.user.clone().or_else(|| config.user.clone()),
        workdir: spec.workdir.clone().or_else(|| config.workdir.clone()),
        ca_certificates,
        init: spec.init.unwrap_or(needs.image.image.init),
        stop_signal: spec.stop_signal.clone().or_else(|| config.stop_signal.clone()),
        main: main_process(row),
        owner: request.owner,
        jail_user: needs.jail_user,
        boot_timeout_ms: daemon.config.boot_timeout_s.saturating_mul(1000),
        log_bytes: daemon.config.logs.max_size_mib.saturating_mul(size::MIB),
        host_boot_id: daemon.host.machine.boot_id(),
        begin: Begin::Boot,
        machine: None,
        trace: request.trace,
        waits: false,
    };
    launch.machine = Some(machine_digest(&launch));
    (launch, warnings)
}

/// What a launch needs and does not make.
#[derive(Debug)]
pub(crate) struct Needs {
    image: LocalImage,
    kernel: LocalKernel,
    initramfs: PathBuf,
    engine: EngineSpec,
    jail_user: Option<JailUser>,
}

impl Needs {
    /// The template for what is to be launched.
    pub(crate) fn template(&self, daemon: &Daemon, launch: &LaunchSpec) -> Wanted {
        Wanted::new(launch, &self.image, &self.kernel, daemon.host.machine.cpu())
    }

    /// Finds all of it.
    pub(crate) async fn gather(daemon: &Arc<Daemon>, row: &Arc<VmRow>) -> Result<Self, Problem> {
        let (host, row) = (daemon.host.clone(), Arc::clone(row));
        blocking(move || {
            let image = host.artifacts.find_image(&row.image_digest)?.ok_or_else(|| {
                gone(ErrorCode::ImageCorrupt, "image", &row.spec.image, &row.image_digest)
            })?;
            host.artifacts.verify_image(&image)?;
            let kernel = host.artifacts.find_kernel(&row.kernel_digest)?.ok_or_else(|| {
                let name = row.spec.kernel.as_deref().unwrap_or("default");
                gone(ErrorCode::KernelCorrupt, "kernel", name, &row.kernel_digest)
            })?;
            host.artifacts.verify_kernel(&kernel)?;
            let initramfs = host.artifacts.initramfs(&kernel)?;
            let engine = host.machine.engine(row.spec.engine)?;
            let jail_user = host.machine.jail_user()?;
            Ok(Self { image, kernel, initramfs, engine, jail_user })
        })
        .await
    }
}

fn gone(code: ErrorCode, kind: &str, name: &str, digest: &str) -> Problem {
    Problem::new(code, format!("the {kind} {name} that the VM was made with is no longer here"))
        .cause(format!("no local {kind} has the digest {digest}"))
        .hint(format!("banger {kind} pull {name}, then make the VM again"))
}

fn main_process(row: &VmRow) -> Option<ExecRequest> {
    let spec = &row.spec;
    (!spec.command.is_empty()).then(|| ExecRequest {
        argv: spec.command.clone(),
        timeout_ms: spec.timeout_ms,
        ..ExecRequest::default()
    })
}

/// Removes the status of the last run; how that ended is in the database.
fn forget(status: &Path) -> Result<(), Problem> {
    match std::fs::remove_file(status) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed("cannot forget the VM's last run", &error))
        }
        _ => Ok(()),
    }
}

/// Writes what a shim reads.
///
/// # Errors
/// Of the file system.
pub fn write_launch_file(file: &Path, launch: &LaunchSpec) -> Result<(), Problem> {
    let json = serde_json::to_vec_pretty(launch).expect("a launch spec has only string keys");
    files::write_atomic(file, &json).map_err(|error| failed("cannot write the VM's files", &error))
}

/// The last lines of a log.
pub(super) fn tail(log: &Path) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let lines: Vec<String> = lines.map(super::logs::printable).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].to_vec()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The session environment that a VM was last started with, so that a restart is like the start.
pub async fn last_environment(daemon: &Daemon, id: &Id) -> StartVm {
    let file = daemon.vm_dir(id).join(LAUNCH_FILE);
    let launch = blocking(move || Ok(read_launch_file(&file))).await.ok().flatten();
    StartVm {
        session_env: launch.map(|launch| launch.env).unwrap_or_default(),
        ..StartVm::default()
    }
}

/// What a VM was last started with; None if that cannot be read.
#[must_use]
pub fn read_launch_file(file: &Path) -> Option<LaunchSpec> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}
