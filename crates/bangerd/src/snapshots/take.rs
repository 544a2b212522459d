//! Making a snapshot.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::event::EventType;
use banger_api::operation::{OperationResult, Progress};
use banger_api::shim::{COW_FILE, DEVICES_FILE, MEMORY_FILE, WORK_FILE};
use banger_api::snapshot::{CreateSnapshot, SavedMemory, Snapshot};
use banger_api::vm::{Vm, VmState};
use banger_api::{ErrorCode, Problem, step};
use banger_core::name;
use banger_core::size::MIB;
use banger_core::snapshot::SavedSettings;
use banger_host::{clock, files, sparse};

use super::{AUTOMATIC, MANIFEST, Record, directories, snapshots_dir, tell};
use crate::artifacts;
use crate::daemon::{Daemon, blocking, failed, lengthy};
use crate::operations::Handle;
use crate::saved::{self, Manifest};
use crate::vm::{SavedVm, VmHandle, capture};

/// What the names of those begin with that nobody has named, followed by a number.
const NAMELESS: &str = "snapshot-";
/// The files of a snapshot, of which those that there are belong together.
const FILES: [&str; 4] = [MEMORY_FILE, DEVICES_FILE, COW_FILE, WORK_FILE];

/// A snapshot that may be made.
#[derive(Debug)]
pub struct Taking {
    daemon: Arc<Daemon>,
    vm: Arc<VmHandle>,
    name: Option<String>,
}

impl Taking {
    /// Checks everything about a request that can be told at once.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn check(
        daemon: &Arc<Daemon>,
        vm: Arc<VmHandle>,
        request: CreateSnapshot,
    ) -> Result<Self, Problem> {
        if let Some(name) = &request.name {
            check_name(name)?;
            check_free(&names(daemon, &vm).await?, &vm, name)?;
        }
        check_state(&vm.snapshot())?;
        check_stays(&vm)?;
        artifacts::check_space_for(daemon, room_for(daemon, &vm).await?).await?;
        Ok(Self { daemon: Arc::clone(daemon), vm, name: request.name })
    }

    /// What is done, for people.
    #[must_use]
    pub fn description(&self) -> String {
        format!("make snapshot of {}", self.vm.name)
    }

    /// Makes it. Leaves nothing if that fails; the VM goes on in any case.
    ///
    /// # Errors
    /// Of the first step that fails.
    pub async fn run(self, operation: Handle) -> Result<OperationResult, Problem> {
        let _alone = self.vm.snapshots_alone().await;
        operation.check_cancelled()?;
        let kind = match self.name {
            Some(name) => Kind::Named(name),
            None => Kind::Nameless,
        };
        let snapshot = take(&self.daemon, &self.vm, kind, &operation).await?;
        Ok(OperationResult::Snapshot(Box::new(snapshot)))
    }
}

/// How a snapshot is called.
pub(super) enum Kind {
    /// As somebody wishes.
    Named(String),
    /// By a number.
    Nameless,
    /// By a number of its own, because nobody asked for it.
    Automatic,
}

/// Makes a snapshot, for whoever holds those of the VM alone.
///
/// # Errors
/// Of the first step that fails; nothing is left of it then.
pub(super) async fn take(
    daemon: &Arc<Daemon>,
    vm: &Arc<VmHandle>,
    kind: Kind,
    operation: &Handle,
) -> Result<Snapshot, Problem> {
    let taken = names(daemon, vm).await?;
    let (name, automatic) = match kind {
        Kind::Named(name) => (name, false),
        Kind::Nameless => (next(NAMELESS, &taken), false),
        Kind::Automatic => (next(AUTOMATIC, &taken), true),
    };
    check_free(&taken, vm, &name)?;
    let dir = saved::unfinished_dir(daemon, &format!("snapshot-{}", vm.id));
    let making = Making { daemon, vm, operation, dir: &dir };
    let made = making.make(name, automatic).await;
    match &made {
        Ok(snapshot) => tell(daemon, EventType::SnapshotMade, vm, &snapshot.name),
        Err(_) => saved::discard(daemon, dir).await,
    }
    made
}

struct Making<'a> {
    daemon: &'a Arc<Daemon>,
    vm: &'a Arc<VmHandle>,
    operation: &'a Handle,
    dir: &'a Path,
}

