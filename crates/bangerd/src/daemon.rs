//! The daemon as its parts share it: the state directories, the database, the machine, and one
//! handle per VM.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use banger_api::vm::Vm;
use banger_api::{ErrorCode, Problem};
use banger_core::filter::Filter;
use banger_core::id::{Id, ResolveError, resolve};
use banger_core::suggest;
use banger_host::config::Config;
use banger_host::paths::StateDirs;
use banger_host::process::limit_hint;
use tokio::sync::{Notify, RwLock, oneshot};

use crate::events::Events;
use crate::gate::Gate;
use crate::host::Host;
use crate::operations::{Operations, Shared};
use crate::pool::Pool;
use crate::store::{Store, StoreError, VmRow};
use crate::templates::Templates;
use crate::uploads::Uploads;
use crate::vm::{Phase, VmHandle};

/// What a daemon is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where its state is.
    pub dirs: StateDirs,
    /// The user's settings.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// The machine.
    pub host: Host,
    /// Lets steps through.
    pub gate: Gate,
}

/// The daemon.
#[derive(Debug)]
pub struct Daemon {
    /// Where its state is.
    pub dirs: StateDirs,
    /// The user's settings.
    pub config: Config,
    /// The machine.
    pub host: Host,
    /// Lets steps through.
    pub gate: Gate,
    /// Long work.
    pub operations: Operations,
    /// Work on images and kernels that several operations wait for.
    pub jobs: Shared,
    /// Files that were sent and wait to be used.
    pub uploads: Uploads,
    /// What happens, for whoever listens.
    pub events: Arc<Events>,
    /// What is known of templates beside what is on the disk.
    pub templates: Templates,
    /// Guests that stand ready.
    pub pool: Pool,
    /// Told when some VM may expire sooner than was known: a new one, or one that was changed.
    pub expiries: Notify,
    /// Shared by whoever finds an image and a kernel and then writes the row that uses them, until a
    /// new VM has its task; held alone by whoever finds them unused and then removes them.
    pub artifacts_in_use: RwLock<()>,
    store: Arc<Store>,
    vms: Mutex<BTreeMap<Id, Arc<VmHandle>>>,
    reserved_names: Mutex<BTreeSet<String>>,
}

impl Daemon {
    /// A daemon without VMs; see [`crate::reconcile`].
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            dirs: parts.dirs,
            pool: Pool::new(parts.config.pool),
            config: parts.config,
            host: parts.host,
            gate: parts.gate,
            operations: Operations::default(),
            jobs: Shared::default(),
            uploads: Uploads::default(),
            events: Arc::default(),
            templates: Templates::default(),
            expiries: Notify::new(),
            artifacts_in_use: RwLock::new(()),
            store: Arc::new(parts.store),
            vms: Mutex::default(),
            reserved_names: Mutex::default(),
        })
    }

    /// The VM that a person means: a name, an id or the unique beginning of one.
    ///
    /// # Errors
    /// `vm_not_found` with the nearest name, or `vm_ambiguous`.
    pub fn find(&self, wanted: &str) -> Result<Arc<VmHandle>, Problem> {
        let vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        let among = |hidden: bool| {
            let candidates = vms.values().filter(move |vm| vm.is_hidden() == hidden);
            resolve(wanted, candidates.map(|vm| (&vm.id, vm.name.as_str())))
        };
        // One that is being removed can still be waited for, if no other is meant.
        match among(false).or_else(|error| among(true).map_err(|_| error)) {
            Ok(id) => Ok(Arc::clone(&vms[id])),
            Err(error) => Err(not_resolved(error, vms.values().map(|vm| vm.name.as_str()))),
        }
    }

    /// The VM with exactly that id.
    #[must_use]
    pub fn get(&self, id: &Id) -> Option<Arc<VmHandle>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Every VM that passes the filter, oldest first. Those being removed are not shown.
    #[must_use]
    pub fn list(&self, filter: &Filter) -> Vec<Vm> {
        let mut vms: Vec<Vm> = self
            .handles()
            .iter()
            .filter(|vm| !vm.is_hidden())
            .map(|vm| vm.snapshot())
            .filter(|vm| filter.matches(vm))
            .collect();
        vms.sort_by(|a, b| (a.created_at_ms, &a.name).cmp(&(b.created_at_ms, &b.name)));
        vms
    }

    /// The handles of all VMs, those being removed included.
    #[must_use]
    pub fn handles(&self) -> Vec<Arc<VmHandle>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Gives a VM its task.
    pub fn add(self: &Arc<Self>, row: VmRow, phase: Phase) -> Arc<VmHandle> {
        let handle = VmHandle::spawn(self, row, phase);
        self.vms
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(handle.id.clone(), Arc::clone(&handle));
        self.expiries.notify_one();
        handle
    }

    /// Forgets a VM that is no more.
    pub fn forget(&self, id: &Id) {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Keeps a name from being used twice while its VM is being made.
    ///
    /// # Errors
    /// `vm_name_taken`.
    pub fn reserve_name(self: &Arc<Self>, name: &str) -> Result<NameReservation, Problem> {
        let taken = || Problem::from(StoreError::NameTaken(name.to_owned()));
        if self.handles().iter().any(|vm| !vm.is_hidden() && vm.name == name) {
            return Err(taken());
        }
        let mut reserved = self.reserved_names.lock().unwrap_or_else(PoisonError::into_inner);
        if reserved.insert(name.to_owned()) {
            Ok(NameReservation { daemon: Arc::clone(self), name: name.to_owned() })
        } else {
            Err(taken())
        }
    }

    /// The directory of a VM.
    #[must_use]
    pub fn vm_dir(&self, id: &Id) -> PathBuf {
        self.dirs.vm(id.as_str())
    }

    /// Asks the database, on a thread that may block.
    ///
    /// # Errors
    /// Those of the question.
    pub async fn store<T, F>(&self, ask: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    {
        let store = Arc::clone(&self.store);
        blocking(move || ask(&store).map_err(Problem::from)).await
    }
}

/// Does something that blocks, on a thread that may. It is short: there are few such threads, and
/// everything else of the daemon waits for them.
///
/// # Errors
/// Those of `work`; `internal` if it panicked.
pub async fn blocking<T, F>(work: F) -> Result<T, Problem>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Problem> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => {
            Err(Problem::new(ErrorCode::Internal, "a part of the daemon broke off").because(&error))
        }
    }
}

