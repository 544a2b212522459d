//! Forking a VM: its shim saves it while it runs, and copies go on from there.
//!
//! What is saved lies beside the templates, under the name of one that is being made, so the next daemon
//! removes what this one leaves. It goes as soon as the copies run: they have the memory open, and disks of
//! their own.

use std::path::Path;
use std::sync::Arc;

use banger_api::fork::{ForkVm, Forked, MAX_COPIES};
use banger_api::operation::{OperationResult, Progress};
use banger_api::shim::{COW_FILE, Captured, WORK_FILE, Was};
use banger_api::step;
use banger_api::vm::{EngineInUse, StartVm, Vm, VmState};
use banger_api::{ErrorCode, Problem};
use banger_core::id::Id;
use banger_core::lifecycle::Desired;
use banger_core::size::MIB;
use banger_core::spec;
use banger_host::{clock, files, random, sparse};
use futures_util::{StreamExt, stream};

use super::create::{appear, choose_name, insert, undo, with_last_words};
use super::{Outcome, Saved, VmHandle, capture};
use crate::daemon::{Daemon, NameReservation, blocking, failed};
use crate::operations::Handle;
use crate::store::VmRow;
use crate::{artifacts, saved};

/// How many copies come up at the same time.
const AT_ONCE: usize = 4;

/// A fork that may be made: the names of the copies are kept for them.
#[derive(Debug)]
pub struct Fork {
    daemon: Arc<Daemon>,
    source: Arc<VmHandle>,
    row: Arc<VmRow>,
    request: ForkVm,
    names: Vec<(String, NameReservation)>,
}

impl Fork {
    /// Checks everything about a request that can be told at once.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn check(
        daemon: &Arc<Daemon>,
        source: Arc<VmHandle>,
        request: ForkVm,
    ) -> Result<Self, Problem> {
        spec::check_environment(&request.session_env)?;
        let row = source.row();
        let (host, choice) = (daemon.host.clone(), row.spec.engine);
        let engine = blocking(move || host.machine.engine(choice)).await?.in_use();
        may_fork(&source.snapshot(), &engine)?;
        artifacts::check_space_for(daemon, u64::from(row.spec.memory_mib) * MIB).await?;
        let names = copy_names(&request)?;
        let names = names.into_iter().map(|name| choose_name(daemon, name.as_deref()));
        let names = names.collect::<Result<_, _>>()?;
        Ok(Self { daemon: Arc::clone(daemon), source, row, request, names })
    }

    /// What is done, for people.
    #[must_use]
    pub fn description(&self) -> String {
        format!("fork vm {}", self.source.name)
    }

    /// Makes the copies. Leaves none if one fails; the VM that they are copies of goes on in any case.
    ///
    /// # Errors
    /// Of the first step that fails.
    pub async fn run(self, operation: Handle) -> Result<OperationResult, Problem> {
        let dir = saved::unfinished_dir(&self.daemon, &format!("fork-{}", self.source.id));
        let forked = self.capture_and_copy(&dir, &operation).await;
        saved::discard(&self.daemon, dir).await;
        forked.map(|forked| OperationResult::Forked(Box::new(forked)))
    }

    async fn capture_and_copy(&self, dir: &Path, operation: &Handle) -> Result<Forked, Problem> {
        let message = format!("saving {}", self.source.name);
        operation.progress(Progress::stage(step::FORK_CAPTURE.name(), message));
        let captured = self.capture(dir).await?;
        operation.check_cancelled()?;
        let message = match self.names.len() {
            1 => "starting the copy".to_owned(),
            many => format!("starting {many} copies"),
        };
        operation.progress(Progress::stage(step::FORK_DISKS.name(), message));
        let mut copies = Vec::with_capacity(self.names.len());
        for (name, _) in &self.names {
            copies.push(self.copy(name, dir, operation));
        }
        let copies: Vec<_> = stream::iter(copies).buffered(AT_ONCE).collect().await;
        let first_failure = copies.iter().find_map(|copy| copy.as_ref().err().cloned());
        let made: Vec<_> = copies.into_iter().flatten().collect();
        let finished = match first_failure {
            None => self.finish(&made, operation).await,
            Some(problem) => Err(problem),
        };
        if let Err(problem) = finished {
            for vm in made {
                undo(&self.daemon, (*vm.row()).clone()).await;
            }
            return Err(problem);
        }
        let vms = made.iter().map(|vm| vm.snapshot()).collect();
        Ok(Forked { vms, paused_ms: captured.paused_ms, capture_ms: captured.took_ms })
    }

    /// Writes down that the copies are made: all of them stay, or none.
    async fn finish(&self, made: &[Arc<VmHandle>], operation: &Handle) -> Result<(), Problem> {
        operation.check_cancelled()?;
        self.daemon.gate.pass(step::CREATE_FINISH).await?;
        let ids: Vec<Id> = made.iter().map(|vm| vm.id.clone()).collect();
        self.daemon.store(move |store| store.finish_creations(&ids)).await
    }

    /// Has the VM saved. Not cut off by a cancel: it stands still for a part of it.
    async fn capture(&self, dir: &Path) -> Result<Captured, Problem> {
        self.daemon.gate.pass(step::FORK_CAPTURE).await?;
        let place = dir.to_owned();
        blocking(move || {
            files::create_private_dir(&place)
                .map_err(|error| failed("cannot make a directory for the saved VM", &error))
        })
        .await?;
        Ok(capture(&self.daemon, &self.source, dir).await?.captured)
    }

    /// One copy. Leaves nothing of it if that fails.
    async fn copy(
        &self,
        name: &str,
        dir: &Path,
        operation: &Handle,
    ) -> Result<Arc<VmHandle>, Problem> {
        let row = self.copy_row(name);
        let in_use = self.daemon.artifacts_in_use.read().await;
        insert(&self.daemon, &row).await?;
        let copied = match self.copy_disks(&row, dir).await {
            Ok(()) => {
                let vm = appear(&self.daemon, row.clone());
                drop(in_use);
                self.start(vm, dir, operation).await
            }
            Err(problem) => Err(problem),
        };
        match copied {
            Ok(vm) => Ok(vm),
            Err(problem) => {
                let problem = with_last_words(&self.daemon, problem, &row).await;
                undo(&self.daemon, row).await;
                Err(problem)
            }
        }
    }

    fn copy_row(&self, name: &str) -> VmRow {
        let mut spec = self.row.spec.clone();
        if !self.request.keep_env {
            spec.env.clear();
        }
        let created_at_ms = clock::now_ms();
        VmRow {
            id: Id::from_bytes(random::bytes()),
            name: name.to_owned(),
            machine_id: random::hex::<16>(),
            created_at_ms,
            expires_at_ms: spec.ttl_ms.map(|ttl| created_at_ms.saturating_add(ttl)),
            desired: Desired::Stopped,
            unfinished: true,
            deleting: false,
            last: None,
            spec,
            ..(*self.row).clone()
        }
    }

    async fn copy_disks(&self, row: &VmRow, saved: &Path) -> Result<(), Problem> {
        self.daemon.gate.pass(step::FORK_DISKS).await?;
        let (from, to) = (saved.to_owned(), self.daemon.vm_dir(&row.id));
        let (work, durable) = (row.spec.work_disk_bytes.is_some(), !row.spec.remove_on_exit);
        blocking(move || {
            copy_disks(&from, &to, work, durable)
                .map_err(|error| failed("cannot copy the VM's disks", &error))
        })
        .await
    }

    async fn start(
        &self,
        vm: Arc<VmHandle>,
        saved: &Path,
        operation: &Handle,
    ) -> Result<Arc<VmHandle>, Problem> {
        let session_env = self.request.session_env.clone();
        let start = StartVm { session_env, ..StartVm::default() };
        match vm.go_on(start, Saved { dir: saved.to_owned(), was: Was::Another }).await? {
            Outcome::Accepted(work) => work.follow(operation).await?,
            Outcome::AlreadySo => vm.started().await?,
        }
        Ok(vm)
    }
}

