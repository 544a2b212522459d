//! Pausing VMs and having them go on, on a simulated machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use banger_api::event::EventType;
use banger_api::step;
use banger_api::vm::{EndCause, PauseReason, StartVm, StopVm, VmState};
use banger_api::{ErrorCode, Problem};
use banger_core::lifecycle::Request;
use banger_core::standstill::Happening;
use tokio::sync::Notify;

use super::tests::{cause, find, finish, life, stop};
use super::{Outcome, VmHandle};
use crate::daemon::Daemon;
use crate::gate::trap::{Effect, Trap};
use crate::host::simulated::Manner;
use crate::testing::{World, eventually, list, make, request};

async fn turn(vm: &VmHandle, request: Request) -> Result<(), Problem> {
    finish(vm.turn(request).await).await
}

/// A VM called web that is paused, and its directory.
async fn paused(daemon: &Arc<Daemon>) -> (Arc<VmHandle>, PathBuf) {
    let made = make(daemon, request("web", true)).await.expect("make");
    let vm = find(daemon, "web");
    turn(&vm, Request::Pause).await.expect("pause");
    (vm, PathBuf::from(made.dir))
}

fn reasons(vm: &VmHandle) -> Vec<PauseReason> {
    vm.snapshot().status.paused
}

#[tokio::test]
async fn a_vm_stands_still_and_goes_on_as_often_as_somebody_wants() {
    let world = World::new();
    let daemon = world.daemon().await;
    let (vm, _) = paused(&daemon).await;
    for (request, state, paused) in [
        (Request::Pause, VmState::Paused, &[PauseReason::Requested][..]),
        (Request::Resume, VmState::Running, &[]),
        (Request::Resume, VmState::Running, &[]),
        (Request::Pause, VmState::Paused, &[PauseReason::Requested]),
    ] {
        turn(&vm, request).await.expect("done, or so already");
        assert_eq!((vm.state(), &reasons(&vm)[..]), (state, paused), "{request:?}");
    }
    let mut events = daemon.events.subscribe(Some(0), false);
    let mut told = Vec::new();
    while let Some(event) = events.next().await {
        if matches!(event.kind, EventType::VmPaused | EventType::VmResumed) {
            told.push((event.kind, event.reason));
        }
    }
    let by_request = Some("requested".to_owned());
    let pause = (EventType::VmPaused, by_request);
    assert_eq!(told, [pause.clone(), (EventType::VmResumed, None), pause]);
}

#[tokio::test]
async fn what_is_wished_first_is_done_first() {
    let world = World::new();
    let go_on = Arc::new(Notify::new());
    let trap = Trap::at(step::PAUSE_ASK, Effect::Hold(Arc::clone(&go_on)));
    let daemon = world.daemon_with(trap.gate()).await;
    make(&daemon, request("web", true)).await.expect("make");
    let vm = find(&daemon, "web");
    let wishes = [Request::Pause, Request::Resume, Request::Pause, Request::Resume];
    let mut works = Vec::new();
    for wish in wishes {
        match vm.turn(wish).await.expect("nothing is against it") {
            Outcome::Accepted(work) => works.push(work),
            Outcome::AlreadySo => panic!("the first is still to come"),
        }
    }
    trap.reached.notified().await;
    assert_eq!(vm.state(), VmState::Running);
    go_on.notify_one();
    for work in works {
        work.finished().await.expect("done");
    }
    assert_eq!(vm.state(), VmState::Running, "the last wish is the one that counts");
}

#[tokio::test]
async fn what_does_not_run_is_neither_paused_nor_resumed() {
    let world = World::new();
    let daemon = world.daemon().await;
    make(&daemon, request("web", false)).await.expect("make");
    let vm = find(&daemon, "web");
    let denied = async |request, title: &str, hint: &str| {
        let problem = turn(&vm, request).await.expect_err(title);
        assert_eq!(problem.code, ErrorCode::VmWrongState);
        assert_eq!((&*problem.title, problem.hint.as_deref()), (title, Some(hint)));
    };
    let start = "banger start web";
    denied(Request::Pause, "VM web is created, so it cannot be paused", start).await;
    world.machine.set_manner(Manner::Hangs);
    let _starting = vm.start(StartVm::default()).await.expect("begun");
    eventually("the boot", || world.machine.alive() == 1).await;
    denied(Request::Resume, "VM web is starting, so it cannot be resumed", start).await;
    stop(&vm).await.expect("stop");
    denied(Request::Resume, "VM web is stopped, so it cannot be resumed", start).await;
}

#[tokio::test]
async fn a_paused_vm_can_be_ended_in_every_way_and_is_not_started() {
    let world = World::new();
    let daemon = world.daemon().await;
    let (vm, _) = paused(&daemon).await;
    let problem = vm.start(StartVm::default()).await.expect_err("it is paused");
    assert_eq!(problem.hint.as_deref(), Some("banger resume web"));
    assert_eq!(vm.remove(false).await.expect_err("it lives").code, ErrorCode::VmWrongState);
    let promoted = vm.lend_root().await.expect_err("it lives");
    assert_eq!(promoted.hint.as_deref(), Some("banger stop web"));

    stop(&vm).await.expect("stop");
    assert_eq!((cause(&vm), reasons(&vm)), (Some(EndCause::Stopped), Vec::new()));
    for (request, want) in
        [(Request::Kill, EndCause::Killed), (Request::Restart, EndCause::Stopped)]
    {
        finish(vm.start(StartVm::default()).await).await.expect("start");
        turn(&vm, Request::Pause).await.expect("pause");
        finish(vm.end(request, StopVm::default()).await).await.expect("end");
        assert_eq!(cause(&vm), Some(want), "{request:?}");
    }
    finish(vm.start(StartVm::default()).await).await.expect("start");
    turn(&vm, Request::Pause).await.expect("pause");
    finish(vm.remove(true).await).await.expect("remove");
    assert!(world.is_clean());
}

