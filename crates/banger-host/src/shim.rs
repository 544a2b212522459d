//! Starting a shim, and ending one that no longer answers.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt::PeerCredentials,
};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpgid, getpgrp};
use tokio::net::unix::pipe;

use banger_api::shim::{LOCK_FILE, RUN_DIR, SHIM_LOG_FILE, SHIM_SOCKET};
use banger_core::lifecycle::ShimExit;

use crate::leftovers::state::programs_with_lock;
use crate::lock::OfdLock;

/// Name of the shim's process, as the kernel has it.
const SHIM_NAME: &str = "banger-shim";

/// A shim that starts.
#[derive(Debug)]
pub struct ShimProcess {
    /// Lines of [`banger_api::shim::LaunchEvent`], ended by the shim's end or by `ready`/`failed`.
    pub events: pipe::Receiver,
}

/// Why a shim could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ShimSpawnError {
    /// Something of the VM's last run is still alive.
    #[error("processes of the VM's last run are still alive")]
    StillLocked,
    /// The kernel refused a step.
    #[error("cannot {what}")]
    Step {
        /// The step, as a verb and its object.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ShimSpawnError {
    move |source| ShimSpawnError::Step { what, source: source.into() }
}

/// Takes the VM's lock and starts its shim, which inherits the lock and keeps it by doing nothing
/// about it.
///
/// The shim is in a session of its own, and not a child of the caller: it puts itself into new
/// namespaces and becomes an orphan there. Its messages go to a new log; the last one is kept.
///
/// # Errors
/// [`ShimSpawnError`]; nothing runs then.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn spawn_shim(binary: &Path, vm_dir: &Path) -> Result<ShimProcess, ShimSpawnError> {
    spawn(binary, vm_dir, Stdio::null())
}

/// The same for a guest that stands ready until a byte comes on the pipe. When that is closed without
/// one, as by the end of this process, the shim ends.
///
/// # Errors
/// As [`spawn_shim`].
///
/// # Panics
/// As [`spawn_shim`].
pub fn spawn_waiting_shim(
    binary: &Path,
    vm_dir: &Path,
) -> Result<(ShimProcess, io::PipeWriter), ShimSpawnError> {
    let (reader, word) = io::pipe().map_err(step("create a pipe"))?;
    Ok((spawn(binary, vm_dir, reader.into())?, word))
}

fn spawn(binary: &Path, vm_dir: &Path, input: Stdio) -> Result<ShimProcess, ShimSpawnError> {
    let lock = OfdLock::try_acquire(&vm_dir.join(LOCK_FILE))
        .map_err(step("open the VM's lock"))?
        .ok_or(ShimSpawnError::StillLocked)?
        .into_fd();
    crate::files::create_private_dir(&vm_dir.join(RUN_DIR))
        .map_err(step("create the VM's run directory"))?;
    let log = vm_dir.join(SHIM_LOG_FILE);
    match std::fs::rename(&log, vm_dir.join(format!("{SHIM_LOG_FILE}.1"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(step("put the last run's log aside")(error));
        }
        _ => {}
    }
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(log)
        .map_err(step("open the shim's log"))?;
    let (events, writer) = io::pipe().map_err(step("create a pipe"))?;
    let events = pipe::Receiver::from_owned_fd(events.into()).map_err(step("watch a pipe"))?;
    start(binary, vm_dir, &lock, [input, writer.into(), log.into()])?;
    Ok(ShimProcess { events })
}

#[expect(clippy::disallowed_methods, reason = "the shim outlives this process")]
fn start(
    binary: &Path,
    vm_dir: &Path,
    lock: &OwnedFd,
    [input, events, log]: [Stdio; 3],
) -> Result<(), ShimSpawnError> {
    let lock_fd = lock.as_raw_fd();
    let mut command = Command::new(binary);
    command.arg("run").current_dir(vm_dir).env_clear().stdin(input).stdout(events).stderr(log);
    let wanted = ["PATH", "BANGER_LOG", "RUST_BACKTRACE"];
    for variable in wanted.iter().chain(crate::fault::INHERITED) {
        if let Some(value) = std::env::var_os(variable) {
            command.env(variable, value);
        }
    }
    // SAFETY: the closure allocates nothing and calls only what is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            crate::process::keep_only(&[lock_fd])
        });
    }
    let mut child = command.spawn().map_err(step("start the shim"))?;
    // What was started leaves as soon as the shim proper is in its namespaces.
    match child.wait() {
        // Taken by `reap`, which is as good.
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(()),
        other => other.map(drop).map_err(step("wait for the shim to enter its namespaces")),
    }
}

