//! Restart policies, reasons and expiry, on a simulated machine.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use banger_api::change::SetVm;
use banger_api::event::EventType;
use banger_api::shim::STATUS_FILE;
use banger_api::vm::{CreateVm, EndCause, RestartPolicy, StartVm, StopVm, Vm, VmState, VmStatus};
use banger_core::lifecycle::{Request, ShimExit, Traces};

use super::expiry::Watch;
use super::{Outcome, VmHandle, Wanted};
use crate::daemon::Daemon;
use crate::host::simulated::Manner;
use crate::reconcile::look;
use crate::store::Store;
use crate::testing::{PATIENCE, World, begin, eventually, list, make, outcome, request};

/// Runs a daemon's life; when it is over everything the daemon was doing stops, as by `kill -9`.
fn life<F: Future>(future: F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(future)
}

fn with(policy: RestartPolicy) -> CreateVm {
    let mut request = request("web", true);
    request.spec.restart = policy;
    request
}

fn find(daemon: &Daemon) -> Arc<VmHandle> {
    daemon.find("web").expect("the VM exists")
}

fn shown(vm: &VmHandle) -> Vm {
    vm.snapshot()
}

async fn waits_for_a_start(vm: &VmHandle) -> Vm {
    eventually("the pause", || shown(vm).status.next_start_ms.is_some()).await;
    shown(vm)
}

/// The same before the start of that number.
async fn rests_after(vm: &VmHandle, restarts: u32) -> VmStatus {
    let rests = |status: &VmStatus| status.restarts == restarts && status.next_start_ms.is_some();
    eventually("the pause", || rests(&shown(vm).status)).await;
    shown(vm).status
}

async fn done(outcome: Result<Outcome, banger_api::Problem>) {
    if let Outcome::Accepted(work) = outcome.expect("accepted") {
        work.finished().await.expect("done");
    }
}

#[tokio::test]
async fn what_failed_is_started_again_and_says_when_and_why() {
    let world = World::new();
    let daemon = world.daemon().await;
    let made = make(&daemon, with(RestartPolicy::OnFailure)).await.expect("make");
    let vm = find(&daemon);
    world.machine.end(made.dir.as_ref(), EndCause::GuestPanic);
    let resting = waits_for_a_start(&vm).await.status;
    assert_eq!((resting.state, resting.restarts), (VmState::Failed, 1));
    assert_eq!(resting.end.map(|end| end.cause), Some(EndCause::GuestPanic));
    eventually("the start", || vm.state() == VmState::Running).await;
    let running = shown(&vm).status;
    assert_eq!((running.restarts, running.next_start_ms), (1, None));

    // A second failure soon after the first waits longer.
    world.machine.end(made.dir.as_ref(), EndCause::VmmExited);
    let resting = waits_for_a_start(&vm).await.status;
    assert_eq!(resting.restarts, 2);
    let pause_ms = resting.next_start_ms.expect("a start") - resting.since_ms;
    assert!((2_000..3_000).contains(&pause_ms), "{pause_ms}");

    // What ended well stays so.
    done(vm.start(StartVm::default()).await).await;
    assert_eq!(shown(&vm).status.restarts, 0, "a person begins anew");
    world.machine.end(made.dir.as_ref(), EndCause::GuestPowerOff);
    let ended = vm.ended().await.status;
    assert_eq!((ended.state, ended.next_start_ms), (VmState::Stopped, None));
}

#[tokio::test]
async fn what_somebody_stopped_or_killed_stays_so() {
    let world = World::new();
    let daemon = world.daemon().await;
    make(&daemon, with(RestartPolicy::Always)).await.expect("make");
    let vm = find(&daemon);
    for how in [Request::Stop, Request::Kill] {
        done(vm.end(how, StopVm::default()).await).await;
        let ended = shown(&vm).status;
        assert_eq!((ended.state, ended.next_start_ms), (VmState::Stopped, None), "{how:?}");
        done(vm.start(StartVm::default()).await).await;
    }
}