/// Whether a VM can be saved now, and go on by that engine.
fn may_fork(vm: &Vm, engine: &EngineInUse) -> Result<(), Problem> {
    let name = &vm.name;
    let wrong = |title: String| Problem::new(ErrorCode::VmWrongState, title);
    if !matches!(vm.status.state, VmState::Running | VmState::Paused) {
        return Err(wrong(format!(
            "VM {name} is {}, and only a running VM can be forked",
            vm.status.state
        ))
        .hint(format!("banger start {name}")));
    }
    if let Some(change) = vm.pending.first() {
        return Err(wrong(format!("VM {name} is not yet what it is set to be"))
            .cause(format!("its {} changes when it starts again", change.setting))
            .hint(format!("banger restart {name}")));
    }
    match &vm.status.engine {
        Some(its) if its != engine => Err(wrong(format!("VM {name} cannot be copied"))
            .cause(format!(
                "it runs by {} {} and a copy would by {} {}",
                its.name, its.version, engine.name, engine.version
            ))
            .hint(format!("banger restart {name}"))),
        _ => Ok(()),
    }
}

/// The wanted names of the copies; None for those that are generated.
fn copy_names(request: &ForkVm) -> Result<Vec<Option<String>>, Problem> {
    if !(1..=MAX_COPIES).contains(&request.count) {
        let title = format!("{} copies at once are none, or too many", request.count);
        return Err(Problem::new(ErrorCode::InvalidArgument, title)
            .hint(format!("from 1 to {MAX_COPIES} copies can be made at once")));
    }
    Ok(match (&request.name, request.count) {
        (None, count) => vec![None; usize::try_from(count).unwrap_or_default()],
        (Some(name), 1) => vec![Some(name.clone())],
        (Some(name), count) => (1..=count).map(|n| Some(format!("{name}-{n}"))).collect(),
    })
}

/// Gives a copy its directory and its disks.
fn copy_disks(from: &Path, to: &Path, work: bool, durable: bool) -> std::io::Result<()> {
    files::create_private_dir(to)?;
    for name in [Some(COW_FILE), work.then_some(WORK_FILE)].into_iter().flatten() {
        let disk = sparse::copy(&from.join(name), &to.join(name))?;
        if durable {
            disk.sync_all()?;
        }
    }
    if durable { files::sync_dir(to) } else { Ok(()) }
}