/// Ends the shim of a VM with SIGKILL, and with it, by the kernel's hand, everything of the VM.
/// Returns whether there was one.
///
/// Who it is says the kernel: the process that listens on the VM's socket; or, if none takes
/// connections there, the one that holds the VM's lock.
///
/// # Errors
/// Of the kernel.
pub fn kill_shim(vm_dir: &Path) -> io::Result<bool> {
    match listening(vm_dir)? {
        Some(pidfd) => crate::process::pidfd_signal(&pidfd, libc::SIGKILL),
        None => kill_lock_holders(vm_dir),
    }
}

/// The process that listens on the VM's socket. None also if more wait there than it can hold, as
/// where it has been stopped for long.
fn listening(vm_dir: &Path) -> io::Result<Option<OwnedFd>> {
    let (_dir, path) = match crate::connect::short_path(&vm_dir.join(RUN_DIR), SHIM_SOCKET) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match socket::connect(stream.as_raw_fd(), &UnixAddr::new(&path)?) {
        Ok(()) => {}
        Err(Errno::ENOENT | Errno::ECONNREFUSED | Errno::EAGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let peer = Pid::from_raw(socket::getsockopt(&stream, PeerCredentials)?.pid());
    // The connection proves that the listener lives, so the number cannot have been given anew
    // before this opens it; afterwards the descriptor is the process, whatever its number becomes.
    crate::process::pidfd_open(peer).map(Some)
}

/// Ends a shim that has not come as far as its socket, or can be asked no more.
fn kill_lock_holders(vm_dir: &Path) -> io::Result<bool> {
    let lock = match vm_dir.join(LOCK_FILE).canonicalize() {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut was_there = false;
    for pid in programs_with_lock(SHIM_NAME, &lock) {
        let pidfd = match crate::process::pidfd_open(Pid::from_raw(pid)) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
            opened => opened?,
        };
        // Whose number it still is, is the one that was opened.
        if programs_with_lock(SHIM_NAME, &lock).contains(&pid) {
            was_there |= crate::process::pidfd_signal(&pidfd, libc::SIGKILL)?;
        }
    }
    Ok(was_there)
}

/// Makes orphaned shims children of this process, so that they can be [`reap`]ed.
///
/// # Errors
/// Of the kernel.
pub fn adopt_orphans() -> io::Result<()> {
    if !Path::new("/proc/thread-self/children").exists() {
        tracing::warn!(
            "this kernel lists nobody's children (CONFIG_PROC_CHILDREN): what killed tools had \
             started stays until this daemon ends"
        );
    }
    nix::sys::prctl::set_child_subreaper(true).map_err(Into::into)
}

/// Collects orphans that have ended: shims, saying which and how, and what a tool that was killed had
/// started. To be called on SIGCHLD.
///
/// The children that this process started itself are left to whoever waits for them.
pub fn reap() -> Vec<(i32, ShimExit)> {
    let mut shims = Vec::new();
    loop {
        // The kernel's list may leave somebody out while another one is taken off it.
        let collected: Vec<_> = children().into_iter().filter_map(collect_orphan).collect();
        if collected.is_empty() {
            return shims;
        }
        shims.extend(collected.into_iter().flatten());
    }
}

/// The children of all threads of this process. Not `waitid` for any: it shows the first that has
/// ended, again and again, until whoever waits for that one has collected it.
fn children() -> Vec<Pid> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.map(|thread| std::fs::read_to_string(thread.path().join("children")));
    let of_list = |list: String| {
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
    };
    lists.flatten().flat_map::<Vec<Pid>, _>(of_list).collect()
}

/// Collects a child that has ended and is nobody else's to collect. How it ended, if it was a shim.
fn collect_orphan(child: Pid) -> Option<Option<(i32, ShimExit)>> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    if waitid(Id::Pid(child), flags | WaitPidFlag::WNOWAIT).ok()? == WaitStatus::StillAlive {
        return None;
    }
    // A zombie keeps its name and its process group. What this process starts leads a group of its
    // own or is in this one's; what a tool starts is in the tool's.
    let name = std::fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    let is_shim = name.trim_end() == SHIM_NAME;
    let group = getpgid(Some(child)).ok()?;
    if !is_shim && (group == child || group == getpgrp()) {
        return None;
    }
    let exit = match waitid(Id::Pid(child), flags).ok()? {
        WaitStatus::Exited(_, code) => ShimExit::Exited(code),
        WaitStatus::Signaled(_, signal, _) => ShimExit::Signaled(signal as i32),
        _ => return None,
    };
    Some(is_shim.then_some((child.as_raw(), exit)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Child;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::time::{Duration, Instant};

    use super::*;

    /// Held while there are children that [`reap`] could take from another test.
    static CHILDREN: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that has the shim's name and a VM's lock, and does nothing.
    #[expect(clippy::disallowed_methods, reason = "as a shim is started, which is no tool")]
    fn stuck_shim(vm_dir: &Path) -> Child {
        let program = vm_dir.join(SHIM_NAME);
        std::os::unix::fs::symlink("/bin/sleep", &program).expect("its place is free");
        let lock = OfdLock::try_acquire(&vm_dir.join(LOCK_FILE)).expect("open").expect("free");
        let mut command = Command::new(program);
        command.arg("600").stdin(Stdio::from(lock.into_fd()));
        command.spawn().expect("it starts")
    }

    fn assert_killed(vm_dir: &Path, mut shim: Child) {
        assert!(kill_shim(vm_dir).expect("it can be killed"));
        let status = shim.wait().expect("it ends");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert!(!kill_shim(vm_dir).expect("nobody is there"));
    }

    #[test]
    fn a_shim_that_never_came_to_its_socket_is_found_by_its_lock() {
        let _alone = alone();
        let dir = tempfile::tempdir().expect("temporary directory");
        let shim = stuck_shim(dir.path());
        assert_killed(dir.path(), shim);
    }

    /// Calls until it is so.
    fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::yield_now();
        }
    }

    /// What a tool had started, which was killed, is nobody's; what somebody started is waited for.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "children that are no tools")]
    fn orphans_are_collected_and_children_are_left_to_their_waiters() {
        let _alone = alone();
        adopt_orphans().expect("a subreaper");
        let (input, held) = io::pipe().expect("a pipe");
        let script = "exec 3<&0; /bin/cat <&3 >/dev/null 2>&1 & echo $!";
        let mut tool = Command::new("/bin/sh");
        tool.args(["-c", script]).process_group(0).stdin(input);
        let output = tool.output().expect("it runs");
        // It holds the end of the pipe that it was started with.
        drop(tool);
        let orphan = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let exists = || Path::new("/proc").join(&orphan).exists();
        assert!(exists(), "it waits for its input");
        let (in_ours, mut in_its_own) = (Command::new("/bin/true"), Command::new("/bin/true"));
        in_its_own.process_group(0);
        // Both end before the orphan does, and are waited for after it is gone.
        let [mut first, mut second] =
            [in_ours, in_its_own].map(|mut command| command.spawn().expect("it starts"));
        for child in [&first, &second] {
            let id = Id::Pid(Pid::from_raw(child.id().cast_signed()));
            waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("it ends");
        }
        drop(held);
        eventually("the orphan is collected", || {
            assert_eq!(reap(), []);
            !exists()
        });
        assert!(first.wait().expect("it is still there").success());
        assert!(second.wait().expect("it is still there").success());
    }

    /// Whoever asked it before is still in its queue: another one must not wait there.
    #[test]
    fn a_shim_that_takes_no_more_connections_is_found_by_its_lock() {
        let _alone = alone();
        let dir = tempfile::tempdir().expect("temporary directory");
        let run = dir.path().join(RUN_DIR);
        std::fs::create_dir(&run).expect("create");
        let listener = UnixListener::bind(run.join(SHIM_SOCKET)).expect("bind");
        let none = socket::Backlog::new(0).expect("a number");
        socket::listen(&listener, none).expect("listen");
        let mut queue = Vec::new();
        while let Some(pidfd) = listening(dir.path()).expect("connect") {
            queue.push(pidfd);
            assert!(queue.len() < 100, "the queue is short");
        }
        let shim = stuck_shim(dir.path());
        assert_killed(dir.path(), shim);
    }
}
