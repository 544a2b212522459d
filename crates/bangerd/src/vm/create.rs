//! Making a VM: its image and kernel, its row, its directory, its disk, and its first start.
//!
//! The row comes first and says that it is unfinished; the request's success clears that. Whatever
//! ends the request before, a failure, a cancel or the daemon's death, removes the VM again.

use std::sync::Arc;

use banger_api::event::EventType;
use banger_api::operation::{OperationResult, Progress};
use banger_api::shim::{CONSOLE_FILE, COW_FILE};
use banger_api::vm::{CreateVm, StartVm, VmState};
use banger_api::{ErrorCode, Problem, step, trace};
use banger_core::entrypoint::commands;
use banger_core::id::Id;
use banger_core::lifecycle::{Desired, fresh};
use banger_core::{name, spec};
use banger_host::trace::Trace;
use banger_host::{clock, cow, files, random};
use tokio::sync::RwLockReadGuard;

use super::launch::tail;
use super::phase::Start;
use super::{Outcome, Phase, Report, VmHandle, Work, remove_traces};
use crate::artifacts;
use crate::daemon::{Daemon, NameReservation, blocking, failed};
use crate::events::News;
use crate::host::{LocalImage, LocalKernel};
use crate::operations::Handle;
use crate::pool::Guest;
use crate::store::VmRow;

/// How often a generated name may be taken before the daemon gives up.
const NAME_TRIES: u32 = 100;

/// A VM that may be made: its name is kept for it.
#[derive(Debug)]
pub struct Creation {
    daemon: Arc<Daemon>,
    request: CreateVm,
    name: String,
    trace: Trace,
    _reservation: NameReservation,
}

