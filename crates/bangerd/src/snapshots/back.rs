//! Going back to a snapshot.
//!
//! Everything that may fail for want of anything comes first: the snapshot is looked at, its disks are
//! copied, and what the VM is now is kept as an automatic snapshot, for which it stands still until it
//! ends. Then the VM's task makes it what it was ([`crate::vm`]'s `back`).

use std::path::Path;
use std::sync::Arc;

use banger_api::event::EventType;
use banger_api::operation::{OperationResult, Progress};
use banger_api::shim::{COW_FILE, WORK_FILE, Was};
use banger_api::snapshot::{RestoreSnapshot, Restored, SavedMemory, Snapshot};
use banger_api::vm::{EngineInUse, StartVm, StopVm, VmStatus};
use banger_api::{ErrorCode, Problem, step};
use banger_core::change::Settings;
use banger_core::lifecycle::Request;
use banger_core::spec;
use banger_host::{files, sparse};

use super::take::{Kind, check_stays, room_for, take};
use super::{
    AUTOMATIC, MANIFEST, Record, discard, list, read, show, snapshots_dir, standstill, tell,
};
use crate::daemon::{Daemon, blocking, failed, lengthy};
use crate::operations::Handle;
use crate::vm::{Back, Needs, Outcome, Saved, VmHandle, launch_spec};
use crate::{artifacts, saved};

/// How many automatic snapshots a VM keeps, the newest.
const KEPT: usize = 3;

/// A way back that may be gone.
#[derive(Debug)]
pub struct GoingBack {
    daemon: Arc<Daemon>,
    vm: Arc<VmHandle>,
    snapshot: Snapshot,
    request: RestoreSnapshot,
}

