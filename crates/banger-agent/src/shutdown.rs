//! Going down: polite signals, firm signals, everything synced and unmounted, then the machine off.
//!
//! Where the image's own init is the first process it is asked to do all of that. It mostly ends the
//! machine before its grace period is over; the agent does the rest where it does not.

use std::ffi::CString;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use banger_api::agent::{Shutdown, ShutdownAction, StopMain};
use banger_api::step;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};
use tokio::time::Instant;

use crate::agent::Agent;
use crate::init::down;
use crate::{console, fault, processes};

/// Longest grace that is honoured; the host has given up long before.
const MAX_GRACE: Duration = Duration::from_secs(3600);
/// What is left for everybody else, however long the main process took.
const LEAST_GRACE: Duration = Duration::from_millis(500);
/// How long killed processes may take to vanish: one may hang in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// How often the process list is read again when no end was noticed (a process whose parent is not
/// the agent ends without a word to it).
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// File systems without anything to write back.
const MEMORY_FILE_SYSTEMS: [&str; 16] = [
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "hugetlbfs",
    "mqueue",
    "proc",
    "ramfs",
    "rootfs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// Why the guest could not be brought down cleanly. Everything that could be synced is.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    /// A file system cannot be unmounted or made read-only.
    #[error("{path} could not be unmounted: {source}")]
    Unmount {
        /// Where it is mounted.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A step could not be taken.
    #[error("the guest could not go down")]
    Step(#[source] io::Error),
    /// The thread that unmounts is gone.
    #[error("unmounting was interrupted")]
    Interrupted,
}

/// Ends all processes, and syncs and unmounts all disks. The caller has begun the shutdown with
/// [`Agent::begin_shutdown`] and ends it with [`Agent::end`].
pub async fn run(agent: &Agent, request: Shutdown) -> Result<(), ShutdownError> {
    fault::reach(step::GUEST_SHUT_DOWN).await.map_err(ShutdownError::Step)?;
    let grace = Duration::from_millis(request.grace_ms).min(MAX_GRACE);
    let began = Instant::now();
    let system = agent.init().is_handed_over();
    if let Some(main) = request.main {
        // The image's services get their share, too.
        let limit = if system { grace / 2 } else { grace };
        end_main(agent, main, limit).await;
    }
    let left = grace.saturating_sub(began.elapsed()).max(LEAST_GRACE.min(grace));
    let gone = if system {
        end_system(agent, request.action, left).await
    } else {
        ask_processes_to_end();
        wait_until_gone(agent, left).await
    };
    if !gone {
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        if !wait_until_gone(agent, KILL_WAIT).await {
            console::say("some processes do not end even when killed");
        }
    }
    tokio::task::spawn_blocking(release_disks).await.map_err(|_| ShutdownError::Interrupted)?
}

/// Leaves the machine.
pub fn act(action: ShutdownAction) -> ! {
    let mode = match action {
        ShutdownAction::PowerOff => RebootMode::RB_POWER_OFF,
        ShutdownAction::Reboot => RebootMode::RB_AUTOBOOT,
    };
    sync();
    loop {
        let Err(error) = reboot(mode);
        console::say(&format!("the machine does not go down: {error}"));
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Asks the main process to end and waits for that.
async fn end_main(agent: &Agent, main: StopMain, limit: Duration) {
    const LAST_SIGNAL: i32 = 64;
    let pid = i32::try_from(main.pid).unwrap_or(0);
    // Only a child that still runs: any other number may be anybody's.
    let Some(mut ended) = agent.reaper().watch(pid) else { return };
    if !(1..=LAST_SIGNAL).contains(&main.signal) {
        return;
    }
    // SAFETY: plain system calls. `nix` has no names for real-time signals.
    unsafe {
        libc::kill(pid, main.signal);
        // A stopped process must run to obey.
        libc::kill(pid, libc::SIGCONT);
    }
    let _ = tokio::time::timeout(limit, ended.wait_for(Option::is_some)).await;
}

/// Asks the image's init to end everything and the machine. Comes back only if it does not.
async fn end_system(agent: &Agent, action: ShutdownAction, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    down::ask(agent, action, limit).await;
    tokio::time::sleep_until(deadline).await;
    console::say("the image's init did not end the machine in time");
    false
}

fn ask_processes_to_end() {
    let everyone = Pid::from_raw(-1);
    let _ = kill(everyone, Signal::SIGTERM);
    // Interactive shells ignore SIGTERM and obey the loss of their terminal.
    for process in processes::at_work().into_iter().filter(|process| process.terminal) {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGHUP);
    }
    // Stopped processes must run to obey.
    let _ = kill(everyone, Signal::SIGCONT);
}

/// Waits until the agent is the only process left; false if that takes longer than `limit`.
async fn wait_until_gone(agent: &Agent, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if processes::at_work().is_empty() {
            return true;
        }
        let now = Instant::now();
        if now >= deadline {
            return false;
        }
        let again = LOOK_AGAIN.min(deadline - now);
        let _ = tokio::time::timeout(again, agent.reaper().collected()).await;
    }
}

/// Syncs, then unmounts what can be unmounted, innermost first, and makes `/` read-only.
fn release_disks() -> Result<(), ShutdownError> {
    fault::pass(step::GUEST_UNMOUNT).map_err(ShutdownError::Step)?;
    sync();
    stop_swapping();
    let mut failure = None;
    for mounted in mounts().into_iter().rev() {
        let Err(source) = release(&mounted) else { continue };
        let error = ShutdownError::Unmount { path: mounted, source };
        console::say(&error.to_string());
        failure = Some(error);
    }
    sync();
    failure.map_or(Ok(()), Err)
}

fn release(path: &str) -> io::Result<()> {
    if path != "/" && umount2(path, MntFlags::empty()).is_ok() {
        return Ok(());
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)?;
    Ok(())
}

fn stop_swapping() {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let paths = swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
    for path in paths.filter_map(|path| CString::new(unescape(path)).ok()) {
        // SAFETY: `path` is a NUL-terminated string that lives over the call.
        unsafe { libc::swapoff(path.as_ptr()) };
    }
}

/// Where file systems with something to write back are mounted, outermost first.
fn mounts() -> Vec<String> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    String::from_utf8_lossy(&table).lines().filter_map(parse_mount).collect()
}

/// The mount point in a line of `mountinfo`, if its file system is on a disk.
fn parse_mount(line: &str) -> Option<String> {
    let (mount, file_system) = line.split_once(" - ")?;
    let kind = file_system.split(' ').next()?;
    if MEMORY_FILE_SYSTEMS.contains(&kind) {
        return None;
    }
    mount.split(' ').nth(4).map(unescape)
}

/// Undoes the octal escapes of the kernel's tables.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                plain.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// Runs a shutdown that a request began, in a task of its own: a host that hangs up does not leave
/// the guest half down. The result is also kept until `delivered` says that the answer is out.
pub fn spawn(
    agent: Arc<Agent>,
    request: Shutdown,
    delivered: Arc<tokio::sync::Notify>,
) -> tokio::sync::oneshot::Receiver<Result<(), ShutdownError>> {
    /// How long the answer may take to the host.
    const DELIVERY: Duration = Duration::from_secs(2);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let _ = sender.send(run(&agent, request).await);
        let _ = tokio::time::timeout(DELIVERY, delivered.notified()).await;
        agent.end(request.action);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec;
    use crate::exec::cgroup::Cgroups;
    use crate::init::Init;
    use crate::reaper::Scope;
    use std::path::Path;

    fn agent() -> Arc<Agent> {
        let (_, root) = tokio::sync::watch::channel(Some(Ok(Vec::new())));
        let agent = Agent::new(root, Init::agent(), Cgroups::by_descent());
        agent.reaper().start(Scope::Registered, agent.cgroups());
        agent
    }

    /// Waits for the process id that a script writes to `file`.
    async fn written_pid(file: &Path) -> u32 {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let text = fs::read_to_string(file).unwrap_or_default();
            if let Some(pid) = text.strip_suffix('\n').and_then(|pid| pid.parse().ok()) {
                return pid;
            }
        }
    }

    /// Runs a script as a main process, ends it as such, and then with certainty.
    async fn end_script(traps: &str, signal: i32, limit: Duration) -> Result<(), String> {
        let agent = agent();
        let dir = tempfile::tempdir().expect("a directory");
        let ready = dir.path().join("ready");
        let script =
            format!("{traps}; echo $$ > {}; while :; do sleep 0.05; done", ready.display());
        let argv = ["sh", "-c", &script];
        let running = exec::run_quietly(&agent, &argv, Duration::from_secs(50));
        let ending = async {
            let pid = written_pid(&ready).await;
            end_main(&agent, StopMain { pid, signal }, limit).await;
            end_main(&agent, StopMain { pid, signal: libc::SIGKILL }, limit).await;
        };
        let both = async { tokio::join!(running, ending).0 };
        let ended = tokio::time::timeout(Duration::from_secs(60), both).await.expect("an end");
        ended.map_err(|problem| problem.to_string())
    }

    #[tokio::test]
    async fn a_main_process_ends_by_its_own_signal() {
        let limit = Duration::from_secs(30);
        let ended = end_script("trap 'exit 0' USR1", libc::SIGUSR1, limit).await;
        assert_eq!(ended, Ok(()));
        let ended = end_script("trap 'exit 3' RTMIN+3", 37, limit).await;
        assert_eq!(ended, Err("sh failed: it exited with 3".to_owned()));
    }

    #[tokio::test]
    async fn a_main_process_that_ignores_its_signal_is_not_waited_for_longer_than_the_limit() {
        let limit = Duration::from_millis(300);
        let ended = end_script("trap '' USR1", libc::SIGUSR1, limit).await;
        assert_eq!(ended, Err("sh failed: signal 9 killed it".to_owned()));
    }

    #[tokio::test]
    async fn only_what_the_agent_started_is_signalled() {
        let limit = Duration::from_secs(30);
        for (pid, signal) in [(1, 9), (0, 9), (u32::MAX, 9), (std::process::id(), 9), (1, 0)] {
            end_main(&agent(), StopMain { pid, signal }, limit).await;
        }
    }

    #[test]
    fn only_disks_are_unmounted() {
        let cases = [
            ("29 1 254:0 / / rw,noatime - ext4 /dev/dm-0 rw", Some("/")),
            ("40 29 0:5 / /dev rw - devtmpfs devtmpfs rw", None),
            ("41 29 254:32 / /lib/a\\040b ro shared:1 - ext4 /dev/vdc ro", Some("/lib/a b")),
            ("nonsense", None),
        ];
        for (line, want) in cases {
            assert_eq!(parse_mount(line).as_deref(), want, "{line}");
        }
    }

    #[test]
    fn escapes_are_undone() {
        for (escaped, want) in [("a\\040b", "a b"), ("\\134", "\\"), ("a\\9", "a\\9"), ("", "")] {
            assert_eq!(unescape(escaped), want);
        }
    }
}
