//! Many VMs that need no machine: rows, directories and locks, but no guests. For what the daemon
//! does with all of them at once, and for what it keeps of those that are gone.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use serde_json::Value;

use crate::api::Api;
use crate::host::Host;

/// How many requests are under way at the same time.
const AT_ONCE: usize = 4;

/// Makes VMs `NAME-0` to `NAME-COUNT`, without starting them.
///
/// # Panics
/// If that fails.
pub fn create_many(api: &Api, name: &str, count: usize) {
    share(count, |number| api.create(&format!("{name}-{number}")));
}

/// Makes and removes a VM so many times.
///
/// # Panics
/// If that fails.
pub fn create_and_remove(api: &Api, count: usize) {
    share(count, |number| {
        let name = format!("brief-{number}");
        api.create(&name);
        api.remove(&name);
    });
}

fn share(count: usize, work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE {
            let work = &work;
            scope.spawn(move || (first..count).step_by(AT_ONCE).for_each(work));
        }
    });
}

/// Holds the locks of VMs, as their shims would.
#[derive(Debug)]
pub struct StandIns {
    locks: Vec<File>,
}

impl StandIns {
    /// Takes the locks of the VMs with these directories. Dropping it lets them go.
    ///
    /// # Panics
    /// If one cannot be taken.
    pub fn hold<'a>(dirs: impl Iterator<Item = &'a Path>) -> Self {
        let locks = dirs.map(|dir| {
            let mut how = File::options();
            how.create(true).truncate(false).write(true);
            let file = how.open(dir.join("lock")).expect("the VM's directory");
            let whole = libc::flock {
                l_type: i16::try_from(libc::F_WRLCK).expect("a small number"),
                l_whence: i16::try_from(libc::SEEK_SET).expect("a small number"),
                l_start: 0,
                l_len: 0,
                l_pid: 0,
            };
            fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)).expect("nobody else has it");
            file
        });
        Self { locks: locks.collect() }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.locks.len()
    }
}

/// Kills the daemon and starts another one. How long that took from its start to its first answer,
/// and how many VMs it showed, in all and alive.
///
/// # Panics
/// If there is no daemon before, or none afterwards.
pub fn restart_daemon(host: &Host) -> (Duration, usize, usize) {
    host.kill_dash_nine(host.daemon_pid().expect("a daemon runs"));
    let program = host.programs().join("libexec/bangerd");
    let begun = Instant::now();
    let daemon = host.program(&program, ["--foreground"]).spawn();
    let vms = host.api().first_answer();
    let took = begun.elapsed();
    // It ends with `banger daemon stop`, as any other.
    drop(daemon);
    (took, vms.len(), alive(&vms))
}

/// How many of the VMs that the API shows are alive.
#[must_use]
pub fn alive(vms: &[Value]) -> usize {
    let states = ["starting", "running", "paused", "stopping"];
    let is_alive =
        |vm: &&Value| vm["status"]["state"].as_str().is_some_and(|state| states.contains(&state));
    vms.iter().filter(is_alive).count()
}

/// Memory of a process that is in use, in KiB.
///
/// # Panics
/// If there is no such process.
#[must_use]
pub fn memory_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
