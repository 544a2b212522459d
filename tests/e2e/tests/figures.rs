//! Figures that may not get worse unseen, with generous bounds; `cargo xtask bench` takes them.

use std::path::PathBuf;
use std::time::Duration;

use banger_e2e::SOON;
use banger_testkit::crowd::{self, StandIns};
use banger_testkit::{Host, wait};

/// "Memory of the daemon after 1,000 create/rm cycles grows ≤ 2 MiB."
#[test]
fn the_daemon_keeps_nothing_of_what_is_gone() {
    const WARM_UP: usize = 200;
    const CYCLES: usize = 1000;
    let host = Host::new();
    host.banger(["ls"]).run().assert_ok();
    let (api, daemon) = (host.api(), host.daemon_pid().expect("a daemon runs"));
    crowd::create_and_remove(&api, WARM_UP);
    let before = crowd::memory_kib(daemon);
    crowd::create_and_remove(&api, CYCLES);
    let after = crowd::memory_kib(daemon);
    eprintln!("{before} KiB, after {CYCLES} VMs {after} KiB");
    assert!(after <= before + 2048, "{before} KiB grew to {after} KiB");
    host.finish();
}

/// "reconcile of 200 VMs at daemon start ≤ 300 ms": some are alive, the daemon before was killed.
#[test]
fn two_hundred_vms_are_taken_up_at_once() {
    const VMS: usize = 200;
    const ALIVE: usize = 40;
    let host = Host::new();
    host.banger(["ls"]).run().assert_ok();
    crowd::create_many(&host.api(), "crowd", VMS);
    let dirs: Vec<PathBuf> = std::fs::read_dir(host.data.join("vms"))
        .expect("there are VMs")
        .map(|entry| entry.expect("readable").path())
        .collect();
    let alive = StandIns::hold(dirs.iter().take(ALIVE).map(PathBuf::as_path));
    for _ in 0..2 {
        let (took, shown, live) = crowd::restart_daemon(&host);
        eprintln!("{shown} VMs, {live} of them alive: {took:?}");
        assert_eq!((shown, live), (VMS, alive.count()));
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    drop(alive);
    wait::until("their end is seen", SOON, || {
        (crowd::alive(&host.api().first_answer()) == 0).then_some(())
    });
    let names = host.vm_names();
    let names = names.iter().map(String::as_str);
    host.banger(["rm"].into_iter().chain(names)).run().assert_ok();
    host.finish();
}
