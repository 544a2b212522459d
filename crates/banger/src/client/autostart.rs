//! Reaching the daemon, and starting it when nobody has.
//!
//! Who starts it holds `start.lock`, so of two programs that find no daemon one starts it and the
//! other finds it. A socket that nobody serves is stale and does not matter: the new daemon
//! replaces it. The daemon's own lock tells a daemon that is about to serve, or about to end, from
//! none at all.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_api::{ErrorCode, Problem, step};
use banger_host::daemon::{self, DaemonProcess};
use banger_host::leftovers::state::holders_of_lock;
use banger_host::lock::{self, OfdLock};
use banger_host::paths::{ProgramsError, StateDirs};
use banger_host::process::limit_hint;
use banger_host::{fault, http};
use hyper::Method;
use tokio::net::UnixStream;

use super::connect;
use crate::failure::Failure;

/// How long a daemon may take from its start to its socket. It may have to migrate a database.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon may take from being told to stop to its end.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon that ends may live without a socket.
const LAST_MOMENTS: Duration = Duration::from_secs(2);
/// How often to look.
const INTERVAL: Duration = Duration::from_millis(5);
/// Lines of the daemon's log in an error.
const LAST_WORDS: usize = 8;

/// Where the daemon's program is. Asked only when it has to be started.
pub type Locate<'a> = &'a (dyn Fn() -> Result<PathBuf, ProgramsError> + Sync);

/// Connects to the daemon, starting it if it does not run.
///
/// # Errors
/// If it does not run and cannot be started.
pub async fn connect_or_start(dirs: &StateDirs, locate: Locate<'_>) -> Result<UnixStream, Failure> {
    match connect(dirs).await {
        Ok(stream) => return Ok(stream),
        Err(error) if is_absence(&error) => {}
        Err(error) => return Err(super::unreachable(&error)),
    }
    let deadline = Instant::now() + START_LIMIT;
    match wait_for_turn(dirs, deadline).await? {
        Turn::Ours(_starting) => start(dirs, locate, deadline).await,
        Turn::Served(stream) => Ok(stream),
    }
}

/// What waiting for the start of the daemon ends with.
enum Turn {
    /// Nobody else starts it.
    Ours(OfdLock),
    /// Somebody has.
    Served(UnixStream),
}

