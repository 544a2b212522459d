//! Everything that can break, at every step, on a simulated machine.
//!
//! For each operation, each step that it passes in the daemon, each process of a VM and each way to
//! break: do the operation, break it there, end the daemon, heal the machine, start a daemon, look.
//! Then what was reported as done is still done, nothing half-made is shown, the operation can be
//! repeated and works, and after the removal nothing is left.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use banger_api::Problem;
use banger_api::shim::{COW_FILE, WORK_FILE};
use banger_api::step::{self, Failing, Operation as Of, Process, Step, Who};
use banger_api::vm::{EndCause, StartVm, VmState};
use banger_core::id::Id;
use banger_core::lifecycle::Request;

use super::change::tests::{image, roots};
use super::tests::{find, finish, life, stop};
use crate::daemon::Daemon;
use crate::gate::trap::{Effect, Trap};
use crate::host::simulated::Manner;
use crate::store::Store;
use crate::testing::{World, begin, eventually, list, make, outcome, request};

/// What is done when something breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Create,
    Run,
    /// The same where VMs begin from templates, and there is none yet.
    RunFirst,
    Start,
    /// The same where there is a template to begin from.
    StartWarm,
    Stop,
    Pause,
    /// A paused VM goes on.
    Resume,
    /// A VM gets another image and more processors, and loses its work disk.
    Set,
    Remove,
    /// A daemon begins, and finds a VM that ended without one.
    Begin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Crash,
    Fail(Failing),
    Stall,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    doing: Doing,
    step: Step,
    who: Who,
    what: What,
}

/// The request that a client follows, which ends with its client.
type Lease = Arc<Mutex<Option<(Arc<Daemon>, Id)>>>;

/// What [`set`] makes of the VM.
const CPUS: u32 = 3;
const OTHER: &str = "sha256:other";
/// The work disk that it removes.
const WORK_BYTES: u64 = 1 << 30;

/// The ways in which a process can break. Only for the daemon, whose step it is, does it matter with
/// which error.
fn ways(who: Who) -> &'static [What] {
    match who {
        Who::Daemon => &[
            What::Crash,
            What::Fail(Failing::Eio),
            What::Fail(Failing::Enospc),
            What::Fail(Failing::Etimedout),
            What::Stall,
        ],
        _ => &[What::Crash, What::Fail(Failing::Eio), What::Stall],
    }
}

/// What the real shim makes of trouble with a process of its VM; None if nobody notices.
fn consequence(who: Who, what: What) -> Option<Manner> {
    match (who, what) {
        (Who::Shim, What::Crash) => Some(Manner::Dies),
        (Who::Shim, What::Fail(_)) => Some(Manner::Ends(EndCause::LaunchFailed)),
        (Who::Shim, What::Stall) => Some(Manner::Hangs),
        (Who::Vmm, What::Crash) => Some(Manner::Ends(EndCause::VmmExited)),
        (Who::Vmm, What::Fail(_)) => Some(Manner::Ends(EndCause::GuestPowerOff)),
        (Who::Agent, What::Crash) => Some(Manner::Ends(EndCause::GuestPanic)),
        (Who::Agent, What::Fail(_)) => Some(Manner::Fails),
        (Who::Vmm | Who::Agent, What::Stall) => Some(Manner::Mute),
        (Who::Pasta, What::Crash | What::Fail(_)) => Some(Manner::Offline),
        (Who::Pasta, What::Stall) | (Who::Daemon | Who::Cli, _) => None,
    }
}

/// The steps that an operation passes when nothing breaks.
fn steps_of(doing: Doing) -> BTreeSet<Step> {
    let world = prepared(doing);
    let recorder = Trap::at(step::CREATE_ROW, Effect::Strike(Box::new(|| {})));
    life(async {
        let daemon = world.try_daemon_with(recorder.gate()).await.expect("it begins");
        act(&daemon, doing, &Lease::default()).await.expect("nothing breaks");
    });
    recorder.passed()
}

