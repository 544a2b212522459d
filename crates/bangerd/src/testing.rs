//! A state directory and a simulated machine for tests. Both outlive the daemons that serve them.

use std::sync::Arc;
use std::time::Duration;

use banger_api::Problem;
use banger_api::image::{PullPolicy, RegistryAccess};
use banger_api::operation::{Operation, OperationEvent, OperationResult};
use banger_api::vm::{CreateVm, StartVm, Vm};
use banger_core::filter::Filter;
use banger_host::config::Config;
use banger_host::paths::StateDirs;

use crate::daemon::{Daemon, Parts};
use crate::gate::Gate;
use crate::host::simulated::Simulation;
use crate::reconcile::reconcile;
use crate::store::tests_support::{any_row, any_spec};
use crate::store::{Store, VmRow};
use crate::vm::create::Creation;
use crate::{pool, templates};

/// How long a test waits for what must happen: longer than two guests that never answer, one for a
/// template and one for the VM.
pub const PATIENCE: Duration = Duration::from_secs(400);

/// What is left when a daemon ends.
#[derive(Debug)]
pub struct World {
    pub dirs: StateDirs,
    pub machine: Arc<Simulation>,
    pub config: Config,
    _dir: tempfile::TempDir,
}

impl World {
    /// An empty state directory on a machine that has image and kernel.
    pub fn new() -> Self {
        Self::at(tempfile::tempdir().expect("temporary directory"))
    }

    /// The same where nothing waits for a disk, if there is such a place.
    pub fn in_memory() -> Self {
        Self::at(
            tempfile::tempdir_in("/dev/shm")
                .unwrap_or_else(|_| tempfile::tempdir().expect("temporary directory")),
        )
    }

    fn at(dir: tempfile::TempDir) -> Self {
        let at = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).expect("create");
            path
        };
        let dirs = StateDirs { data: at("data"), runtime: at("runtime"), config: at("config") };
        let machine = Arc::new(Simulation::default());
        machine.add_artifacts();
        // Templates have tests of their own; elsewhere a start is one shim.
        let mut config = Config::default();
        config.templates.enabled = false;
        Self { dirs, machine, config, _dir: dir }
    }

    /// The same with VMs that begin from templates.
    pub fn with_templates(mut self) -> Self {
        self.config.templates.enabled = true;
        self
    }

    /// The same with so many guests that stand ready.
    pub fn with_pool(mut self, size: u64) -> Self {
        self.config.pool.size = size;
        self.with_templates()
    }

    /// A daemon that has just started here.
    pub async fn daemon(&self) -> Arc<Daemon> {
        self.daemon_with(Gate::default()).await
    }

    pub async fn daemon_with(&self, gate: Gate) -> Arc<Daemon> {
        self.try_daemon_with(gate).await.expect("reconcile")
    }

    /// The same, or why it does not start.
    pub async fn try_daemon_with(&self, gate: Gate) -> Result<Arc<Daemon>, Problem> {
        let daemon = Daemon::new(Parts {
            dirs: self.dirs.clone(),
            config: self.config.clone(),
            store: Store::open(&self.dirs.database()).expect("open the database"),
            host: self.machine.host(),
            gate,
        });
        reconcile(&daemon).await?;
        let unfinished = templates::set_aside_unfinished(&daemon).await?;
        tokio::spawn(templates::clear_up(Arc::clone(&daemon), unfinished));
        tokio::spawn(pool::keep(Arc::clone(&daemon)));
        Ok(daemon)
    }

    /// Puts VMs that never ran into the database.
    pub fn add_rows(&self, count: u32) {
        let store = Store::open(&self.dirs.database()).expect("open the database");
        for number in 0..count {
            let id = format!("{number:012x}");
            let row = any_row(&id, &format!("vm-{number}"));
            store.insert(&VmRow { unfinished: false, ..row }).expect("insert");
        }
    }

    /// Whether no VM has left anything: no process, no directory.
    pub fn is_clean(&self) -> bool {
        let entries = std::fs::read_dir(self.dirs.vms());
        let directories = entries.map_or(0, Iterator::count);
        let templates = std::fs::read_dir(self.dirs.templates()).into_iter().flatten().flatten();
        let mut names = templates.map(|entry| entry.file_name());
        let is_half_made = names.any(|name| name.to_string_lossy().starts_with("tmp-"));
        directories == 0 && self.machine.alive() == 0 && !is_half_made
    }
}

/// A request to make, and perhaps start, a VM.
pub fn request(name: &str, start: bool) -> CreateVm {
    CreateVm {
        name: Some(name.to_owned()),
        spec: any_spec(),
        start: start.then(StartVm::default),
        main: false,
        pull: PullPolicy::Missing,
        registry: RegistryAccess::default(),
    }
}

/// Begins to make a VM.
pub async fn begin(daemon: &Arc<Daemon>, request: CreateVm) -> Result<Operation, Problem> {
    let creation = Creation::check(daemon, request).await?;
    Ok(daemon.operations.start(creation.description(), |handle| creation.run(handle)))
}

/// Makes a VM, and starts it if the request says so.
pub async fn make(daemon: &Arc<Daemon>, request: CreateVm) -> Result<Vm, Problem> {
    let operation = begin(daemon, request).await?;
    match outcome(daemon, &operation).await? {
        OperationResult::Vm(vm) => Ok(*vm),
        other => panic!("a VM was made and the result is {other:?}"),
    }
}

/// Waits for the end of an operation.
pub async fn outcome(
    daemon: &Arc<Daemon>,
    operation: &Operation,
) -> Result<OperationResult, Problem> {
    let mut events = daemon.operations.subscribe(&operation.id, false).expect("known");
    let end = async {
        while let Some(event) = events.next().await {
            match event {
                OperationEvent::Succeeded { result } => return Ok(result),
                OperationEvent::Failed { problem } => return Err(problem),
                _ => {}
            }
        }
        panic!("an operation ended without an end")
    };
    tokio::time::timeout(PATIENCE, end).await.expect("the operation ends")
}

/// Every VM that people see.
pub fn list(daemon: &Daemon) -> Vec<Vm> {
    daemon.list(&Filter::default())
}

/// Waits until something holds.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    assert!(holds_within(PATIENCE, holds).await, "{what} did not come about");
}

/// Waits until something holds, and says whether it ever did.
pub async fn holds_within(patience: Duration, holds: impl Fn() -> bool) -> bool {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(patience, wait).await.is_ok()
}
