//! The life of VMs on a simulated machine.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use banger_api::operation::{Operation, OperationResult};
use banger_api::shim::{LAUNCH_FILE, LaunchSpec};
use banger_api::step;
use banger_api::vm::{EndCause, OwnerPolicy, StartVm, StopVm, VmState};
use banger_api::{ErrorCode, Problem};
use banger_core::lifecycle::Request;
use banger_host::clock;
use futures_util::FutureExt;
use tokio::sync::Notify;

use super::{Outcome, VmHandle};
use crate::daemon::Daemon;
use crate::gate::trap::{Effect, Trap};
use crate::host::simulated::Manner;
use crate::system;
use crate::testing::{World, begin, eventually, holds_within, list, make, outcome, request};

/// Runs a daemon's life; when it is over everything the daemon was doing stops, as by `kill -9`.
pub(crate) fn life<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("runtime");
    runtime.block_on(future)
}

pub(crate) async fn finish(outcome: Result<Outcome, Problem>) -> Result<(), Problem> {
    match outcome? {
        Outcome::Accepted(work) => work.finished().await,
        Outcome::AlreadySo => Ok(()),
    }
}

pub(crate) async fn stop(vm: &VmHandle) -> Result<(), Problem> {
    finish(vm.end(Request::Stop, StopVm { grace_ms: 10 }).await).await
}

pub(crate) fn find(daemon: &Daemon, name: &str) -> Arc<VmHandle> {
    daemon.find(name).expect("the VM exists")
}

pub(super) fn cause(vm: &VmHandle) -> Option<EndCause> {
    vm.snapshot().status.end.map(|end| end.cause)
}

#[tokio::test]
async fn a_vm_lives_and_goes() {
    let world = World::new();
    let daemon = world.daemon().await;
    let made = make(&daemon, request("web", false)).await.expect("make");
    assert_eq!(made.status.state, VmState::Created);
    assert_eq!(made.image_digest, "sha256:image1");
    assert_eq!(made.disk_bytes, 8 << 30);

    let vm = find(&daemon, "web");
    finish(vm.start(StartVm::default()).await).await.expect("start");
    assert_eq!(vm.state(), VmState::Running);
    assert!(matches!(vm.start(StartVm::default()).await, Ok(Outcome::AlreadySo)));
    let denied = vm.remove(false).await.expect_err("it runs");
    assert_eq!(denied.code, ErrorCode::VmWrongState);

    stop(&vm).await.expect("stop");
    assert_eq!((vm.state(), cause(&vm)), (VmState::Stopped, Some(EndCause::Stopped)));
    assert!(matches!(vm.end(Request::Kill, StopVm::default()).await, Ok(Outcome::AlreadySo)));

    finish(vm.start(StartVm::default()).await).await.expect("start again");
    finish(vm.end(Request::Kill, StopVm::default()).await).await.expect("kill");
    assert_eq!(cause(&vm), Some(EndCause::Killed));

    finish(vm.remove(false).await).await.expect("remove");
    assert!(world.is_clean());
    assert_eq!(list(&daemon), []);
    let gone = daemon.find("web").expect_err("it is gone");
    assert_eq!(gone.code, ErrorCode::VmNotFound);
    assert_eq!(vm.start(StartVm::default()).await.expect_err("gone").code, ErrorCode::VmNotFound);
}