/// A machine on which the operation can be done.
fn prepared(doing: Doing) -> World {
    let world = World::in_memory();
    let world = match doing {
        Doing::RunFirst | Doing::StartWarm => world.with_templates(),
        _ => world,
    };
    world.machine.add_image("other", OTHER);
    let turned = matches!(doing, Doing::Pause | Doing::Resume);
    let running =
        turned || matches!(doing, Doing::Stop | Doing::Set | Doing::Remove | Doing::Begin);
    if running || matches!(doing, Doing::Start | Doing::StartWarm) {
        let made = life(async {
            let daemon = world.daemon().await;
            if doing == Doing::StartWarm {
                make(&daemon, request("first", true)).await.expect("make");
                daemon.templates.all_settled().await;
                finish(find(&daemon, "first").remove(true).await).await.expect("remove");
            }
            let mut wanted = request("web", running);
            wanted.spec.work_disk_bytes = (doing == Doing::Set).then_some(WORK_BYTES);
            let made = make(&daemon, wanted).await.expect("make");
            if doing == Doing::Set {
                stop(&find(&daemon, "web")).await.expect("stop");
            }
            if doing == Doing::Resume {
                turn(&daemon, Request::Pause).await.expect("pause");
            }
            made
        });
        if doing == Doing::Begin {
            world.machine.vanish(made.dir.as_ref());
        }
    }
    world
}

async fn act(daemon: &Arc<Daemon>, doing: Doing, lease: &Lease) -> Result<(), Problem> {
    match doing {
        Doing::Create | Doing::Run | Doing::RunFirst => {
            let operation = begin(daemon, request("web", doing != Doing::Create)).await?;
            let id = Id::parse(&operation.id).expect("an id");
            *lease.lock().unwrap() = Some((Arc::clone(daemon), id));
            outcome(daemon, &operation).await.map(drop)
        }
        Doing::Start | Doing::StartWarm => {
            finish(find(daemon, "web").start(StartVm::default()).await).await
        }
        Doing::Stop => stop(&find(daemon, "web")).await,
        Doing::Pause => turn(daemon, Request::Pause).await,
        Doing::Resume => turn(daemon, Request::Resume).await,
        Doing::Set => set(daemon).await,
        Doing::Remove => finish(find(daemon, "web").remove(true).await).await,
        Doing::Begin => Ok(()),
    }
}

async fn turn(daemon: &Arc<Daemon>, request: Request) -> Result<(), Problem> {
    finish(find(daemon, "web").turn(request).await).await
}

async fn set(daemon: &Arc<Daemon>) -> Result<(), Problem> {
    let mut wanted = image(daemon, OTHER);
    wanted.set.cpus = Some(CPUS);
    wanted.set.work_disk_bytes = Some(0);
    find(daemon, "web").change(wanted).await.map(drop)
}

/// Whether a VM is what [`set`] makes of it. It is that wholly or not at all.
fn is_set(daemon: &Daemon, case: Case) -> bool {
    let row = find(daemon, "web").row();
    let parts =
        [row.spec.cpus == CPUS, row.image_digest == OTHER, row.spec.work_disk_bytes.is_none()];
    assert!(parts.iter().all(|part| *part == parts[0]), "{case:?}: half changed: {row:?}");
    parts[0]
}

/// Does the operation and breaks it; what was reported, if anything was.
fn do_and_break(world: &World, case: Case) -> Option<Result<(), Problem>> {
    let lease = Lease::default();
    let ends_the_daemon = case.who == Who::Daemon && !matches!(case.what, What::Fail(_));
    let effect = match (case.who, case.what) {
        (Who::Daemon, What::Fail(error)) => Effect::Fail(error),
        // A step that never goes on is gone with its daemon, at the latest.
        (Who::Daemon, What::Crash | What::Stall) => Effect::Crash,
        (Who::Cli, what) => {
            let lease = Arc::clone(&lease);
            Effect::Strike(Box::new(move || hang_up(&lease, what)))
        }
        (who, what) => {
            let machine = Arc::clone(&world.machine);
            let trouble = consequence(who, what);
            Effect::Strike(Box::new(move || {
                trouble.inspect(|trouble| machine.strike(*trouble));
            }))
        }
    };
    let trap = Trap::at(case.step, effect);
    let reported = life(async {
        let doing = async {
            let daemon = world.try_daemon_with(trap.gate()).await?;
            act(&daemon, case.doing, &lease).await
        };
        tokio::select! {
            biased;
            () = trap.reached.notified(), if ends_the_daemon => None,
            reported = doing => Some(reported),
        }
    });
    // What holds the daemon would hold its database open.
    lease.lock().unwrap().take();
    assert!(trap.has_sprung(), "{case:?} was not reached");
    reported
}