impl Creation {
    /// Checks everything about a request that can be told at once.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn check(daemon: &Arc<Daemon>, request: CreateVm) -> Result<Self, Problem> {
        let trace = Trace::new(request.start.as_ref().is_some_and(|start| start.trace));
        let began = trace.begin();
        let host = daemon.host.clone();
        let (capacity, wanted) = {
            let wanted = request.spec.clone();
            blocking(move || Ok((host.machine.capacity(), wanted))).await?
        };
        spec::check(&wanted, &capacity)?;
        if let Some(start) = &request.start {
            spec::check_environment(&start.session_env)?;
        }
        let (name, reservation) = choose_name(daemon, request.name.as_deref())?;
        artifacts::check_known(daemon, &request).await?;
        artifacts::check_space(daemon).await?;
        trace.end(trace::DAEMON_CHECK, began);
        Ok(Self { daemon: Arc::clone(daemon), request, name, trace, _reservation: reservation })
    }

    /// What is done, for people.
    #[must_use]
    pub fn description(&self) -> String {
        let verb = if self.request.start.is_some() { "run" } else { "create" };
        format!("{verb} vm {}", self.name)
    }

    /// Makes the VM, and starts it if asked. Leaves nothing if that fails.
    ///
    /// # Errors
    /// Of the first step that fails.
    pub async fn run(self, operation: Handle) -> Result<OperationResult, Problem> {
        let began = self.trace.begin();
        let (row, ready, in_use) = self.insert_row(&operation).await?;
        self.trace.end(trace::DAEMON_ROW, began);
        let made = match self.make(row.clone(), ready, &operation).await {
            Ok((vm, started)) => {
                // Whoever removes everything finds it from here on, and need not wait for its start.
                drop(in_use);
                self.start_and_finish(vm, started, &operation).await
            }
            // What is undone is nobody else's to remove either.
            Err(problem) => Err(problem),
        };
        operation.mark(&self.trace);
        match made {
            Ok(vm) => Ok(OperationResult::Vm(Box::new(vm.snapshot()))),
            Err(problem) => {
                let problem = with_last_words(&self.daemon, problem, &row).await;
                undo(&self.daemon, row).await;
                Err(problem)
            }
        }
    }

    /// Finds or fetches image and kernel, and writes down that there shall be a VM. Until the VM has
    /// its task the lock must be held: a reset would take its directory for a stranger's.
    async fn insert_row(
        &self,
        operation: &Handle,
    ) -> Result<(VmRow, Option<Guest>, RwLockReadGuard<'_, ()>), Problem> {
        artifacts::ensure(&self.daemon, &self.request, operation).await?;
        operation.check_cancelled()?;
        let in_use = self.daemon.artifacts_in_use.read().await;
        let (image, kernel) = artifacts::find(&self.daemon, &self.request.spec).await?;
        let mut row = self.row(&image, &kernel)?;
        let ready = self.guest_for(&row);
        if let Some(guest) = &ready {
            (row.id, row.machine_id) = (guest.id.clone(), guest.machine_id.clone());
        }
        match (insert(&self.daemon, &row).await, ready) {
            (Ok(()), ready) => Ok((row, ready, in_use)),
            (Err(problem), None) => Err(problem),
            (Err(problem), Some(guest)) => {
                guest.end(&self.daemon).await?;
                Err(problem)
            }
        }
    }

    /// A guest that stands ready to be the VM, if it shall start.
    fn guest_for(&self, row: &VmRow) -> Option<Guest> {
        let start = self.request.start.as_ref()?;
        (!start.cold).then(|| self.daemon.pool.take(row))?
    }

    fn row(&self, image: &LocalImage, kernel: &LocalKernel) -> Result<VmRow, Problem> {
        let mut spec = self.request.spec.clone();
        let init = spec.init.unwrap_or(image.image.init);
        let commands = commands(&spec, &image.image.config, init, self.request.main);
        spec.init = Some(init);
        spec.entrypoint = Some(commands.entrypoint);
        spec.default_command = commands.default_command;
        spec.command = commands.main;
        let created_at_ms = clock::now_ms();
        Ok(VmRow {
            id: Id::from_bytes(random::bytes()),
            name: self.name.clone(),
            image_digest: image.image.digest.clone(),
            kernel_digest: kernel.kernel.digest.clone(),
            machine_id: random::hex::<16>(),
            disk_bytes: spec::disk_bytes(spec.disk_bytes, image.image.disk_bytes)?,
            created_at_ms,
            expires_at_ms: spec.ttl_ms.map(|ttl| created_at_ms.saturating_add(ttl)),
            disks: None,
            desired: Desired::Stopped,
            unfinished: true,
            deleting: false,
            last: None,
            spec,
        })
    }

    /// Makes the VM's files, and its task. One that has a guest already has files, too, and starts.
    async fn make(
        &self,
        row: VmRow,
        ready: Option<Guest>,
        operation: &Handle,
    ) -> Result<(Arc<VmHandle>, Option<Work>), Problem> {
        operation.progress(Progress::stage("vm.create", "creating the VM"));
        if let (Some(guest), Some(start)) = (ready, self.request.start.clone()) {
            let (vm, work) = appear_starting(&self.daemon, row, start, guest);
            return Ok((vm, Some(work)));
        }
        let began = self.trace.begin();
        self.make_files(&row).await?;
        self.trace.end(trace::DAEMON_FILES, began);
        operation.check_cancelled()?;
        Ok((appear(&self.daemon, row), None))
    }

    async fn start_and_finish(
        &self,
        vm: Arc<VmHandle>,
        started: Option<Work>,
        operation: &Handle,
    ) -> Result<Arc<VmHandle>, Problem> {
        if let Some(work) = started {
            work.follow(operation).await?;
        } else if let Some(start) = &self.request.start {
            start_first_time(&vm, start.clone(), operation).await?;
        }
        let began = self.trace.begin();
        let finished = finish(&self.daemon, vm, operation).await;
        self.trace.end(trace::DAEMON_READY, began);
        finished
    }

    async fn make_files(&self, row: &VmRow) -> Result<(), Problem> {
        let (dir, disk_bytes) = (self.daemon.vm_dir(&row.id), row.disk_bytes);
        self.daemon.gate.pass(step::CREATE_DIRECTORY).await?;
        let new = dir.clone();
        blocking(move || {
            files::create_private_dir(&new)
                .map_err(|error| failed("cannot create the VM's directory", &error))
        })
        .await?;
        self.daemon.gate.pass(step::CREATE_DISK).await?;
        blocking(move || {
            cow::create(&dir.join(COW_FILE), disk_bytes)
                .and_then(|()| files::sync_dir(&dir))
                .map_err(|error| failed("cannot create the VM's disk", &error))
        })
        .await
    }
}

/// Writes down that there shall be a VM.
///
/// # Errors
/// Of the database.
pub(super) async fn insert(daemon: &Arc<Daemon>, row: &VmRow) -> Result<(), Problem> {
    daemon.gate.pass(step::CREATE_ROW).await?;
    let row = row.clone();
    daemon.store(move |store| store.insert(&row)).await
}