/// Does something that blocks for minutes, or for as long as others like, on a thread of its own.
///
/// # Errors
/// Those of `work`; `internal` if it broke off, or there can be no more threads.
pub async fn lengthy<T, F>(work: F) -> Result<T, Problem>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Problem> + Send + 'static,
{
    let (tell, told) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let thread = std::thread::Builder::new().name("lengthy".to_owned());
    let begun = thread.spawn(move || {
        let _context = runtime.enter();
        // Whoever asked may have gone.
        let _ = tell.send(work());
    });
    begun.map_err(|error| failed("the daemon cannot start a thread", &error))?;
    told.await.unwrap_or_else(|error| {
        Err(Problem::new(ErrorCode::Internal, "a part of the daemon broke off").because(&error))
    })
}

/// A failure of the file system or the kernel in something the daemon does itself.
pub fn failed(doing: impl Into<String>, error: &std::io::Error) -> Problem {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            ErrorCode::HostDiskFull
        }
        std::io::ErrorKind::PermissionDenied => ErrorCode::HostNotPermitted,
        _ => ErrorCode::Internal,
    };
    let problem = Problem::new(code, doing).because(error);
    match code {
        ErrorCode::HostDiskFull => problem.hint("banger system df"),
        ErrorCode::HostNotPermitted => problem.hint("banger doctor"),
        _ => match limit_hint(error) {
            Some(hint) => problem.hint(format!("{hint}, then banger daemon stop")),
            None => problem,
        },
    }
}

fn not_resolved<'a>(error: ResolveError, names: impl Iterator<Item = &'a str>) -> Problem {
    let text = error.to_string();
    match error {
        ResolveError::NotFound { wanted } => {
            let problem = Problem::new(ErrorCode::VmNotFound, text);
            match suggest::nearest(&wanted, names) {
                Some(near) => problem.hint(format!("did you mean {near}? See: banger ls")),
                None => problem.hint("banger ls"),
            }
        }
        ResolveError::Ambiguous { names, .. } => Problem::new(ErrorCode::VmAmbiguous, text)
            .cause(format!("they are {}", names.join(", ")))
            .hint("banger ls"),
    }
}

/// A name that is kept free for a VM that is being made.
#[derive(Debug)]
pub struct NameReservation {
    daemon: Arc<Daemon>,
    name: String,
}

impl Drop for NameReservation {
    fn drop(&mut self) {
        self.daemon
            .reserved_names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.name);
    }
}
