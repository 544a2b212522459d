//! The power is cut at a random moment of random work, on a simulated machine, by the hundred; and
//! what was not synced is torn. Then a daemon starts on what is left.
//!
//! What was reported as done is done, nothing half-made shows, and everything can be removed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_api::shim::{COW_FILE, STATUS_FILE};
use banger_api::vm::{EndCause, RestartPolicy, StartVm, StopVm, Vm, VmState};
use banger_core::lifecycle::Request;
use banger_host::{clock, random};

use crate::daemon::Daemon;
use crate::testing::{World, list, make, request};
use crate::vm::Outcome;

/// How many power cuts.
const CUTS: u64 = 150;
/// The names that the work is about, two for each of two workers. None can begin an id: a worker
/// would find the other's VM by it.
const NAMES: [[&str; 2]; 2] = [["w", "x"], ["y", "z"]];

/// Numbers that a seed determines: xorshift.
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What was reported of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Report {
    /// There is no such VM.
    Gone,
    /// There is one.
    There,
    /// There is one, and it was stopped or killed: it stays so until it is started.
    Ended,
}

/// What was reported of each name. Nothing while something is under way.
type Reported = Arc<Mutex<BTreeMap<&'static str, Report>>>;

async fn work(daemon: Arc<Daemon>, world: &World, mut dice: Dice, reported: Reported, who: usize) {
    let report = |name, what: Option<Report>| {
        let mut reported = reported.lock().expect("not poisoned");
        match what {
            Some(what) => reported.insert(name, what),
            None => reported.remove(name),
        };
    };
    let finish = async |outcome: Result<Outcome, _>| match outcome {
        Ok(Outcome::Accepted(work)) => work.finished().await,
        Ok(Outcome::AlreadySo) => Ok(()),
        Err(problem) => Err(problem),
    };
    loop {
        let name = NAMES[who][usize::try_from(dice.roll(2)).expect("small")];
        let Ok(vm) = daemon.find(name) else {
            report(name, None);
            let mut request = request(name, dice.roll(2) == 0);
            if dice.roll(2) == 0 {
                request.spec.restart = RestartPolicy::Always;
            }
            make(&daemon, request).await.expect("made");
            report(name, Some(Report::There));
            continue;
        };
        let stop = StopVm { grace_ms: 5 };
        match dice.roll(6) {
            0 => {
                report(name, None);
                finish(vm.remove(true).await).await.expect("removed");
                report(name, Some(Report::Gone));
            }
            ending @ (1 | 2) => {
                report(name, Some(Report::There));
                let request = if ending == 1 { Request::Stop } else { Request::Kill };
                let asked_ms = clock::now_ms();
                if finish(vm.end(request, stop).await).await.is_ok() {
                    // As whoever asks by the API does: one that is ending already has not ended.
                    vm.ended_since(asked_ms).await;
                    report(name, Some(Report::Ended));
                }
            }
            3 => {
                let dir = vm.snapshot().dir;
                if world.machine.is_alive(dir.as_ref()) {
                    world.machine.end(dir.as_ref(), EndCause::GuestPanic);
                }
            }
            _ => {
                report(name, Some(Report::There));
                drop(finish(vm.start(StartVm::default()).await).await);
            }
        }
    }
}

/// The database's log: what was committed and is not yet in its place.
fn log_of(world: &World) -> PathBuf {
    let mut log = OsString::from(world.dirs.database());
    log.push("-wal");
    PathBuf::from(log)
}

/// Works until the power is cut; what was reported by then, and the database's log.
///
/// Whoever closes a database clears its log away, and a power cut does not: the files are put back as
/// they were while it was open.
fn work_until_the_cut(world: &World, dice: &mut Dice) -> (BTreeMap<&'static str, Report>, Vec<u8>) {
    let reported = Reported::default();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let daemon = runtime.block_on(async {
        let daemon = world.daemon().await;
        let workers = [0, 1].map(|who| {
            let own = Dice(dice.roll(u64::MAX) | 1);
            work(Arc::clone(&daemon), world, own, Arc::clone(&reported), who)
        });
        let [first, second] = workers;
        let cut = tokio::time::sleep(Duration::from_micros(dice.roll(40_000)));
        tokio::select! {
            () = first => {}
            () = second => {}
            () = cut => {}
        }
        daemon
    });
    drop(runtime);
    world.machine.cut_power();
    let (database, log) = (world.dirs.database(), log_of(world));
    let [kept, logged] = [&database, &log].map(|file| std::fs::read(file).expect("it is open"));
    drop(daemon);
    assert!(!log.exists(), "nobody has the database open any more");
    std::fs::write(&database, kept).expect("put back");
    std::fs::write(&log, &logged).expect("put back");
    let reported = reported.lock().expect("not poisoned");
    (reported.clone(), logged)
}