#[tokio::test]
async fn the_launch_file_says_what_image_vm_and_session_say() {
    let world = World::new();
    let daemon = world.daemon().await;
    let mut request = request("web", true);
    request.spec.env.insert("A".into(), "vm".into());
    request.spec.command = vec!["/bin/serve".into(), "-v".into()];
    request.spec.entrypoint = Some(vec!["/bin/entry".into()]);
    request.spec.stop_signal = Some("SIGQUIT".into());
    request.main = true;
    request.spec.timeout_ms = Some(5);
    request.spec.remove_on_exit = true;
    let start = StartVm {
        owner: Some(OwnerPolicy::Kill),
        cold: true,
        trace: false,
        session_env: [("https_proxy".into(), "http://proxy".into())].into(),
    };
    request.start = Some(start);
    let vm = make(&daemon, request).await.expect("make");
    let json = std::fs::read(std::path::Path::new(&vm.dir).join(LAUNCH_FILE)).expect("read");
    let launch: LaunchSpec = serde_json::from_slice(&json).expect("a launch spec");
    assert_eq!(launch.vm_id, vm.id);
    assert_eq!(launch.env["A"], "vm");
    assert_eq!(launch.env["https_proxy"], "http://proxy");
    assert_eq!(launch.workdir.as_deref(), Some("/srv"), "the image's");
    assert_eq!(launch.owner, Some(OwnerPolicy::Kill));
    assert!(!launch.durable, "there is nothing to save");
    let main = launch.main.expect("a main process");
    assert_eq!((main.argv.len(), main.timeout_ms), (3, Some(5)));
    assert_eq!(launch.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(vm.spec.entrypoint, Some(vec!["/bin/entry".to_owned()]));
}

#[tokio::test]
async fn a_vm_that_goes_when_it_ends_goes() {
    let world = World::new();
    let daemon = world.daemon().await;
    for cause in [EndCause::MainExited, EndCause::GuestPanic] {
        let mut request = request("once", true);
        request.spec.remove_on_exit = true;
        let made = make(&daemon, request).await.expect("make");
        let vm = find(&daemon, "once");
        world.machine.end(made.dir.as_ref(), cause);
        let ended = vm.ended().await;
        assert_eq!(ended.status.end.map(|end| end.cause), Some(cause), "waiters see how it ended");
        eventually("the removal", || world.is_clean()).await;
        eventually("its end in the list", || list(&daemon).is_empty()).await;
    }
}

#[tokio::test]
async fn a_restart_keeps_a_vm_that_goes_when_it_ends() {
    let world = World::new();
    let daemon = world.daemon().await;
    let mut request = request("once", true);
    request.spec.remove_on_exit = true;
    make(&daemon, request).await.expect("make");
    let vm = find(&daemon, "once");
    finish(vm.end(Request::Restart, StopVm::default()).await).await.expect("first half");
    assert_eq!(vm.state(), VmState::Stopped);
    finish(vm.start(StartVm::default()).await).await.expect("second half");
    stop(&vm).await.expect("stop");
    eventually("the removal", || world.is_clean()).await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_half_made_vm() {
    let world = World::new();
    let daemon = world.daemon().await;
    for (manner, code) in
        [(Manner::Fails, ErrorCode::GuestPanic), (Manner::Dies, ErrorCode::BootFailed)]
    {
        world.machine.set_manner(manner);
        let problem = make(&daemon, request("web", true)).await.expect_err("it fails");
        assert_eq!(problem.code, code);
        assert!(world.is_clean(), "{manner:?}");
        assert_eq!(list(&daemon), []);
    }
}

#[tokio::test]
async fn a_start_that_fails_is_shown_and_can_be_repeated() {
    let world = World::new();
    let daemon = world.daemon().await;
    make(&daemon, request("web", false)).await.expect("make");
    let vm = find(&daemon, "web");
    world.machine.set_manner(Manner::Fails);
    let problem = finish(vm.start(StartVm::default()).await).await.expect_err("it fails");
    assert_eq!(problem.code, ErrorCode::GuestPanic);
    eventually("the state", || vm.state() == VmState::Failed).await;
    assert_eq!(cause(&vm), Some(EndCause::GuestPanic), "what the shim wrote");

    world.machine.set_manner(Manner::Dies);
    finish(vm.start(StartVm::default()).await).await.expect_err("it dies");
    eventually("the state", || cause(&vm) == Some(EndCause::LaunchFailed)).await;

    world.machine.set_manner(Manner::Good);
    finish(vm.start(StartVm::default()).await).await.expect("start");
    assert_eq!(vm.state(), VmState::Running);
}

/// Waits until an operation has a shim at work, and cancels it.
async fn cancel_while_booting(world: &World, daemon: &Arc<Daemon>, operation: &Operation) {
    eventually("the boot", || world.machine.alive() == 1).await;
    daemon.operations.cancel(&operation.id).expect("known");
}

#[tokio::test]
async fn a_cancelled_run_is_gone_when_it_says_so() {
    let world = World::new();
    let daemon = world.daemon().await;
    world.machine.set_manner(Manner::Hangs);
    let operation = begin(&daemon, request("web", true)).await.expect("begin");
    cancel_while_booting(&world, &daemon, &operation).await;
    let problem = outcome(&daemon, &operation).await.expect_err("cancelled");
    assert_eq!(problem.code, ErrorCode::Cancelled);
    assert!(world.is_clean());
    assert_eq!(list(&daemon), []);
}

#[tokio::test]
async fn a_cancelled_pull_leaves_no_vm() {
    let world = World::new();
    let daemon = world.daemon().await;
    let mut request = request("web", true);
    request.spec.kernel = None;
    world.machine.forget_artifacts();
    world.machine.slow_pulls.store(true, Ordering::SeqCst);
    let operation = begin(&daemon, request.clone()).await.expect("begin");
    let taken = begin(&daemon, request.clone()).await.expect_err("the name is reserved");
    assert_eq!(taken.code, ErrorCode::VmNameTaken);
    daemon.operations.cancel(&operation.id).expect("known");
    let problem = outcome(&daemon, &operation).await.expect_err("cancelled");
    assert_eq!(problem.code, ErrorCode::Cancelled);
    assert!(world.is_clean());

    world.machine.slow_pulls.store(false, Ordering::SeqCst);
    make(&daemon, request).await.expect("the name is free again");
    assert_eq!(world.machine.pulls.load(Ordering::SeqCst), 2, "an image and a kernel");
}

#[tokio::test]
async fn a_starting_vm_can_be_killed_and_removed() {
    let world = World::new();
    let daemon = world.daemon().await;
    make(&daemon, request("web", false)).await.expect("make");
    let vm = find(&daemon, "web");
    world.machine.set_manner(Manner::Hangs);

    let Ok(Outcome::Accepted(starting)) = vm.start(StartVm::default()).await else {
        panic!("it can be started")
    };
    eventually("the boot", || world.machine.alive() == 1).await;
    assert_eq!(vm.state(), VmState::Starting);
    stop(&vm).await.expect("stop");
    assert_eq!(starting.finished().await.expect_err("cancelled").code, ErrorCode::Cancelled);
    assert_eq!((vm.state(), cause(&vm)), (VmState::Stopped, Some(EndCause::Killed)));

    let _starting = vm.start(StartVm::default()).await.expect("start");
    eventually("the boot", || world.machine.alive() == 1).await;
    assert_eq!(vm.remove(false).await.expect_err("it starts").code, ErrorCode::VmWrongState);
    finish(vm.remove(true).await).await.expect("remove");
    assert!(world.is_clean());
}

#[tokio::test]
async fn a_deaf_shim_is_killed_and_the_vm_says_so() {
    let world = World::new();
    let daemon = world.daemon().await;
    world.machine.set_manner(Manner::Deaf);
    make(&daemon, request("web", true)).await.expect("make");
    let vm = find(&daemon, "web");
    stop(&vm).await.expect("stop");
    assert_eq!((vm.state(), cause(&vm)), (VmState::Stopped, Some(EndCause::StopTimedOut)));
    assert_eq!(vm.snapshot().status.warnings.len(), 1);

    finish(vm.start(StartVm::default()).await).await.expect("start");
    finish(vm.remove(true).await).await.expect("remove");
    assert!(world.is_clean());
}

#[tokio::test]
async fn two_removals_at_once_both_see_the_end() {
    let world = World::new();
    let daemon = world.daemon().await;
    make(&daemon, request("web", true)).await.expect("make");
    let vm = find(&daemon, "web");
    let (first, second) = tokio::join!(vm.remove(true), vm.remove(true));
    let (first, second) = tokio::join!(finish(first), finish(second));
    assert_eq!((first, second), (Ok(()), Ok(())));
    assert!(world.is_clean());
}

#[test]
fn vms_outlive_the_daemon() {
    let world = World::new();
    life(async {
        let daemon = world.daemon().await;
        for name in ["runs", "ends", "vanishes", "removed", "created"] {
            let mut request = request(name, name != "created");
            request.spec.remove_on_exit = name == "removed";
            make(&daemon, request).await.expect("make");
        }
    });
    let dirs = life(async {
        let daemon = world.daemon().await;
        ["ends", "vanishes", "removed"].map(|name| find(&daemon, name).snapshot().dir)
    });
    world.machine.end(dirs[0].as_ref(), EndCause::GuestPowerOff);
    world.machine.vanish(dirs[1].as_ref());
    world.machine.end(dirs[2].as_ref(), EndCause::MainExited);
    for _ in 0..2 {
        life(async {
            let daemon = world.daemon().await;
            assert_eq!(find(&daemon, "runs").state(), VmState::Running);
            assert_eq!(find(&daemon, "created").state(), VmState::Created);
            assert_eq!(cause(&find(&daemon, "ends")), Some(EndCause::GuestPowerOff));
            assert_eq!(cause(&find(&daemon, "vanishes")), Some(EndCause::ShimGone));
            eventually("the removal", || list(&daemon).len() == 4).await;
        });
    }
    life(async {
        let daemon = world.daemon().await;
        stop(&find(&daemon, "runs")).await.expect("an adopted VM obeys");
        assert_eq!(cause(&find(&daemon, "runs")), Some(EndCause::Stopped));
    });
}

#[tokio::test]
async fn names_are_generated_checked_and_kept_apart() {
    let world = World::new();
    let daemon = world.daemon().await;
    let mut nameless = request("", false);
    nameless.name = None;
    let first = make(&daemon, nameless.clone()).await.expect("make");
    let second = make(&daemon, nameless).await.expect("make");
    assert_ne!(first.name, second.name);
    let taken = make(&daemon, request(&first.name, false)).await.expect_err("taken");
    assert_eq!(taken.code, ErrorCode::VmNameTaken);
    let bad = make(&daemon, request("Not A Name", false)).await.expect_err("bad");
    assert_eq!(bad.code, ErrorCode::InvalidArgument);
    assert!(bad.hint.is_some());
}

#[tokio::test]
async fn nothing_is_begun_that_cannot_end_well() {
    let world = World::new();
    let daemon = world.daemon().await;
    let with = |change: fn(&mut banger_api::vm::VmSpec)| {
        let mut request = request("web", true);
        change(&mut request.spec);
        request
    };
    let cases = [
        (with(|spec| spec.image = "debian-bokworm".into()), ErrorCode::ImageNotFound),
        (with(|spec| spec.kernel = Some("debian-clout".into())), ErrorCode::KernelNotFound),
        (with(|spec| spec.memory_mib = 1), ErrorCode::InvalidArgument),
        (with(|spec| spec.disk_bytes = Some(1 << 20)), ErrorCode::InvalidArgument),
    ];
    for (request, code) in cases {
        let problem = make(&daemon, request).await.expect_err("refused");
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.hint.is_some(), "{problem}");
    }
    world.machine.used_bytes.store((1 << 40) - 1, Ordering::SeqCst);
    let full = make(&daemon, request("web", true)).await.expect_err("the disk is full");
    assert_eq!(full.code, ErrorCode::HostDiskFull);
    assert!(world.is_clean());
    assert_eq!(list(&daemon), []);
}

#[test]
fn a_reset_waits_for_a_vm_that_is_being_made_and_removes_it() {
    for step in [step::CREATE_ROW, step::CREATE_DIRECTORY, step::CREATE_DISK] {
        life(async {
            let world = World::new();
            let go_on = Arc::new(Notify::new());
            let trap = Trap::at(step, Effect::Hold(Arc::clone(&go_on)));
            let daemon = world.daemon_with(trap.gate()).await;
            let creation = begin(&daemon, request("web", false)).await.expect("begin");
            trap.reached.notified().await;
            let (all, is_over) = (Arc::clone(&daemon), Arc::new(AtomicBool::new(false)));
            let over = Arc::clone(&is_over);
            let reset = daemon.operations.start("reset", |operation| async move {
                let done = system::reset(all, operation).await;
                over.store(true, Ordering::SeqCst);
                done
            });
            // The clock of this test stands still as long as anybody has something to do.
            let is_over = || is_over.load(Ordering::SeqCst);
            assert!(!holds_within(Duration::from_secs(1), is_over).await, "{step}");
            go_on.notify_one();
            outcome(&daemon, &creation).await.expect("it was made");
            outcome(&daemon, &reset).await.expect("reset");
            assert_eq!(list(&daemon), [], "{step}");
            assert!(world.is_clean(), "{step}");
        });
    }
}

#[tokio::test]
async fn an_operation_shows_the_vm() {
    let world = World::new();
    let daemon = world.daemon().await;
    let operation = begin(&daemon, request("web", true)).await.expect("begin");
    assert_eq!(operation.description, "run vm web");
    let result = outcome(&daemon, &operation).await.expect("make");
    let OperationResult::Vm(vm) = result else { panic!("{result:?}") };
    assert_eq!(vm.status.state, VmState::Running);
}

#[tokio::test]
async fn an_end_is_over_also_if_somebody_has_started_the_vm_again() {
    let world = World::new();
    let daemon = world.daemon().await;
    make(&daemon, request("web", true)).await.expect("make");
    let vm = find(&daemon, "web");
    let asked_ms = clock::now_ms();
    stop(&vm).await.expect("stop");
    finish(vm.start(StartVm::default()).await).await.expect("start");
    let ended = vm.ended_since(asked_ms).now_or_never().expect("its own end is over");
    assert_eq!(ended.status.state, VmState::Running);
    assert!(vm.ended_since(clock::now_ms() + 1).now_or_never().is_none(), "this run goes on");
}
