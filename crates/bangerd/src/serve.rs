//! The daemon's life: lock, socket, database, VMs, requests, end.
//!
//! Only one daemon serves a state directory: it holds `daemon.lock` as long as it lives. A daemon
//! whose database or settings cannot be used serves nevertheless, and answers every request with
//! the reason, so that the person sees it where they look: in the answer to their command.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use banger_api::{Problem, step};
use banger_host::config::{Config, ConfigError};
use banger_host::lock::{self, OfdLock};
use banger_host::paths::{API_SOCKET, PathsError, StateDirs};
use banger_host::supervisor::Ends;
use banger_host::{clock, connect, fault};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::api::{self, Front};
use crate::daemon::{Daemon, Parts, failed};
use crate::events::News;
use crate::gate::Gate;
use crate::host::real;
use crate::listener::{End, OwnersOnly};
use crate::operations::Operations;
use crate::reconcile::{self, reconcile};
use crate::store::{Store, StoreError};
use crate::vm::expiry;
use crate::{pool, templates};

/// How often the state directory is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// How long operations may take to clean up when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long answers under way may take then.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// Most threads for work that blocks and is short; what is not has threads of its own.
const BLOCKING_THREADS: usize = 16;
/// How long such a thread waits for more before it goes.
const BLOCKING_IDLE: Duration = Duration::from_secs(3);

/// Why the daemon did not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The state directories cannot be used.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// Another daemon serves them.
    #[error("another daemon serves {}", .0.display())]
    AlreadyRunning(PathBuf),
    /// The file system of the data directory has no locks.
    #[error("the file system of {} has no locks", dir.display())]
    NoLocks {
        /// The data directory.
        dir: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Somebody removed the state directory.
    #[error("the state directory {} was removed", .0.display())]
    StateRemoved(PathBuf),
    /// A system call failed.
    #[error("cannot {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn no_lock(dirs: &StateDirs, source: io::Error) -> ServeError {
    if lock::is_unsupported(&source) {
        return ServeError::NoLocks { dir: dirs.data.clone(), source };
    }
    cannot("lock the state directory")(source)
}

fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Io { what, source }
}