#[tokio::test]
async fn a_stop_or_a_removal_calls_a_start_off() {
    let world = World::new();
    let daemon = world.daemon().await;
    let made = make(&daemon, with(RestartPolicy::Always)).await.expect("make");
    let vm = find(&daemon);
    world.machine.vanish(made.dir.as_ref());
    waits_for_a_start(&vm).await;
    let waiting = tokio::spawn({
        let vm = Arc::clone(&vm);
        async move { vm.ended().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "it has not ended for good");
    assert!(matches!(vm.end(Request::Stop, StopVm::default()).await, Ok(Outcome::AlreadySo)));
    let ended = waiting.await.expect("no panic").status;
    assert_eq!((ended.restarts, ended.next_start_ms), (0, None));
    let row = &daemon.store(Store::all).await.expect("rows")[0];
    let recorded = row.last.as_ref().expect("recorded");
    assert_eq!(recorded.next_start_ms, None, "before it was answered");

    done(vm.start(StartVm::default()).await).await;
    world.machine.vanish(made.dir.as_ref());
    waits_for_a_start(&vm).await;
    done(vm.remove(false).await).await;
    assert!(world.is_clean());
}

#[tokio::test]
async fn a_stop_of_what_ends_by_itself_keeps_it_so() {
    let world = World::new();
    let daemon = world.daemon().await;
    let made = make(&daemon, with(RestartPolicy::Always)).await.expect("make");
    let vm = find(&daemon);
    world.machine.winds_down(made.dir.as_ref());
    eventually("the end begins", || vm.state() == VmState::Stopping).await;
    assert!(matches!(vm.end(Request::Stop, StopVm::default()).await, Ok(Outcome::AlreadySo)));
    world.machine.end(made.dir.as_ref(), EndCause::MainExited);
    eventually("the end", || !vm.state().is_live()).await;
    let ended = shown(&vm).status;
    assert_eq!((ended.state, ended.next_start_ms), (VmState::Stopped, None));
}

#[tokio::test]
async fn who_waits_for_a_start_is_told_what_ended_it() {
    let world = World::new();
    let daemon = world.daemon().await;
    for (ttl_ms, part) in [(None, "stopped or removed meanwhile"), (Some(1), "time to live")] {
        let mut slow = request("web", true);
        slow.spec.ttl_ms = ttl_ms;
        world.machine.set_manner(Manner::Hangs);
        let operation = begin(&daemon, slow).await.expect("begun");
        eventually("the boot", || world.machine.alive() == 1).await;
        done(find(&daemon).end(Request::Stop, StopVm::default()).await).await;
        let problem = outcome(&daemon, &operation).await.expect_err("it did not start");
        assert!(problem.causes[0].contains(part), "{problem}");
        assert!(problem.hint.is_some());
        eventually("the end", || world.is_clean()).await;
    }
}

#[test]
fn a_pause_outlives_the_daemon() {
    let world = World::new();
    let due_ms = life(async {
        let daemon = world.daemon().await;
        let made = make(&daemon, with(RestartPolicy::Always)).await.expect("make");
        world.machine.end(made.dir.as_ref(), EndCause::MainExited);
        waits_for_a_start(&find(&daemon)).await.status.next_start_ms
    });
    life(async {
        let daemon = world.daemon().await;
        let vm = find(&daemon);
        let found = shown(&vm).status;
        assert_eq!((found.restarts, found.next_start_ms), (1, due_ms));
        eventually("the start", || vm.state() == VmState::Running).await;
        assert_eq!(world.machine.alive(), 1);
    });
}

#[tokio::test]
async fn a_start_that_fails_again_and_again_is_tried_less_and_less_often() {
    let world = World::new();
    let daemon = world.daemon().await;
    let made = make(&daemon, with(RestartPolicy::OnFailure)).await.expect("make");
    let vm = find(&daemon);
    world.machine.set_manner(Manner::Fails);
    world.machine.end(made.dir.as_ref(), EndCause::GuestPanic);
    let resting = rests_after(&vm, 2).await;
    let pause_ms = resting.next_start_ms.expect("a start") - resting.since_ms;
    assert!(pause_ms >= 2_000, "{pause_ms}");
    assert_eq!(resting.state, VmState::Failed);

    // The same for one that does not even come as far as a shim.
    world.machine.forget_artifacts();
    let resting = rests_after(&vm, 3).await;
    let end = resting.end.expect("an end");
    assert_eq!(end.cause, EndCause::LaunchFailed);
    assert!(end.reason.contains("no longer here"), "{}", end.reason);
    assert!(resting.next_start_ms.expect("a start") - resting.since_ms >= 4_000);
}

#[test]
fn after_a_power_cut_the_reason_is_told_and_what_should_run_is_started() {
    for (policy, runs) in [(RestartPolicy::No, false), (RestartPolicy::Always, true)] {
        let world = World::new();
        life(async { make(&world.daemon().await, with(policy)).await.expect("make") });
        world.machine.cut_power();
        life(async {
            let daemon = world.daemon().await;
            let vm = find(&daemon);
            let found = shown(&vm).status;
            let end = found.end.expect("an end");
            assert_eq!((found.state, end.cause), (VmState::Failed, EndCause::HostRestarted));
            assert_eq!(found.next_start_ms.is_some(), runs);
            if runs {
                eventually("the start", || vm.state() == VmState::Running).await;
            }
        });
    }
}

#[tokio::test]
async fn the_reason_of_an_end_without_a_word_is_what_shows() {
    let killed = Traces { exit: Some(ShimExit::Signaled(9)), ..Traces::default() };
    let table = [
        (killed, EndCause::ShimGone, "killed by signal 9, sender unknown"),
        (Traces { out_of_memory: true, ..killed }, EndCause::OutOfMemory, "out of memory"),
        (Traces::default(), EndCause::ShimGone, "cannot tell how"),
    ];
    for (traces, cause, part) in table {
        let world = World::new();
        let daemon = world.daemon().await;
        let made = make(&daemon, with(RestartPolicy::No)).await.expect("make");
        *world.machine.traces.lock().expect("not poisoned") = traces;
        world.machine.vanish(made.dir.as_ref());
        let end = find(&daemon).ended().await.status.end.expect("an end");
        assert_eq!(end.cause, cause);
        assert!(end.reason.contains(part), "{}", end.reason);
    }
}

#[tokio::test]
async fn a_directory_that_somebody_removed_is_noticed() {
    let world = World::new();
    let daemon = world.daemon().await;
    let made = make(&daemon, request("web", false)).await.expect("make");
    let vm = find(&daemon);
    std::fs::remove_dir_all(&made.dir).expect("remove");
    look(&daemon);
    eventually("the warning", || !shown(&vm).status.warnings.is_empty()).await;
    assert!(shown(&vm).status.warnings[0].contains("directory is missing"));
    vm.start(StartVm::default()).await.map(drop).expect("it is tried");
    done(vm.remove(true).await).await;
    assert!(world.is_clean());
}

fn brief() -> CreateVm {
    let mut request = request("web", true);
    request.spec.ttl_ms = Some(60_000);
    request
}

#[tokio::test]
async fn a_vm_whose_time_is_over_is_stopped_and_removed() {
    let world = World::new();
    let daemon = world.daemon().await;
    let made = make(&daemon, brief()).await.expect("make");
    assert_eq!(made.expires_at_ms, Some(made.created_at_ms + 60_000));
    let mut watch = Watch::default();
    let clocks = || daemon.host.machine.clocks();
    let pause = watch.look(&daemon, clocks());
    assert!(pause > Duration::ZERO && pause <= Duration::from_secs(10), "{pause:?}");

    // A clock that is set forward by a year is not time that has passed.
    world.machine.set_ahead_ms.store(31_536_000_000, Ordering::SeqCst);
    watch.look(&daemon, clocks());
    assert_eq!(list(&daemon).len(), 1);

    let mut events = daemon.events.subscribe(None, true);
    world.machine.pass(Duration::from_secs(61));
    watch.look(&daemon, clocks());
    watch.look(&daemon, clocks());
    eventually("the removal", || daemon.handles().is_empty()).await;
    assert!(world.is_clean());
    let mut kinds = Vec::new();
    while kinds.last() != Some(&EventType::VmRemoved) {
        kinds.push(events.next().await.expect("an event").kind);
    }
    let want = [EventType::VmExpired, EventType::VmStopped, EventType::VmRemoved];
    let told: Vec<_> = kinds.into_iter().filter(|kind| want.contains(kind)).collect();
    assert_eq!(told, want, "it was stopped, not killed, and once");
}

#[test]
fn time_goes_by_while_no_daemon_is_there() {
    let world = World::new();
    life(async { make(&world.daemon().await, brief()).await.expect("make") });
    world.machine.pass(Duration::from_secs(61));
    life(async {
        let daemon = world.daemon().await;
        let mut watch = Watch::default();
        watch.look(&daemon, daemon.host.machine.clocks());
        eventually("the removal", || daemon.handles().is_empty()).await;
        assert!(world.is_clean());
    });
}

#[test]
fn a_status_that_cannot_be_read_is_not_taken_for_anything() {
    for garbage in [&b""[..], b"{", b"\0\0\0\0", b"{\"state\":\"run"] {
        let world = World::new();
        let made = life(async { make(&world.daemon().await, with(RestartPolicy::No)).await });
        let dir = made.expect("make").dir;
        world.machine.cut_power();
        std::fs::write(Path::new(&dir).join(STATUS_FILE), garbage).expect("tear");
        life(async {
            let daemon = world.daemon().await;
            let found = shown(&find(&daemon)).status;
            assert_eq!(found.state, VmState::Failed);
            assert_eq!(found.end.map(|end| end.cause), Some(EndCause::HostRestarted));
        });
    }
}

async fn set(vm: &VmHandle, set: SetVm) {
    vm.change(Wanted { set, image: None }).await.expect("set");
}

#[tokio::test]
async fn a_changed_policy_counts_from_the_next_end_on() {
    let world = World::new();
    let daemon = world.daemon().await;
    let made = make(&daemon, with(RestartPolicy::No)).await.expect("make");
    let vm = find(&daemon);
    let policy = |policy| SetVm { restart: Some(policy), ..SetVm::default() };
    let mut events = daemon.events.subscribe(None, true);
    set(&vm, policy(RestartPolicy::OnFailure)).await;
    let told = events.next().await.expect("an event");
    assert_eq!((told.kind, told.reason.as_deref()), (EventType::VmChanged, Some("restart")));
    world.machine.end(made.dir.as_ref(), EndCause::GuestPanic);
    waits_for_a_start(&vm).await;

    // One that does not want the start that is due calls it off.
    set(&vm, policy(RestartPolicy::No)).await;
    let ended = vm.ended().await.status;
    assert_eq!((ended.state, ended.restarts), (VmState::Failed, 0));
    drop(daemon);
    let row = Store::open(&world.dirs.database()).expect("open").all().expect("rows").remove(0);
    assert_eq!(row.last.expect("recorded").next_start_ms, None, "nor does the next daemon");
}

#[tokio::test]
async fn a_changed_time_to_live_begins_anew() {
    let world = World::new();
    let daemon = world.daemon().await;
    make(&daemon, brief()).await.expect("make");
    let vm = find(&daemon);
    let mut watch = Watch::default();
    let clocks = || daemon.host.machine.clocks();
    let ttl = |ttl_ms| SetVm { ttl_ms: Some(ttl_ms), ..SetVm::default() };
    watch.look(&daemon, clocks());
    // That there is a VM was told.
    daemon.expiries.notified().await;
    set(&vm, ttl(0)).await;
    tokio::time::timeout(PATIENCE, daemon.expiries.notified()).await.expect("the watch is woken");
    world.machine.pass(Duration::from_secs(61));
    watch.look(&daemon, clocks());
    assert!(!vm.is_hidden() && vm.state() == VmState::Running, "it has no limit any more");

    set(&vm, ttl(120_000)).await;
    watch.look(&daemon, clocks());
    assert_eq!(vm.state(), VmState::Running);
    world.machine.pass(Duration::from_secs(120));
    watch.look(&daemon, clocks());
    eventually("the removal", || daemon.handles().is_empty()).await;
}