impl Making<'_> {
    async fn make(&self, name: String, automatic: bool) -> Result<Snapshot, Problem> {
        let dir = self.dir.to_owned();
        blocking(move || {
            files::create_private_dir(&dir)
                .map_err(|error| failed("cannot make a directory for the snapshot", &error))
        })
        .await?;
        let vm = self.vm.snapshot();
        check_state(&vm)?;
        let settings = self.vm.row().settings();
        let memory = match vm.status.state.is_live() {
            true => Some(self.capture(&vm).await?),
            false => {
                self.copy_disks(&vm).await?;
                None
            }
        };
        self.operation.check_cancelled()?;
        let running = vm.status.resources.filter(|_| memory.is_some());
        let settings = SavedSettings::of(&settings, running);
        let spec = &settings.spec;
        let snapshot = Snapshot {
            name,
            vm: vm.name.clone(),
            vm_id: vm.id.clone(),
            created_at_ms: clock::now_ms(),
            automatic,
            memory,
            image: spec.image.clone(),
            image_digest: settings.image_digest.clone(),
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            disk_bytes: settings.disk_bytes,
            work_disk_bytes: spec.work_disk_bytes,
            allocated_bytes: 0,
        };
        self.seal_and_publish(Record { snapshot, settings }).await
    }

    /// Has the guest saved with its disks. It goes on, if it ran.
    async fn capture(&self, vm: &Vm) -> Result<SavedMemory, Problem> {
        let message = format!("saving {}", vm.name);
        self.operation.progress(Progress::stage(step::SNAPSHOT_CAPTURE.name(), message));
        self.daemon.gate.pass(step::SNAPSHOT_CAPTURE).await?;
        let SavedVm { captured, machine } = capture(self.daemon, self.vm, self.dir).await?;
        let unknown = || Problem::new(ErrorCode::Internal, "nobody knows what runs the VM");
        Ok(SavedMemory {
            engine: vm.status.engine.clone().ok_or_else(unknown)?,
            cpu: self.daemon.host.machine.cpu(),
            machine,
            paused_ms: captured.paused_ms,
        })
    }

    /// Copies the disks of a VM that does not run, and makes sure that it did not in between.
    async fn copy_disks(&self, vm: &Vm) -> Result<(), Problem> {
        let message = format!("copying the disks of {}", vm.name);
        self.operation.progress(Progress::stage(step::SNAPSHOT_DISKS.name(), message));
        self.daemon.gate.pass(step::SNAPSHOT_DISKS).await?;
        let lent = self.vm.lend_root().await?;
        let (from, to) = (self.daemon.vm_dir(&self.vm.id), self.dir.to_owned());
        let work = vm.spec.work_disk_bytes.is_some();
        lengthy(move || {
            copy_disks(&from, &to, work)
                .map_err(|error| failed("cannot copy the VM's disks", &error))
        })
        .await?;
        drop(lent);
        if self.vm.snapshot().status == vm.status {
            return Ok(());
        }
        let name = &vm.name;
        Err(Problem::new(ErrorCode::VmWrongState, format!("no snapshot was made of VM {name}"))
            .cause("it was started while its disks were copied")
            .hint("try again"))
    }

    async fn seal_and_publish(&self, mut record: Record) -> Result<Snapshot, Problem> {
        let message = "making it durable";
        self.operation.progress(Progress::stage(step::SNAPSHOT_SEAL.name(), message));
        self.daemon.gate.pass(step::SNAPSHOT_SEAL).await?;
        let dir = self.dir.to_owned();
        let snapshot = lengthy(move || {
            let mut seal = || -> io::Result<Snapshot> {
                saved::keep_only(&dir, &FILES)?;
                record.snapshot.allocated_bytes = files::allocated_bytes(&dir)?;
                let there: Vec<_> =
                    FILES.into_iter().filter(|name| dir.join(name).exists()).collect();
                let sealed = Manifest::seal(&dir, MANIFEST, &there, record.clone())?;
                Ok(sealed.what.snapshot)
            };
            seal().map_err(|error| failed("the snapshot cannot be made durable", &error))
        })
        .await?;
        self.daemon.gate.pass(step::SNAPSHOT_PUBLISH).await?;
        // From then on the snapshot keeps its image; until now the VM had to.
        let in_use = self.daemon.artifacts_in_use.read().await;
        self.check_image(&snapshot).await?;
        let shelf = snapshots_dir(self.daemon, &self.vm.id);
        let (from, to) = (self.dir.to_owned(), shelf.join(&snapshot.name));
        blocking(move || {
            ensure_shelf(&shelf)
                .and_then(|()| saved::publish(&from, &to))
                .map_err(|error| failed("the snapshot cannot be kept", &error))
        })
        .await?;
        drop(in_use);
        Ok(snapshot)
    }

    async fn check_image(&self, snapshot: &Snapshot) -> Result<(), Problem> {
        let (artifacts, digest) =
            (self.daemon.host.artifacts.clone(), snapshot.image_digest.clone());
        let found = blocking(move || artifacts.find_image(&digest)).await?;
        let gone = || {
            let title = format!("no snapshot was made of VM {}", snapshot.vm);
            Problem::new(ErrorCode::VmWrongState, title)
                .cause("it was given another image, and its own was removed")
                .hint("try again")
        };
        found.map(drop).ok_or_else(gone)
    }
}