/// The client's end is the end of what it asked for.
fn hang_up(lease: &Lease, what: What) {
    if what == What::Stall {
        return;
    }
    if let Some((daemon, operation)) = lease.lock().unwrap().as_ref() {
        let _ = daemon.operations.cancel(operation.as_str());
    }
}

/// What was reported is so, as the next daemon sees it.
async fn check_what_was_reported(
    daemon: &Arc<Daemon>,
    case: Case,
    reported: Option<&Result<(), Problem>>,
) {
    let absent = || list(daemon).is_empty();
    match (case.doing, reported) {
        (Doing::Create | Doing::Run | Doing::RunFirst, Some(Ok(()))) => {
            let state = find(daemon, "web").state();
            if case.doing == Doing::Create {
                assert_eq!(state, VmState::Created, "{case:?}");
            } else if consequence(case.who, case.what).is_none() {
                assert_eq!(state, VmState::Running, "{case:?}");
            }
        }
        (Doing::Create | Doing::Run | Doing::RunFirst, _) => {
            assert!(absent(), "{case:?}: nothing half-made is shown: {:?}", list(daemon));
        }
        (Doing::Remove, Some(Ok(()))) => {
            assert!(absent(), "{case:?}: what was removed is gone");
        }
        (Doing::Stop, Some(Ok(()))) => {
            assert!(!find(daemon, "web").state().is_live(), "{case:?}: it was stopped");
        }
        (Doing::Pause, Some(Ok(()))) => {
            assert_eq!(find(daemon, "web").state(), VmState::Paused, "{case:?}");
        }
        (Doing::Resume, Some(Ok(()))) => {
            assert_eq!(find(daemon, "web").state(), VmState::Running, "{case:?}");
        }
        (Doing::Start | Doing::StartWarm, Some(Ok(())))
            if consequence(case.who, case.what).is_none() =>
        {
            assert_eq!(find(daemon, "web").state(), VmState::Running, "{case:?}");
        }
        (Doing::Set, reported) => {
            let set = is_set(daemon, case);
            assert!(set || !matches!(reported, Some(Ok(()))), "{case:?}: what was set is so");
        }
        (Doing::Begin, _) => {
            assert_eq!(find(daemon, "web").state(), VmState::Failed, "{case:?}: it had died");
        }
        (Doing::Start | Doing::StartWarm | Doing::Stop | Doing::Pause | Doing::Resume, _) => {
            assert!(!absent(), "{case:?}: the VM is there");
        }
        // Its removal may have begun, and goes on.
        (Doing::Remove, _) => {}
    }
}

/// The operation can be repeated and works.
async fn repeat(world: &World, daemon: &Arc<Daemon>, case: Case) {
    let good = |done: Result<(), Problem>| done.unwrap_or_else(|why| panic!("{case:?}: {why}"));
    match case.doing {
        Doing::Create | Doing::Run | Doing::RunFirst => {
            if !list(daemon).is_empty() {
                good(finish(find(daemon, "web").remove(true).await).await);
            }
            world.machine.heal();
            let again = make(daemon, request("web", case.doing != Doing::Create)).await;
            let vm = again.unwrap_or_else(|why| panic!("{case:?}: {why}"));
            assert_eq!(vm.status.state.is_live(), case.doing != Doing::Create, "{case:?}");
        }
        Doing::Start | Doing::StartWarm | Doing::Begin => {
            let vm = find(daemon, "web");
            good(finish(vm.start(StartVm::default()).await).await);
            assert_eq!(vm.state(), VmState::Running, "{case:?}");
        }
        Doing::Stop => {
            let vm = find(daemon, "web");
            good(stop(&vm).await);
            assert!(!vm.state().is_live(), "{case:?}");
        }
        Doing::Pause | Doing::Resume => {
            let vm = find(daemon, "web");
            if consequence(case.who, case.what).is_some() {
                // What was struck may answer nobody any more.
                good(stop(&vm).await);
                world.machine.heal();
                good(finish(vm.start(StartVm::default()).await).await);
            }
            for (request, state) in
                [(Request::Pause, VmState::Paused), (Request::Resume, VmState::Running)]
            {
                good(turn(daemon, request).await);
                assert_eq!(vm.state(), state, "{case:?}");
            }
        }
        Doing::Set => {
            good(set(daemon).await);
            assert!(is_set(daemon, case), "{case:?}");
            let vm = find(daemon, "web");
            let dir = PathBuf::from(vm.snapshot().dir);
            assert_eq!(roots(&dir), [COW_FILE], "{case:?}");
            assert!(!dir.join(WORK_FILE).exists(), "{case:?}");
            good(finish(vm.start(StartVm::default()).await).await);
        }
        Doing::Remove => {
            if !list(daemon).is_empty() {
                good(finish(find(daemon, "web").remove(true).await).await);
            }
            assert!(list(daemon).is_empty(), "{case:?}");
        }
    }
}