/// Gives a VM whose files are there its task.
pub(super) fn appear(daemon: &Arc<Daemon>, row: VmRow) -> Arc<VmHandle> {
    let created = fresh(VmState::Created, row.created_at_ms);
    daemon.events.tell(News::vm(EventType::VmCreated, &row));
    daemon.add(row, Phase::Ended(created))
}

/// Gives a VM its task that starts with a guest that stands ready.
fn appear_starting(
    daemon: &Arc<Daemon>,
    row: VmRow,
    request: StartVm,
    guest: Guest,
) -> (Arc<VmHandle>, Work) {
    let former = fresh(VmState::Created, row.created_at_ms);
    let (report, work) = Report::new();
    daemon.events.tell(News::vm(EventType::VmCreated, &row));
    let ready = Some(Box::new(guest));
    let start = Start { request, saved: None, ready, report, former, again: false };
    (daemon.add(row, Phase::Launching(start)), work)
}

/// Writes down that the VM is made: it stays.
///
/// # Errors
/// Of the database; `cancelled`.
pub(super) async fn finish(
    daemon: &Arc<Daemon>,
    vm: Arc<VmHandle>,
    operation: &Handle,
) -> Result<Arc<VmHandle>, Problem> {
    daemon.gate.pass(step::CREATE_FINISH).await?;
    let id = vm.id.clone();
    daemon.store(move |store| store.finish_creation(&id)).await?;
    operation.check_cancelled()?;
    Ok(vm)
}

/// The same failure with what is worth knowing of a VM that goes with it: the end of its console.
/// No hint sends anybody to a VM that is no more.
pub(super) async fn with_last_words(
    daemon: &Arc<Daemon>,
    mut problem: Problem,
    row: &VmRow,
) -> Problem {
    if problem.code == ErrorCode::Cancelled {
        return problem;
    }
    let about_it = format!(" {}", row.name);
    let leads_there = |hint: &String| hint.starts_with("banger ") && hint.ends_with(&about_it);
    if problem.hint.as_ref().is_some_and(leads_there) {
        let hint = "a VM that is to be looked at: banger create, then banger start";
        problem = problem.hint(hint);
    }
    let console = daemon.vm_dir(&row.id).join(CONSOLE_FILE);
    let lines = blocking(move || Ok(tail(&console))).await.unwrap_or_default();
    match lines.is_empty() {
        true => problem,
        false => problem.cause(format!("its console ended with:\n{}", lines.join("\n"))),
    }
}

/// Removes what was made of a VM that shall not be after all.
pub(super) async fn undo(daemon: &Arc<Daemon>, row: VmRow) {
    let removed = match daemon.get(&row.id) {
        Some(vm) => match vm.remove(true).await {
            Ok(Outcome::Accepted(work)) => work.finished().await,
            // It went by itself.
            Ok(Outcome::AlreadySo) | Err(_) => Ok(()),
        },
        None => remove_traces(daemon, &row.id).await,
    };
    if let Err(problem) = removed {
        tracing::warn!(vm = %row.name, "what was made of it could not be removed: {problem}");
        if daemon.get(&row.id).is_none() {
            // Its task shows it, and tries again.
            daemon.add(row, Phase::found_to_remove());
        }
    }
}

async fn start_first_time(
    vm: &Arc<VmHandle>,
    start: StartVm,
    operation: &Handle,
) -> Result<(), Problem> {
    match vm.start(start).await? {
        Outcome::Accepted(work) => work.follow(operation).await,
        Outcome::AlreadySo => vm.started().await,
    }
}

/// A name for a VM, kept for it: the wanted one, or a generated one.
///
/// # Errors
/// `invalid_argument`; `vm_name_taken`.
pub(super) fn choose_name(
    daemon: &Arc<Daemon>,
    wanted: Option<&str>,
) -> Result<(String, NameReservation), Problem> {
    if let Some(wanted) = wanted {
        name::validate(wanted).map_err(|error| {
            let problem = Problem::new(ErrorCode::InvalidArgument, error.to_string());
            match name::mend(wanted) {
                Some(mended) => problem.hint(format!("--name {mended}")),
                None => problem,
            }
        })?;
        return Ok((wanted.to_owned(), daemon.reserve_name(wanted)?));
    }
    for _ in 0..NAME_TRIES {
        let generated = name::generate(u64::from_le_bytes(random::bytes()));
        if let Ok(reservation) = daemon.reserve_name(&generated) {
            return Ok((generated, reservation));
        }
    }
    Err(Problem::new(ErrorCode::VmNameTaken, "no generated name is free")
        .hint("choose one with --name"))
}