/// Tears what nobody had synced: the shims' status files, and what SQLite was about to write.
fn tear(world: &World, mut log: Vec<u8>, dice: &mut Dice) {
    for entry in std::fs::read_dir(world.dirs.vms()).into_iter().flatten().flatten() {
        let file = entry.path().join(STATUS_FILE);
        let Ok(bytes) = std::fs::read(&file) else { continue };
        let length = usize::try_from(dice.roll(bytes.len() as u64 + 1)).expect("small");
        match dice.roll(4) {
            0 => std::fs::write(&file, &bytes[..length]).expect("shorten"),
            1 => std::fs::write(&file, vec![0; bytes.len()]).expect("zero"),
            2 => std::fs::remove_file(&file).expect("lose"),
            _ => {}
        }
    }
    log.extend((0..dice.roll(9_000)).map(|_| u8::try_from(dice.roll(256)).expect("a byte")));
    std::fs::write(log_of(world), log).expect("tear");
}

/// A VM is whole, and what is said to run does: after a power cut, only what was started since.
fn check_shown(world: &World, vm: &Vm, context: &str) {
    let dir = Path::new(&vm.dir);
    assert!(dir.join(COW_FILE).exists(), "{context}: {} is whole", vm.name);
    match vm.status.state {
        VmState::Running => assert!(world.machine.is_alive(dir), "{context}: {vm:?}"),
        state => assert!(vm.spec.restart == RestartPolicy::Always || !state.is_live(), "{vm:?}"),
    }
}

async fn remove_all(daemon: &Arc<Daemon>) {
    for vm in daemon.handles() {
        match vm.remove(true).await {
            Ok(Outcome::Accepted(work)) => work.finished().await.expect("removed"),
            Ok(Outcome::AlreadySo) | Err(_) => {}
        }
    }
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_reported() {
    let base = u64::from_le_bytes(random::bytes()) >> 16;
    let mut results = 0;
    for number in 0..CUTS {
        let seed = base + number;
        let context = format!("seed {seed}");
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let world = World::new();
        let (reported, log) = work_until_the_cut(&world, &mut dice);
        assert!(!log.is_empty(), "{context}: there is something to tear");
        results += reported.len();
        tear(&world, log, &mut dice);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let daemon = world.daemon().await;
            let shown = list(&daemon);
            shown.iter().for_each(|vm| check_shown(&world, vm, &context));
            for (name, report) in &reported {
                let found = shown.iter().find(|vm| vm.name == *name);
                assert_eq!(found.is_some(), *report != Report::Gone, "{context}: {name}");
                if let (Some(vm), Report::Ended) = (found, report) {
                    assert!(!vm.status.state.is_live(), "{context}: it was ended: {vm:?}");
                    assert_eq!(vm.status.next_start_ms, None, "{context}: {name} stays so");
                }
            }
            remove_all(&daemon).await;
            crate::testing::eventually(&context, || world.is_clean()).await;
        });
    }
    println!("{results} results were reported before {CUTS} cuts");
    assert!(results > 0, "something was done before the cuts");
}

#[test]
fn a_log_of_the_database_that_ends_anywhere_is_no_obstacle() {
    let base = u64::from_le_bytes(random::bytes()) >> 16;
    for seed in base..base + CUTS / 3 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let world = World::new();
        let (_, log) = work_until_the_cut(&world, &mut dice);
        assert!(!log.is_empty(), "seed {seed}: there is something to cut");
        let length = usize::try_from(dice.roll(log.len() as u64 + 1)).expect("small");
        std::fs::write(log_of(&world), &log[..length]).expect("shorten");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let daemon = world.daemon().await;
            // Rows that were lost leave directories that nobody shows; no row is without its disk.
            for vm in list(&daemon) {
                let dir = Path::new(&vm.dir);
                assert!(dir.join(COW_FILE).exists() || !dir.exists(), "seed {seed}: {}", vm.name);
            }
            remove_all(&daemon).await;
            assert_eq!(list(&daemon), [], "seed {seed}");
        });
    }
}