/// Serves until somebody ends it.
///
/// # Errors
/// [`ServeError`] if it could not begin.
pub fn run() -> Result<(), ServeError> {
    let dirs = StateDirs::resolve()?;
    let lock = OfdLock::try_acquire(&dirs.daemon_lock())
        .map_err(|source| no_lock(&dirs, source))?
        .ok_or_else(|| ServeError::AlreadyRunning(dirs.data.clone()))?;
    // Whoever looks for this daemon elsewhere learns where it is. On a full disk they do not.
    if let Err(error) = lock.leave_note(dirs.runtime.as_os_str().as_encoded_bytes()) {
        tracing::warn!("cannot note the runtime directory in daemon.lock: {error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_IDLE)
        .build()
        .map_err(cannot("start the runtime"))?;
    begin_first_thread(&runtime)
        .map_err(cannot("start a thread; end other processes, or raise the limit (ulimit -u)"))?;
    runtime.spawn(keep_a_thread());
    // Held to the end of this function.
    let lock = Arc::new(lock);
    let outcome = runtime.block_on(serve(dirs.clone(), Arc::clone(&lock)));
    // A pull that does not end in time ends with the process; the next daemon clears up after it.
    runtime.shutdown_background();
    // A failure, so that a service manager starts the next one.
    match lock.is_on(&dirs.daemon_lock()) {
        Ok(false) => Err(ServeError::StateRemoved(dirs.data)),
        _ => outcome,
    }
}

/// Begins the first thread for work that blocks. tokio ends the process where the kernel refuses it
/// the first; where it refuses others, the work waits for those that there are.
fn begin_first_thread(runtime: &tokio::runtime::Runtime) -> io::Result<()> {
    let threads = || std::fs::read_dir("/proc/self/task").map(Iterator::count);
    let before = threads()?;
    let tried = std::thread::Builder::new().spawn(|| {})?;
    let _ = tried.join();
    // One that has ended counts until the kernel has forgotten it.
    let deadline = Instant::now() + BLOCKING_IDLE;
    while threads()? > before && Instant::now() < deadline {
        std::thread::yield_now();
    }
    drop(runtime.spawn_blocking(|| {}));
    Ok(())
}

/// Gives one of those threads something to do before all of them have gone.
async fn keep_a_thread() {
    let mut due = tokio::time::interval(BLOCKING_IDLE / 3);
    loop {
        due.tick().await;
        drop(tokio::task::spawn_blocking(|| {}));
    }
}

async fn serve(dirs: StateDirs, lock: Arc<OfdLock>) -> Result<(), ServeError> {
    let front = Front::new(&dirs.data, clock::now_ms());
    end_on_signals(&front.shutdown).map_err(cannot("watch for signals"))?;
    tokio::spawn(end_without_directory(lock, dirs.daemon_lock(), front.shutdown.clone()));
    let ends = real::reap_shims().map_err(cannot("adopt orphaned shims"))?;
    fault::reach(step::DAEMON_LISTEN).await.map_err(cannot("bind the socket"))?;
    let listener =
        connect::listen_async(&dirs.runtime, API_SOCKET).map_err(cannot("bind the socket"))?;
    let socket = dirs.api_socket();
    tracing::info!(data = %dirs.data.display(), socket = %socket.display(), "the daemon begins");

    let daemon = open(&dirs, ends).await;
    let router = match &daemon {
        Ok(daemon) => api::router(front.clone(), Arc::clone(daemon)),
        Err(problem) => {
            tracing::error!("{problem}");
            api::refusing_router(&front, problem.clone())
        }
    };
    // One that refuses serves too. The socket listens already; nobody waits in vain.
    if let Err(error) = banger_host::daemon::announce_ready() {
        tracing::warn!(%error, "cannot tell the service manager that the daemon serves");
    }
    let operations = daemon.as_ref().map(|daemon| daemon.operations.clone()).unwrap_or_default();
    let outcome = attend(listener, &socket, router, &front.shutdown, &operations).await;
    if let Ok(daemon) = daemon {
        // Without this they end as well, and the next daemon removes what they leave.
        let _ = tokio::time::timeout(FAREWELL, daemon.pool.close(&daemon)).await;
    }
    tracing::info!("the daemon ends");
    outcome
}

/// Opens everything, and takes up the VMs.
async fn open(dirs: &StateDirs, ends: Ends) -> Result<Arc<Daemon>, Problem> {
    fault::reach(step::DAEMON_OPEN)
        .await
        .map_err(|error| failed("the state directory cannot be opened", &error))?;
    let config = Config::load(&dirs.config)
        .map(real::with_environment)
        .map_err(|error: ConfigError| Problem::from(error))?;
    let store = Store::open(&dirs.database()).map_err(|error: StoreError| Problem::from(error))?;
    let host = real::host(dirs, ends)?;
    let daemon =
        Daemon::new(Parts { dirs: dirs.clone(), config, store, host, gate: Gate::default() });
    daemon.events.tell(News::daemon_started());
    reconcile(&daemon).await?;
    let unfinished = templates::set_aside_unfinished(&daemon).await?;
    tokio::spawn(templates::clear_up(Arc::clone(&daemon), unfinished));
    tokio::spawn(reconcile::keep_looking(Arc::clone(&daemon)));
    tokio::spawn(reconcile::clear_up(Arc::clone(&daemon)));
    tokio::spawn(expiry::watch(Arc::clone(&daemon)));
    tokio::spawn(pool::keep(Arc::clone(&daemon)));
    Ok(daemon)
}

/// Serves until the shutdown. Clients hear how their operations ended before the socket goes.
pub(crate) async fn attend(
    listener: UnixListener,
    socket: &Path,
    router: Router,
    shutdown: &CancellationToken,
    operations: &Operations,
) -> Result<(), ServeError> {
    let end = End::default();
    let serving = async {
        let outcome = listen(listener, socket, router, &end).await;
        // Whatever ended it, there is nothing more to do.
        shutdown.cancel();
        outcome
    };
    let ending = async {
        shutdown.cancelled().await;
        operations.cancel_all(FAREWELL).await;
        end.close.cancel();
    };
    let (outcome, ()) = tokio::join!(serving, ending);
    outcome
}

/// Accepts connections until the end, and gives the last answers a moment.
async fn listen(
    listener: UnixListener,
    socket: &Path,
    router: Router,
    end: &End,
) -> Result<(), ServeError> {
    let dir = socket.parent().unwrap_or(Path::new("/"));
    let guarded =
        OwnersOnly::new(listener, dir, end.clone()).map_err(cannot("look at the socket"))?;
    let ended = end.drained.clone();
    let server =
        axum::serve(guarded, router).with_graceful_shutdown(async move { ended.cancelled().await });
    tokio::select! {
        served = server.into_future() => served.map_err(cannot("serve"))?,
        () = async {
            end.close.cancelled().await;
            tokio::time::sleep(LAST_ANSWERS).await;
        } => {}
    }
    // Before the lock is let go: afterwards it may be the next daemon's.
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ServeError::Io { what: "remove the socket", source: error })
        }
        _ => Ok(()),
    }
}

/// Ends a daemon whose state directory somebody has removed: nothing that it says is true any more, and
/// it would keep the next one, with a directory of its own, from being asked.
async fn end_without_directory(lock: Arc<OfdLock>, place: PathBuf, shutdown: CancellationToken) {
    loop {
        tokio::time::sleep(LOOK).await;
        // What cannot be looked at may be there again later.
        if matches!(lock.is_on(&place), Ok(false)) {
            tracing::error!(lock = %place.display(), "the state directory is gone");
            return shutdown.cancel();
        }
    }
}

fn end_on_signals(shutdown: &CancellationToken) -> io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            signals.recv().await;
            shutdown.cancel();
        });
    }
    Ok(())
}
