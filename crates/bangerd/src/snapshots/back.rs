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
use banger_api::vm::{EngineInUse, StartVm, StopVm, VmState, VmStatus};
use banger_api::{Problem, step};
use banger_core::lifecycle::Request;
use banger_core::size::MIB;
use banger_core::spec;
use banger_host::{files, sparse};

use super::take::{Kind, take};
use super::{MANIFEST, Record, discard, list, read, show, snapshots_dir, tell};
use crate::daemon::{Daemon, blocking, failed, lengthy};
use crate::operations::Handle;
use crate::vm::{Back, Outcome, Saved, VmHandle};
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
        let kept = if vm.state().is_live() { u64::from(vm.row().spec.memory_mib) * MIB } else { 0 };
        artifacts::check_space_for(daemon, snapshot.allocated_bytes.saturating_add(kept)).await?;
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
        let disks = saved::unfinished_dir(&self.daemon, &format!("restore-{}", self.vm.id));
        let gone = self.go_back(&disks, &operation).await;
        saved::discard(&self.daemon, disks).await;
        let undo = gone?;
        tell(&self.daemon, EventType::SnapshotRestored, &self.vm, &self.snapshot.name);
        self.forget_old_ones().await;
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
        self.copy_disks(&record, disks).await?;
        operation.check_cancelled()?;
        let before = self.vm.snapshot().status;
        let ran = before.state == VmState::Running;
        let undo = self.keep_what_is(operation).await;
        let undo = match undo.and_then(|undo| operation.check_cancelled().map(|()| undo)) {
            Ok(undo) => undo,
            Err(problem) => {
                if ran && let Err(other) = self.turn(Request::Resume).await {
                    tracing::warn!(vm = %name, "it does not go on: {other}");
                }
                return Err(problem);
            }
        };
        stage(step::RESTORE_END, format!("restoring {name}"));
        let gone = self.end_and_start((record, disks), &before, operation).await;
        gone.map_err(|problem| {
            let title = format!("VM {name} did not go back to its snapshot {}", self.snapshot.name);
            Problem::new(problem.code, title)
                .because(&problem)
                .hint(format!("what it was is kept: banger snapshot restore {name} {undo}"))
        })?;
        Ok(undo)
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

    /// Keeps what the VM is now. If it runs it stands still from then on.
    async fn keep_what_is(&self, operation: &Handle) -> Result<String, Problem> {
        if self.vm.state() == VmState::Running {
            self.turn(Request::Pause).await?;
        }
        Ok(take(&self.daemon, &self.vm, Kind::Automatic, operation).await?.name)
    }

    async fn turn(&self, request: Request) -> Result<(), Problem> {
        match self.vm.turn(request).await? {
            Outcome::Accepted(work) => work.finished().await,
            Outcome::AlreadySo => Ok(()),
        }
    }

    async fn end_and_start(
        &self,
        (record, disks): (Record, &Path),
        before: &VmStatus,
        operation: &Handle,
    ) -> Result<(), Problem> {
        self.daemon.gate.pass(step::RESTORE_END).await?;
        // The first half of a restart: its policy does not start it, and one that goes with its end stays.
        // What it would do with more time is lost in any case.
        if self.vm.state().is_live()
            && let Outcome::Accepted(work) =
                self.vm.end(Request::Restart, StopVm { grace_ms: 0 }).await?
        {
            work.finished().await?;
        }
        let start = StartVm { session_env: self.request.session_env.clone(), ..StartVm::default() };
        let saved = Saved { dir: self.dir(), was: Was::Itself };
        let back = Back {
            disks: disks.to_owned(),
            settings: record.settings,
            from: self.vm.row().settings(),
            // One that did not run has not run since it was kept.
            ended_ms: match before.state.is_live() {
                true => self.vm.snapshot().status.since_ms,
                false => before.since_ms,
            },
            start: record.snapshot.memory.map(|_| (start, saved)),
        };
        match self.vm.go_back(back).await? {
            Outcome::Accepted(work) => work.follow(operation).await,
            Outcome::AlreadySo => Ok(()),
        }
    }

    /// Removes the automatic snapshots that are too many. What cannot be removed stays.
    async fn forget_old_ones(&self) {
        let all = list(&self.daemon, Some(self.vm.id.as_str())).await.unwrap_or_default();
        let automatic: Vec<_> = all.into_iter().filter(|snapshot| snapshot.automatic).collect();
        for old in &automatic[..automatic.len().saturating_sub(KEPT)] {
            if let Err(problem) = discard(&self.daemon, &self.vm, &old.name).await {
                tracing::warn!(vm = %self.vm.name, snapshot = %old.name, "{problem}");
            }
        }
    }
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