/// Whether the error means that no daemon serves there.
pub fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Waits for the right to start the daemon, or until it serves.
async fn wait_for_turn(dirs: &StateDirs, deadline: Instant) -> Result<Turn, Failure> {
    loop {
        let turn = OfdLock::try_acquire(&dirs.daemon_start_lock())
            .map_err(|error| refused(&dirs.runtime, "BANGER_RUNTIME_DIR", &error))?;
        if let Some(starting) = turn {
            return Ok(Turn::Ours(starting));
        }
        if let Ok(stream) = connect(dirs).await {
            return Ok(Turn::Served(stream));
        }
        if Instant::now() > deadline {
            let title = "another banger has been starting the daemon for too long";
            return Err(
                Failure::new(ErrorCode::DaemonUnavailable, title).or_hint("banger daemon logs")
            );
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Starts the daemon, and waits until it serves.
async fn start(
    dirs: &StateDirs,
    locate: Locate<'_>,
    deadline: Instant,
) -> Result<UnixStream, Failure> {
    let mut process: Option<DaemonProcess> = None;
    loop {
        match connect(dirs).await {
            Ok(stream) => return Ok(stream),
            Err(error) if is_absence(&error) => {}
            Err(error) => return Err(super::unreachable(&error)),
        }
        match &mut process {
            // A daemon that is on its way up or down holds its lock. Only when nobody does, and
            // nobody serves, is there none.
            None if !is_alive(dirs)? => {
                fault::reach(step::CLI_DAEMON)
                    .await
                    .map_err(|error| unavailable("the daemon cannot be started", &error))?;
                process = Some(spawn(dirs, locate)?);
            }
            None => refuse_if_elsewhere(dirs).await?,
            Some(started) => check_alive(started)?,
        }
        if Instant::now() > deadline {
            return Err(too_late(dirs, process.as_ref()));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn spawn(dirs: &StateDirs, locate: Locate<'_>) -> Result<DaemonProcess, Failure> {
    let binary = locate()?;
    let refused = |error: io::Error| refused(&dirs.data, "BANGER_DATA_DIR", &error);
    lock::probe(&dirs.daemon_lock()).map_err(refused)?;
    daemon::start(&binary, dirs).map_err(refused)
}

/// Why a daemon cannot live in this directory, which that variable names.
fn refused(dir: &Path, variable: &str, error: &io::Error) -> Failure {
    let dir = dir.display();
    let problem = Problem::new(ErrorCode::DaemonUnavailable, "the daemon cannot be started");
    if lock::is_unsupported(error) {
        let problem = problem.cause(format!("the file system of {dir} has no locks"));
        let hint = format!("set {variable} to a directory on a disk of this machine");
        return problem.because(error).hint(hint).into();
    }
    if let Some(hint) = limit_hint(error) {
        return problem.because(error).hint(hint).into();
    }
    let problem = problem.cause(format!("{dir} cannot be written")).because(error);
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space there, then try again".to_owned()
        }
        _ => format!("set {variable} to a directory that you may write"),
    };
    problem.hint(hint).into()
}

/// A daemon with another runtime directory serves these data, and will not come here.
async fn refuse_if_elsewhere(dirs: &StateDirs) -> Result<(), Failure> {
    match elsewhere(dirs).await {
        Some(runtime) => Err(serves_elsewhere(dirs, &runtime)),
        None => Ok(()),
    }
}

/// The runtime directory of the daemon that has the data, if it serves another one.
async fn elsewhere(dirs: &StateDirs) -> Option<PathBuf> {
    let note = lock::note(&dirs.daemon_lock()).ok()?;
    let runtime = PathBuf::from(OsString::from_vec(note));
    if !runtime.is_absolute() || runtime == dirs.runtime {
        return None;
    }
    // The note may be a former daemon's.
    let there = StateDirs { runtime, ..dirs.clone() };
    connect(&there).await.is_ok().then_some(there.runtime)
}

fn serves_elsewhere(dirs: &StateDirs, runtime: &Path) -> Failure {
    let title = format!("another daemon serves {}", dirs.data.display());
    let (theirs, ours) = (runtime.display(), dirs.runtime.display());
    Problem::new(ErrorCode::DaemonUnavailable, title)
        .cause(format!("its runtime directory is {theirs}, here it is {ours}"))
        .hint(format!(
            "BANGER_RUNTIME_DIR={theirs} banger daemon stop ends it (VMs go on running); or keep \
             that variable"
        ))
        .into()
}

/// An error with the daemon's last words if it has ended.
fn check_alive(process: &mut DaemonProcess) -> Result<(), Failure> {
    let ended =
        process.ended().map_err(|error| unavailable("the daemon cannot be watched", &error))?;
    let Some(status) = ended else { return Ok(()) };
    let words = process.last_words(LAST_WORDS);
    let mut problem = Problem::new(ErrorCode::DaemonUnavailable, "the daemon did not start")
        .cause(format!("bangerd ended with {status}"));
    problem.causes.extend(words);
    Err(problem.hint("banger daemon logs, banger doctor").into())
}

fn too_late(dirs: &StateDirs, process: Option<&DaemonProcess>) -> Failure {
    let Some(started) = process else { return silent(dirs) };
    let limit = START_LIMIT.as_secs();
    let title = format!("the daemon was started and does not serve after {limit} seconds");
    let mut problem = Problem::new(ErrorCode::DaemonUnavailable, title);
    problem.causes.extend(started.last_words(LAST_WORDS));
    problem.hint("banger daemon logs").into()
}

/// It holds its lock, so it lives, and its socket is gone or dead, so it cannot be asked to end.
fn silent(dirs: &StateDirs) -> Failure {
    let title = "a daemon runs that does not serve its socket";
    let socket = dirs.api_socket();
    Problem::new(ErrorCode::DaemonUnavailable, title)
        .cause(format!(
            "nobody listens on {}; it may have been started with another runtime directory \
             (XDG_RUNTIME_DIR, BANGER_RUNTIME_DIR)",
            socket.display()
        ))
        .hint(format!("{}, then try again; VMs go on running", ending(dirs)))
        .into()
}

/// The command that ends the daemon which holds the lock.
pub fn ending(dirs: &StateDirs) -> String {
    let holders = holders_of_lock(&dirs.daemon_lock());
    match holders.first() {
        Some(holder) => format!("kill {}", holder.pid),
        None => {
            "end the daemon, whose process is another user's or in another container".to_owned()
        }
    }
}

pub fn is_alive(dirs: &StateDirs) -> Result<bool, Failure> {
    match lock::is_locked(&dirs.daemon_lock()) {
        Ok(locked) => Ok(locked),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(unavailable("cannot tell whether a daemon runs", &error)),
    }
}

fn unavailable(title: &str, error: &io::Error) -> Failure {
    Problem::new(ErrorCode::DaemonUnavailable, title).because(error).into()
}

/// What came of [`stop_daemon`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It ran and has ended.
    Now,
    /// It did not run.
    Already,
}

/// Stops the daemon, of whatever release, and waits for its end. VMs go on.
///
/// # Errors
/// If it does not end, or cannot be asked.
pub async fn stop_daemon(dirs: &StateDirs) -> Result<Stopped, Failure> {
    let Some(stream) = connect_or_end(dirs).await? else { return Ok(Stopped::Already) };
    match http::json::<(), _, _>(stream, Method::POST, "/v1/daemon/stop", None::<&()>).await {
        // It may have been ending already; whether it ends is seen below.
        Err(error) if !super::is_broken_off(&error) => return Err(error.into()),
        _ => {}
    }
    let deadline = Instant::now() + STOP_LIMIT;
    while is_alive(dirs)? {
        if Instant::now() > deadline {
            let limit = STOP_LIMIT.as_secs();
            let title = format!("the daemon was told to stop and still runs after {limit} seconds");
            return Err(
                Failure::new(ErrorCode::DaemonUnavailable, title).or_hint("banger daemon logs")
            );
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(Stopped::Now)
}

/// Connects to the daemon; None if it does not run, or ends while it is tried.
async fn connect_or_end(dirs: &StateDirs) -> Result<Option<UnixStream>, Failure> {
    let deadline = Instant::now() + LAST_MOMENTS;
    loop {
        // In this order: a daemon lets go of its lock after its socket.
        let alive = is_alive(dirs)?;
        match connect(dirs).await {
            Ok(stream) => return Ok(Some(stream)),
            Err(_) if !alive => return Ok(None),
            Err(_) => refuse_if_elsewhere(dirs).await?,
        }
        if Instant::now() > deadline {
            return Err(silent(dirs));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests;