#[tokio::test]
async fn a_full_disk_and_a_request_do_not_undo_each_other() {
    let world = World::new();
    let daemon = world.daemon().await;
    let (vm, dir) = paused(&daemon).await;
    let both = [PauseReason::Requested, PauseReason::HostDiskFull];
    world.machine.happens(&dir, Happening::DiskFull);
    eventually("both reasons", || reasons(&vm) == both).await;
    world.machine.happens(&dir, Happening::DiskHasSpace);
    eventually("one reason", || reasons(&vm) == both[..1]).await;
    assert_eq!(vm.state(), VmState::Paused, "somebody wanted it");

    world.machine.happens(&dir, Happening::DiskFull);
    eventually("both reasons", || reasons(&vm) == both).await;
    world.machine.full.store(true, Ordering::SeqCst);
    let problem = turn(&vm, Request::Resume).await.expect_err("the disk is full");
    assert_eq!(problem.code, ErrorCode::HostDiskFull);
    eventually("the other reason", || reasons(&vm) == both[1..]).await;
    turn(&vm, Request::Pause).await.expect("pause");
    assert_eq!(reasons(&vm), both);
    world.machine.full.store(false, Ordering::SeqCst);
    turn(&vm, Request::Resume).await.expect("resume");
    assert_eq!((vm.state(), reasons(&vm)), (VmState::Running, Vec::new()));
}

#[tokio::test]
async fn a_shim_that_cannot_pause_or_does_not_answer_is_told_and_can_be_killed() {
    let world = World::new();
    let daemon = world.daemon().await;
    world.machine.set_manner(Manner::Old);
    make(&daemon, request("web", true)).await.expect("make");
    let vm = find(&daemon, "web");
    let problem = turn(&vm, Request::Pause).await.expect_err("it is too old");
    assert_eq!(problem.code, ErrorCode::VmWrongState);
    insta::assert_snapshot!(
        problem,
        @"VM web can neither be paused nor resumed: it was started by an older release of banger"
    );
    assert_eq!(problem.hint.as_deref(), Some("banger restart web"));
    turn(&vm, Request::Resume).await.expect("it runs anyway");

    world.machine.set_manner(Manner::Deaf);
    let problem = turn(&vm, Request::Pause).await.expect_err("nobody answers");
    insta::assert_snapshot!(problem, @"VM web was not paused: no answer");
    assert_eq!(vm.state(), VmState::Running);
    finish(vm.end(Request::Kill, StopVm::default()).await).await.expect("kill");
}

#[tokio::test]
async fn a_vm_that_ends_before_its_turn_comes_is_told_with_its_state() {
    let world = World::new();
    let go_on = Arc::new(Notify::new());
    let trap = Trap::at(step::PAUSE_ASK, Effect::Hold(Arc::clone(&go_on)));
    let daemon = world.daemon_with(trap.gate()).await;
    make(&daemon, request("web", true)).await.expect("make");
    let vm = find(&daemon, "web");
    let Ok(Outcome::Accepted(first)) = vm.turn(Request::Pause).await else { panic!("it runs") };
    let Ok(Outcome::Accepted(next)) = vm.turn(Request::Pause).await else { panic!("it runs") };
    trap.reached.notified().await;
    finish(vm.end(Request::Kill, StopVm::default()).await).await.expect("it does not wait");
    go_on.notify_one();
    for work in [first, next] {
        let problem = work.finished().await.expect_err("it has ended");
        assert_eq!(problem.title, "VM web is stopped, so it cannot be paused");
    }
}

#[test]
fn the_next_daemon_finds_it_paused() {
    let world = World::new();
    let dir = life(async { paused(&world.daemon().await).await.1 });
    world.machine.happens(&dir, Happening::DiskFull);
    let both = [PauseReason::Requested, PauseReason::HostDiskFull];
    life(async {
        let daemon = world.daemon().await;
        let vm = find(&daemon, "web");
        assert_eq!((vm.state(), &reasons(&vm)[..]), (VmState::Paused, &both[..]));
        turn(&vm, Request::Resume).await.expect("resume");
        assert_eq!(vm.state(), VmState::Running);
        turn(&vm, Request::Pause).await.expect("pause");
        world.machine.vanish(&dir);
        eventually("its end", || vm.state() == VmState::Failed).await;
        assert_eq!(reasons(&vm), []);
    });
}

#[tokio::test]
async fn a_paused_vm_expires_and_is_set_like_one_that_runs() {
    let world = World::new();
    let daemon = world.daemon().await;
    let (vm, _) = paused(&daemon).await;
    let mut wanted = super::Wanted::default();
    wanted.set.cpus = Some(3);
    wanted.set.ttl_ms = Some(1);
    vm.change(wanted).await.expect("set");
    let pending: Vec<String> =
        vm.snapshot().pending.into_iter().map(|change| change.setting).collect();
    assert_eq!(pending, ["cpus"]);
    let at_ms = vm.snapshot().expires_at_ms.expect("it expires");
    finish(vm.expire(at_ms).await).await.expect("it goes");
    assert_eq!(list(&daemon), []);
    assert!(world.is_clean());
}