/// Makes the directory of a VM's snapshots, durably; but not that of the VM, which may be gone.
fn ensure_shelf(shelf: &Path) -> io::Result<()> {
    match std::fs::create_dir(shelf) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => shelf.parent().map_or(Ok(()), files::sync_dir),
    }
}

/// Copies the disks of a VM; a work disk is there only when it was started with it.
fn copy_disks(from: &Path, to: &Path, work: bool) -> io::Result<()> {
    sparse::copy(&from.join(COW_FILE), &to.join(COW_FILE))?;
    if !work {
        return Ok(());
    }
    match sparse::copy(&from.join(WORK_FILE), &to.join(WORK_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        copied => copied.map(drop),
    }
}

/// The names of a VM's snapshots.
async fn names(daemon: &Arc<Daemon>, vm: &Arc<VmHandle>) -> Result<BTreeSet<String>, Problem> {
    let shelf = snapshots_dir(daemon, &vm.id);
    blocking(move || {
        // Also of those that nobody can read any more.
        let found = directories(&shelf);
        let found = found.map_err(|error| failed("cannot list the snapshots", &error))?;
        let name = |dir: PathBuf| Some(dir.file_name()?.to_str()?.to_owned());
        Ok(found.into_iter().filter_map(name).collect())
    })
    .await
}

/// The first name of that kind after all that there are.
fn next(prefix: &str, taken: &BTreeSet<String>) -> String {
    let numbers = taken.iter().filter_map(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
    format!("{prefix}{}", numbers.max().unwrap_or(0).saturating_add(1))
}

fn check_name(name: &str) -> Result<(), Problem> {
    name::validate(name).map_err(|error| {
        let problem = Problem::new(ErrorCode::InvalidArgument, error.to_string());
        match name::mend(name) {
            Some(mended) => problem.hint(format!("call it {mended}")),
            None => problem,
        }
    })?;
    match name.starts_with(AUTOMATIC) {
        true => Err(Problem::new(
            ErrorCode::InvalidArgument,
            format!("names that begin with {AUTOMATIC} are those of automatic snapshots"),
        )
        .hint("choose another name")),
        false => Ok(()),
    }
}

fn check_free(taken: &BTreeSet<String>, vm: &VmHandle, name: &str) -> Result<(), Problem> {
    if !taken.contains(name) {
        return Ok(());
    }
    let title = format!("VM {} has a snapshot {name}", vm.name);
    Err(Problem::new(ErrorCode::SnapshotNameTaken, title)
        .hint(format!("banger snapshot rm {} {name}, or choose another name", vm.name)))
}

/// Whether a VM is in a state that lasts.
fn check_state(vm: &Vm) -> Result<(), Problem> {
    let (name, state) = (&vm.name, vm.status.state);
    if !matches!(state, VmState::Starting | VmState::Stopping) {
        return Ok(());
    }
    let title = format!("VM {name} is {state}, so no snapshot can be made of it now");
    let problem = Problem::new(ErrorCode::VmWrongState, title);
    Err(match state {
        VmState::Starting => {
            problem.hint(format!("banger start {name}, which waits until it runs"))
        }
        _ => problem.hint(format!("banger wait {name}")),
    })
}

/// Whether a VM is kept when it ends.
///
/// # Errors
/// `vm_wrong_state` of one that goes then, and its snapshots with it.
pub(super) fn check_stays(vm: &VmHandle) -> Result<(), Problem> {
    if !vm.row().spec.remove_on_exit {
        return Ok(());
    }
    let title = format!("VM {} has no snapshots: it goes when it ends", vm.name);
    Err(Problem::new(ErrorCode::VmWrongState, title)
        .cause("it was made with --rm")
        .hint(format!("banger fork {}, or make it without --rm", vm.name)))
}

/// All that a snapshot may take of the disk.
pub(super) async fn room_for(daemon: &Arc<Daemon>, vm: &VmHandle) -> Result<u64, Problem> {
    let dir = daemon.vm_dir(&vm.id);
    let disks = blocking(move || {
        let taken = |name| files::allocated_bytes(&dir.join(name)).unwrap_or(0);
        Ok(taken(COW_FILE) + taken(WORK_FILE))
    })
    .await?;
    let memory = match vm.state().is_live() {
        true => u64::from(vm.row().spec.memory_mib) * MIB,
        false => 0,
    };
    Ok(disks + memory)
}