impl GoingBack {
    /// Checks everything about a request that can be told at once.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn check(
        daemon: &Arc<Daemon>,
        vm: Arc<VmHandle>,
        name: &str,
        request: RestoreSnapshot,
    ) -> Result<Self, Problem> {
        spec::check_environment(&request.session_env)?;
        check_stays(&vm)?;
        let snapshot = show(daemon, &vm, name).await?;
        if snapshot.vm_id != vm.id.as_str() {
            return Err(unusable(&snapshot).cause("it was made of another VM").hint(listed(&vm)));
        }
        let (host, choice) = (daemon.host.clone(), vm.row().spec.engine);
        let (engine, cpu) =
            blocking(move || Ok((host.machine.engine(choice)?.in_use(), host.machine.cpu())))
                .await?;
        if let Some(memory) = &snapshot.memory {
            can_go_on(&snapshot, memory, &engine, &cpu)?;
        }
        let room = room_for(daemon, &vm).await?.saturating_add(snapshot.allocated_bytes);
        artifacts::check_space_for(daemon, room).await?;
        Ok(Self { daemon: Arc::clone(daemon), vm, snapshot, request })
    }

    /// What is done, for people.
    #[must_use]
    pub fn description(&self) -> String {
        format!("restore snapshot {} of {}", self.snapshot.name, self.vm.name)
    }

    /// Makes the VM what it was. If that fails before the VM ended it is as if nothing had been asked.
    ///
    /// # Errors
    /// Of the first step that fails.
    pub async fn run(self, operation: Handle) -> Result<OperationResult, Problem> {
        let _alone = self.vm.snapshots_alone().await;
        operation.check_cancelled()?;
        let disks = saved::unfinished_dir(&self.daemon, &format!("restore-{}", self.vm.id));
        let gone = self.go_back(&disks, &operation).await;
        saved::discard(&self.daemon, disks).await;
        self.forget_old_ones().await;
        let undo = gone?;
        tell(&self.daemon, EventType::SnapshotRestored, &self.vm, &self.snapshot.name);
        Ok(OperationResult::Restored(Box::new(Restored { vm: self.vm.snapshot(), undo })))
    }

    /// The name of what the VM was comes back.
    async fn go_back(&self, disks: &Path, operation: &Handle) -> Result<String, Problem> {
        let name = &self.vm.name;
        let stage = |step: step::Step, message: String| {
            operation.progress(Progress::stage(step.name(), message));
        };
        stage(step::RESTORE_DISKS, format!("copying the disks of {}", self.snapshot.name));
        let record = self.look().await?;
        self.check_machine(&record).await?;
        self.copy_disks(&record, disks).await?;
        operation.check_cancelled()?;
        let kept = self.keep_what_is(operation).await?;
        stage(step::RESTORE_END, format!("restoring {name}"));
        let ended = self.end(&kept).await;
        if ended.is_err() {
            self.leave(&kept).await;
        }
        standstill::forget(&self.daemon, &self.vm).await;
        let title = format!("VM {name} did not go back to its snapshot {}", self.snapshot.name);
        let ended_ms = ended.map_err(|problem| {
            let hint = problem.hint.clone().unwrap_or_else(|| "try again".to_owned());
            Problem::new(problem.code, &title).because(&problem).hint(hint)
        })?;
        let back = self.back(record, disks, &kept, ended_ms);
        let gone = match self.vm.go_back(back).await {
            Ok(Outcome::Accepted(work)) => work.follow(operation).await,
            Ok(Outcome::AlreadySo) => Ok(()),
            Err(problem) => Err(problem),
        };
        gone.map_err(|problem| {
            Problem::new(problem.code, title)
                .because(&problem)
                .hint(format!("what it was is kept: banger snapshot restore {name} {}", kept.undo))
        })?;
        Ok(kept.undo)
    }

    /// What the snapshot says, if its files are what they were.
    async fn look(&self) -> Result<Record, Problem> {
        let dir = self.dir();
        let (snapshot, hint) = (self.snapshot.clone(), listed(&self.vm));
        let image = self.daemon.host.artifacts.clone();
        lengthy(move || {
            let damaged = |cause: String| unusable(&snapshot).cause(cause).hint(&hint);
            let mut manifest =
                read(&dir).ok_or_else(|| damaged("it was removed just now".to_owned()))?;
            manifest.check(&dir, MANIFEST).map_err(|error| damaged(error.to_string()))?;
            let digest = &manifest.what.settings.image_digest;
            image.find_image(digest)?.ok_or_else(|| {
                damaged(format!("its image {} ({digest}) is no longer here", snapshot.image))
            })?;
            Ok(manifest.what)
        })
        .await
    }

    /// Whether its guest would find the machine that it knows.
    async fn check_machine(&self, record: &Record) -> Result<(), Problem> {
        let Some(memory) = &record.snapshot.memory else { return Ok(()) };
        let row = (*self.vm.row()).clone();
        let restored = record.settings.clone().restored(&row.settings(), String::new());
        let row = Arc::new(row.with(restored));
        let needs = Needs::gather(&self.daemon, &row).await?;
        let (launch, _) = launch_spec(&self.daemon, &row, &StartVm::default(), &needs);
        if launch.machine.as_ref() == Some(&memory.machine) {
            return Ok(());
        }
        Err(unusable(&self.snapshot)
            .cause("its guest ran in another machine: it was made by another release of banger")
            .hint("the release that made it can restore it; until then the VM can be started as it is"))
    }

    fn dir(&self) -> std::path::PathBuf {
        snapshots_dir(&self.daemon, &self.vm.id).join(&self.snapshot.name)
    }

    /// Makes disks as the VM had them. A work disk that it had never used yet is as good as any new one; not
    /// that which it has now.
    async fn copy_disks(&self, record: &Record, to: &Path) -> Result<(), Problem> {
        self.daemon.gate.pass(step::RESTORE_DISKS).await?;
        let (from, to) = (self.dir(), to.to_owned());
        let (work, artifacts) =
            (record.settings.spec.work_disk_bytes, self.daemon.host.artifacts.clone());
        lengthy(move || {
            let copy = |name| sparse::copy(&from.join(name), &to.join(name))?.sync_all();
            let broken = |error| failed("cannot copy the disks of the snapshot", &error);
            files::create_private_dir(&to).and_then(|()| copy(COW_FILE)).map_err(broken)?;
            match work {
                None => Ok(()),
                Some(_) if from.join(WORK_FILE).exists() => copy(WORK_FILE).map_err(broken),
                Some(bytes) => artifacts.make_work_disk(&to.join(WORK_FILE), bytes),
            }
        })
        .await
    }

    /// Keeps what the VM is now. If it runs it stands still from then on; if that fails, it goes on.
    async fn keep_what_is(&self, operation: &Handle) -> Result<Kept, Problem> {
        let (daemon, vm) = (&self.daemon, &self.vm);
        let stopped_here = standstill::stand_still(daemon, vm).await?;
        let (status, settings) = (vm.snapshot().status, vm.row().settings());
        let mut kept = take(daemon, vm, Kind::Automatic, operation).await;
        if let (Ok(undo), Err(cancelled)) = (&kept, operation.check_cancelled()) {
            self.forget(&undo.name).await;
            kept = Err(cancelled);
        }
        match kept {
            Ok(undo) => Ok(Kept { undo: undo.name, status, settings, stopped_here }),
            Err(problem) => {
                if stopped_here {
                    standstill::go_on(daemon, vm).await;
                }
                Err(problem)
            }
        }
    }

    /// Leaves the VM as it is: nothing has happened that could be undone.
    async fn leave(&self, kept: &Kept) {
        if kept.stopped_here {
            standstill::go_on(&self.daemon, &self.vm).await;
        }
        self.forget(&kept.undo).await;
    }

    /// Removes a snapshot. What cannot be removed stays.
    async fn forget(&self, snapshot: &str) {
        if let Err(problem) = discard(&self.daemon, &self.vm, snapshot).await {
            tracing::warn!(vm = %self.vm.name, snapshot, "{problem}");
        }
    }

    fn back(&self, record: Record, disks: &Path, kept: &Kept, ended_ms: u64) -> Back {
        let start = StartVm { session_env: self.request.session_env.clone(), ..StartVm::default() };
        let saved = Saved { dir: self.dir(), was: Was::Itself };
        Back {
            disks: disks.to_owned(),
            settings: record.settings,
            from: kept.settings.clone(),
            ended_ms,
            start: record.snapshot.memory.map(|_| (start, saved)),
        }
    }

    /// Ends the VM, if it is still what was kept. Since when it does not run comes back.
    async fn end(&self, kept: &Kept) -> Result<u64, Problem> {
        self.daemon.gate.pass(step::RESTORE_END).await?;
        let changed = || {
            Problem::new(ErrorCode::VmWrongState, "it is not what it was when that was kept")
                .cause("somebody started, stopped or changed it meanwhile")
        };
        if self.vm.row().settings() != kept.settings {
            return Err(changed());
        }
        if !kept.status.state.is_live() {
            // Whether it has run since is looked at by its task.
            return Ok(kept.status.since_ms);
        }
        let now = self.vm.snapshot().status;
        if (now.state, now.since_ms) != (kept.status.state, kept.status.since_ms) {
            return Err(changed());
        }
        match self.vm.end(Request::GoBack, StopVm::default()).await? {
            Outcome::Accepted(work) => work.finished().await?,
            Outcome::AlreadySo => return Err(changed()),
        }
        Ok(self.vm.snapshot().status.since_ms)
    }

    /// Removes the automatic snapshots that are too many, of which the last number is the newest. What cannot be
    /// removed stays.
    async fn forget_old_ones(&self) {
        let all = list(&self.daemon, Some(self.vm.id.as_str())).await.unwrap_or_default();
        let number = |name: &str| name.strip_prefix(AUTOMATIC)?.parse::<u32>().ok();
        let automatic = all.into_iter().filter(|snapshot| snapshot.automatic);
        let mut automatic: Vec<_> =
            automatic.filter_map(|it| Some((number(&it.name)?, it.name))).collect();
        automatic.sort();
        for (_, old) in &automatic[..automatic.len().saturating_sub(KEPT)] {
            self.forget(old).await;
        }
    }
}

/// What the VM was when it was kept.
struct Kept {
    /// The name of the snapshot.
    undo: String,
    status: VmStatus,
    settings: Settings,
    /// It stands still because of this, and else would run.
    stopped_here: bool,
}

/// Whether the guest of a snapshot can go on here.
fn can_go_on(
    snapshot: &Snapshot,
    memory: &SavedMemory,
    engine: &EngineInUse,
    cpu: &str,
) -> Result<(), Problem> {
    let cause = if memory.engine != *engine {
        let name = |engine: &EngineInUse| {
            format!("{} {} ({})", engine.name, engine.version, engine.accelerator.as_str())
        };
        format!("its guest ran by {} and here is {}", name(&memory.engine), name(engine))
    } else if memory.cpu != cpu {
        format!("its guest ran on another processor: {}, and this one is {cpu}", memory.cpu)
    } else {
        return Ok(());
    };
    let hint = "it can be restored where it was made; until then the VM can be started as it is";
    Err(unusable(snapshot).cause(cause).hint(hint))
}

fn unusable(snapshot: &Snapshot) -> Problem {
    super::unusable(&snapshot.vm, &snapshot.name)
}

fn listed(vm: &VmHandle) -> String {
    format!("banger snapshot ls {}", vm.name)
}
