//! What is left to the next look, or to the next daemon, when something fails half-way, on a
//! simulated machine.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use banger_api::ErrorCode;
use banger_api::change::SetVm;
use banger_api::step::{self, Failing};
use banger_api::vm::{EndCause, RestartPolicy, StartVm, StopVm, VmState};
use banger_core::lifecycle::{Desired, Request};

use super::expiry::Watch;
use super::tests::{find, finish, stop};
use super::{Outcome, Wanted};
use crate::daemon::Daemon;
use crate::gate::trap::{Effect, Trap};
use crate::host::simulated::Manner;
use crate::reconcile::{keep_looking, look};
use crate::store::{Store, VmRow};
use crate::testing::{World, begin, eventually, list, make, outcome, request};

/// Runs a daemon's life; when it is over everything the daemon was doing stops, as by `kill -9`.
fn life<F: Future>(future: F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(future)
}

async fn row(daemon: &Daemon) -> VmRow {
    daemon.store(Store::all).await.expect("rows").remove(0)
}

fn full() -> Effect {
    Effect::Fail(Failing::Enospc)
}

#[tokio::test]
async fn a_vm_whose_removal_has_begun_is_not_started_again() {
    let world = World::new();
    let trap = Trap::at(step::REMOVE_RENAME, full());
    let daemon = world.daemon_with(trap.gate()).await;
    make(&daemon, request("web", false)).await.expect("make");
    let vm = find(&daemon, "web");
    finish(vm.remove(false).await).await.expect_err("it cannot be removed");
    assert_eq!(list(&daemon).len(), 1, "it is shown");
    let refused = vm.start(StartVm::default()).await.expect_err("the next look would end it");
    assert_eq!(refused.code, ErrorCode::VmWrongState);
    look(&daemon);
    eventually("the removal", || daemon.handles().is_empty()).await;
    assert!(world.is_clean());
}

#[tokio::test]
async fn an_end_that_could_not_be_recorded_is_at_the_next_look() {
    let world = World::new();
    let trap = Trap::at(step::STOP_RECORD, full());
    let daemon = world.daemon_with(trap.gate()).await;
    let mut request = request("web", true);
    request.spec.restart = RestartPolicy::Always;
    make(&daemon, request).await.expect("make");
    let vm = find(&daemon, "web");
    stop(&vm).await.expect("it has stopped, recorded or not");
    assert!(trap.has_sprung());
    assert_eq!(row(&daemon).await.desired, Desired::Running);
    look(&daemon);
    // The task takes one thing after the other.
    assert!(matches!(vm.end(Request::Stop, StopVm::default()).await, Ok(Outcome::AlreadySo)));
    let recorded = row(&daemon).await;
    assert_eq!(recorded.desired, Desired::Stopped);
    assert_eq!(
        recorded.last.and_then(|last| last.end).map(|end| end.cause),
        Some(EndCause::Stopped)
    );
}

#[tokio::test]
async fn a_creation_that_cannot_be_undone_is_shown_and_goes_later() {
    let world = World::new();
    let trap = Trap::at_each(&[step::CREATE_DISK, step::REMOVE_MARK], full());
    let daemon = world.daemon_with(trap.gate()).await;
    let operation = begin(&daemon, request("web", false)).await.expect("begun");
    outcome(&daemon, &operation).await.expect_err("the disk is full");
    assert!(trap.has_sprung());
    // It is tried again at once, now that there is room.
    eventually("the removal", || daemon.handles().is_empty()).await;
    assert!(daemon.store(Store::all).await.expect("rows").is_empty());
    assert!(world.is_clean());
    make(&daemon, request("web", false)).await.expect("its name is free");
}

#[test]
fn a_vm_that_goes_when_it_ends_goes_also_if_the_daemon_dies_in_between() {
    let world = World::new();
    let trap = Trap::at(step::REMOVE_MARK, Effect::Crash);
    life(async {
        let daemon = world.daemon_with(trap.gate()).await;
        let mut request = request("web", true);
        request.spec.remove_on_exit = true;
        let made = make(&daemon, request).await.expect("make");
        world.machine.end(made.dir.as_ref(), EndCause::MainExited);
        trap.reached.notified().await;
    });
    life(async {
        let daemon = world.daemon().await;
        eventually("the removal", || daemon.handles().is_empty()).await;
        assert!(world.is_clean());
    });
}