fn check(case: Case) {
    let world = prepared(case.doing);
    let reported = do_and_break(&world, case);
    world.machine.heal();
    life(async {
        let daemon = world.daemon().await;
        check_what_was_reported(&daemon, case, reported.as_ref()).await;
        repeat(&world, &daemon, case).await;
        for vm in list(&daemon) {
            finish(find(&daemon, &vm.name).remove(true).await).await.expect("remove");
        }
        eventually(&format!("{case:?}: nothing is left"), || world.is_clean()).await;
    });
    let rows = Store::open(&world.dirs.database()).and_then(|store| store.all()).expect("rows");
    assert_eq!(rows, [], "{case:?}: no row is left");
}

/// Every step of an operation × everybody × every way to break.
fn check_all(doing: Doing) {
    let mut steps = steps_of(doing);
    steps.retain(|step| ![step::TEMPLATE_SEAL, step::TEMPLATE_REMOVE].contains(step));
    assert!(!steps.is_empty(), "{doing:?} has steps");
    for step in steps {
        for who in Who::EVERYBODY {
            for what in ways(who) {
                check(Case { doing, step, who, what: *what });
            }
        }
    }
}

#[test]
fn whatever_breaks_while_a_vm_is_created() {
    check_all(Doing::Create);
}

#[test]
fn whatever_breaks_while_a_vm_is_created_and_started() {
    check_all(Doing::Run);
}

#[test]
fn whatever_breaks_while_a_vm_is_started() {
    check_all(Doing::Start);
}

#[test]
fn whatever_breaks_while_a_template_is_made_for_a_vm() {
    check_all(Doing::RunFirst);
}

#[test]
fn whatever_breaks_while_a_vm_begins_from_a_template() {
    check_all(Doing::StartWarm);
}

#[test]
fn whatever_breaks_while_a_vm_is_stopped() {
    check_all(Doing::Stop);
}

#[test]
fn whatever_breaks_while_a_vm_is_paused() {
    check_all(Doing::Pause);
}

#[test]
fn whatever_breaks_while_a_vm_is_resumed() {
    check_all(Doing::Resume);
}

#[test]
fn whatever_breaks_while_a_vm_is_changed() {
    check_all(Doing::Set);
}

#[test]
fn whatever_breaks_while_a_vm_is_removed() {
    check_all(Doing::Remove);
}

#[test]
fn whatever_breaks_while_a_daemon_begins() {
    check_all(Doing::Begin);
}

/// No step of a VM's life is left out of the above.
#[test]
fn every_step_of_a_vms_life_is_broken() {
    let all = [
        Doing::Create,
        Doing::Run,
        Doing::RunFirst,
        Doing::Start,
        Doing::StartWarm,
        Doing::Stop,
        Doing::Pause,
        Doing::Resume,
        Doing::Set,
        Doing::Remove,
        Doing::Begin,
    ];
    let mut broken: BTreeSet<Step> = all.into_iter().flat_map(steps_of).collect();
    // Passed before there is a daemon to be simulated, or by the library of images and kernels.
    // Or beside every operation; `templates::tests` has those.
    let elsewhere = [
        step::DAEMON_LISTEN,
        step::DAEMON_OPEN,
        step::INITRAMFS_WRITE,
        step::TEMPLATE_SEAL,
        step::TEMPLATE_REMOVE,
        // `pool::tests` has that.
        step::START_CLAIM,
    ];
    let of_a_life =
        [Of::Begin, Of::Create, Of::Start, Of::Pause, Of::Stop, Of::Set, Of::Remove, Of::Template];
    let wanted: BTreeSet<Step> = step::ALL
        .iter()
        .map(|(_, step)| *step)
        .filter(|step| step.process() == Process::Daemon && of_a_life.contains(&step.operation()))
        .filter(|step| !elsewhere.contains(step))
        .collect();
    // Whether it comes in time is by chance.
    broken.retain(|step| !elsewhere.contains(step));
    assert_eq!(broken, wanted);
}
