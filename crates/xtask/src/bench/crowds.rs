//! What the daemon does with many VMs at once, and what it keeps of those that are gone.

use std::path::PathBuf;
use std::time::Duration;

use banger_testkit::Host;
use banger_testkit::crowd::{self, StandIns};

use super::Row;
use super::figures::{median, millis};

/// How many VMs a daemon finds when it starts, and how many of them are alive.
const VMS: usize = 200;
const ALIVE: usize = 40;
/// How often it starts.
const STARTS: usize = 7;
/// How many VMs come and go, after some that warm it up.
const CYCLES: usize = 1000;
const WARM_UP: usize = 200;

/// Measures with a host of its own: figures of a daemon that has done nothing else.
pub(super) fn measure() -> Vec<Row> {
    let host = Host::new();
    host.banger(["ls"]).run().assert_ok();
    let rows = vec![growth(&host), reconcile(&host)];
    host.banger(["system", "reset", "--yes"]).timeout(Duration::from_secs(600)).run().assert_ok();
    host.finish();
    rows
}

fn growth(host: &Host) -> Row {
    let (api, daemon) = (host.api(), host.daemon_pid().expect("a daemon runs"));
    crowd::create_and_remove(&api, WARM_UP);
    let before = crowd::memory_kib(daemon);
    crowd::create_and_remove(&api, CYCLES);
    let after = crowd::memory_kib(daemon);
    let grown = after as f64 - before as f64;
    Row::new(
        "growth of the daemon over 1,000 VMs made and removed",
        format!("{:.1} MiB", grown / 1024.0),
        "≤ 2 MiB",
    )
}

fn reconcile(host: &Host) -> Row {
    let mut alone: Vec<Duration> = (0..STARTS).map(|_| crowd::restart_daemon(host).0).collect();
    crowd::create_many(&host.api(), "crowd", VMS);
    let dirs: Vec<PathBuf> = std::fs::read_dir(host.data.join("vms"))
        .expect("there are VMs")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let alive = StandIns::hold(dirs.iter().take(ALIVE).map(PathBuf::as_path));
    let mut crowded: Vec<Duration> = (0..STARTS).map(|_| crowd::restart_daemon(host).0).collect();
    drop(alive);
    let (alone, crowded) = (median(&mut alone), median(&mut crowded));
    Row::new(
        "start of the daemon to its first answer, with 200 VMs, 40 of them alive",
        format!("{} ({} with none)", millis(crowded), millis(alone)),
        "≤ 300 ms",
    )
}