/// Its supervisor has written its last word, and is about to let go of the lock.
#[test]
fn a_vm_found_at_its_very_end_is_not_taken_for_one_that_runs() {
    let world = World::new();
    let dir = life(async {
        let daemon = world.daemon().await;
        let made = make(&daemon, request("web", true)).await.expect("make");
        made.dir
    });
    world.machine.has_written(dir.as_ref(), EndCause::GuestPowerOff);
    life(async {
        let daemon = world.daemon().await;
        let vm = find(&daemon, "web");
        let refused = vm.start(StartVm::default()).await.expect_err("it is not over yet");
        assert_eq!(refused.code, ErrorCode::VmWrongState);
        world.machine.vanish(dir.as_ref());
        let ended = vm.ended().await.status;
        assert_eq!(ended.end.map(|end| end.cause), Some(EndCause::GuestPowerOff));
        finish(vm.start(StartVm::default()).await).await.expect("it can be started again");
    });
}

/// A VM whose shim has begun to stop it, and gets no further.
fn stopping() -> World {
    let world = World::new();
    life(async {
        let daemon = world.daemon().await;
        let made = make(&daemon, request("web", true)).await.expect("make");
        world.machine.winds_down(made.dir.as_ref());
    });
    world
}

#[test]
fn a_stop_that_its_shim_hangs_in_is_seen_through_by_the_next_daemon() {
    let world = stopping();
    world.machine.set_manner(Manner::Deaf);
    super::tests::life(async {
        let daemon = world.daemon().await;
        find(&daemon, "web").ended().await;
        assert_eq!(world.machine.alive(), 0);
    });
}

/// It still answers, but nothing comes of it.
#[test]
fn a_stop_that_a_shim_hangs_in_can_be_asked_for_again() {
    let world = stopping();
    super::tests::life(async {
        let daemon = world.daemon().await;
        let vm = find(&daemon, "web");
        let asked = tokio::time::Instant::now();
        stop(&vm).await.expect("it ends already");
        vm.ended().await;
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
        assert_eq!(world.machine.alive(), 0);
    });
}

/// Nobody has to ask: a daemon looks by itself, every now and then.
#[test]
fn a_removal_that_failed_is_tried_again() {
    let world = World::new();
    let trap = Trap::at(step::REMOVE_RENAME, full());
    super::tests::life(async {
        let daemon = world.daemon_with(trap.gate()).await;
        make(&daemon, request("web", false)).await.expect("make");
        finish(find(&daemon, "web").remove(false).await).await.expect_err("it cannot be removed");
        tokio::spawn(keep_looking(Arc::clone(&daemon)));
        eventually("the removal", || daemon.handles().is_empty()).await;
        assert!(world.is_clean());
    });
}

#[tokio::test]
async fn more_time_to_live_is_refused_when_it_goes_and_else_counts() {
    let world = World::new();
    let daemon = world.daemon().await;
    let mut brief = request("web", true);
    brief.spec.ttl_ms = Some(60_000);
    let made = make(&daemon, brief).await.expect("make");
    let vm = find(&daemon, "web");
    let at_ms = made.expires_at_ms.expect("a moment");
    let more =
        || Wanted { set: SetVm { ttl_ms: Some(120_000), ..SetVm::default() }, ..Wanted::default() };
    vm.change(more()).await.expect("there is time");
    // Judged by what was so before.
    assert!(matches!(vm.expire(at_ms).await, Ok(Outcome::AlreadySo)));
    assert_eq!(vm.state(), VmState::Running);

    world.machine.set_manner(Manner::Ignores);
    world.machine.pass(Duration::from_secs(121));
    Watch::default().look(&daemon, daemon.host.machine.clocks());
    eventually("its last stop", || vm.state() == VmState::Stopping).await;
    let refused = vm.change(more()).await.expect_err("it goes");
    assert!(refused.title.contains("is being removed"), "{refused}");
    world.machine.end(made.dir.as_ref(), EndCause::Stopped);
    eventually("the removal", || daemon.handles().is_empty()).await;
}

#[tokio::test]
async fn a_tree_that_cannot_be_deleted_keeps_nobody_from_anything() {
    let world = World::new();
    std::fs::create_dir(world.dirs.vms()).expect("create");
    // What is no directory cannot be deleted as one.
    std::fs::write(world.dirs.vms().join(".deleting-0123456789ab"), "").expect("write");
    let daemon = world.daemon().await;
    make(&daemon, request("web", false)).await.expect("it serves");
}
