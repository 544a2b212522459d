//! Copies of running VMs, on a simulated machine.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use banger_api::event::EventType;
use banger_api::fork::{ForkVm, Forked, MAX_COPIES};
use banger_api::operation::OperationResult;
use banger_api::shim::{Begin, COW_FILE, LAUNCH_FILE, LaunchSpec, Was};
use banger_api::step::{self, Failing};
use banger_api::vm::{StartVm, Vm};
use banger_api::{ErrorCode, Problem};

use super::fork::Fork;
use super::tests::{find, finish, stop};
use crate::daemon::Daemon;
use crate::gate::trap::{Effect, Trap};
use crate::host::simulated::Manner;
use crate::testing::{World, list, make, outcome, request};

const ON_THE_DISK: &[u8] = b"the disk of web";

fn copies(count: u32) -> ForkVm {
    ForkVm { count, name: None, keep_env: false, session_env: [].into() }
}

fn named(name: &str, count: u32) -> ForkVm {
    ForkVm { name: Some(name.to_owned()), ..copies(count) }
}

async fn fork(daemon: &Arc<Daemon>, wanted: ForkVm) -> Result<Forked, Problem> {
    let fork = Fork::check(daemon, find(daemon, "web"), wanted).await?;
    let operation = daemon.operations.start(fork.description(), |handle| fork.run(handle));
    match outcome(daemon, &operation).await? {
        OperationResult::Forked(forked) => Ok(*forked),
        other => panic!("{other:?}"),
    }
}

/// A VM called web that runs, with a secret in its environment and something on its disk.
async fn web(daemon: &Arc<Daemon>) -> Vm {
    let mut web = request("web", true);
    web.spec.env.insert("TOKEN".into(), "hush".into());
    let web = make(daemon, web).await.expect("make");
    std::fs::write(Path::new(&web.dir).join(COW_FILE), ON_THE_DISK).expect("write");
    web
}

/// The beginning of its disk, which is a large file with holes.
fn beginning(vm: &Vm) -> [u8; ON_THE_DISK.len()] {
    let mut found = [0; ON_THE_DISK.len()];
    let disk = std::fs::File::open(Path::new(&vm.dir).join(COW_FILE)).expect("open");
    (&disk).read_exact(&mut found).expect("read");
    found
}

fn launched(vm: &Vm) -> LaunchSpec {
    let json = std::fs::read(Path::new(&vm.dir).join(LAUNCH_FILE)).expect("read");
    serde_json::from_slice(&json).expect("a launch spec")
}

fn is_shelf_empty(world: &World) -> bool {
    std::fs::read_dir(world.dirs.templates()).into_iter().flatten().next().is_none()
}

#[tokio::test]
async fn a_vm_that_another_release_started_is_not_copied() {
    let world = World::new();
    let daemon = world.daemon().await;
    let web = web(&daemon).await;
    for machine in [None, Some("0123".to_owned())] {
        let launch = LaunchSpec { machine, ..launched(&web) };
        super::write_launch_file(&Path::new(&web.dir).join(LAUNCH_FILE), &launch).expect("write");
        let problem = fork(&daemon, copies(1)).await.expect_err("it would not go on");
        assert_eq!(problem.code, ErrorCode::VmWrongState);
        assert_eq!(problem.causes, ["it was started by an older release of banger"]);
        assert_eq!(problem.hint.as_deref(), Some("banger restart web"));
    }
    assert!(world.machine.alive() == 1 && is_shelf_empty(&world), "it runs on");
}

#[tokio::test]
async fn copies_have_the_disk_and_go_on_from_the_memory_and_are_somebody_else() {
    let world = World::new();
    let daemon = world.daemon().await;
    let web = web(&daemon).await;
    let forked = fork(&daemon, named("try", 2)).await.expect("forked");
    assert_eq!((forked.paused_ms, forked.capture_ms), (3, 70));
    let names: Vec<&str> = forked.vms.iter().map(|vm| &*vm.name).collect();
    assert_eq!(names, ["try-1", "try-2"]);
    let original = launched(&web);
    for vm in &forked.vms {
        let launch = launched(vm);
        assert!(
            matches!(launch.begin, Begin::Restore { was: Was::Another, .. }),
            "{:?}",
            launch.begin
        );
        assert!(launch.vm_id != original.vm_id && launch.machine_id != original.machine_id);
        assert_eq!((&launch.name, launch.memory_mib), (&vm.name, original.memory_mib));
        assert!(!launch.env.contains_key("TOKEN") && !vm.spec.env.contains_key("TOKEN"));
        assert_eq!(beginning(vm), ON_THE_DISK);
    }
    assert!(world.machine.alive() == 3 && is_shelf_empty(&world), "what was saved is gone");
    let mut events = daemon.events.subscribe(Some(0), false);
    let mut created = 0;
    while let Some(event) = events.next().await {
        created += usize::from(event.kind == EventType::VmCreated);
    }
    assert_eq!(created, 3);
    let kept = ForkVm { keep_env: true, ..copies(1) };
    let vm = &fork(&daemon, kept).await.expect("forked").vms[0];
    assert_eq!(launched(vm).env.get("TOKEN").map(String::as_str), Some("hush"));
}

#[tokio::test]
async fn a_copy_that_ended_boots_like_any_vm() {
    let world = World::new();
    let daemon = world.daemon().await;
    web(&daemon).await;
    let forked = fork(&daemon, named("copy", 1)).await.expect("forked");
    let copy = find(&daemon, "copy");
    stop(&copy).await.expect("stop");
    finish(copy.start(StartVm::default()).await).await.expect("start");
    assert_eq!(launched(&forked.vms[0]).begin, Begin::Boot);
}

#[tokio::test]
async fn what_cannot_be_copied_says_why() {
    let world = World::new();
    let daemon = world.daemon().await;
    make(&daemon, request("web", false)).await.expect("make");
    let refused = async |wanted, code, title: &str, hint: &str| {
        let problem = fork(&daemon, wanted).await.expect_err(title);
        let told = (problem.code, &*problem.title, problem.hint.as_deref());
        assert_eq!(told, (code, title, Some(hint)), "{problem}");
        assert!(is_shelf_empty(&world), "{title}");
    };
    let wrong = ErrorCode::VmWrongState;
    let title = "VM web is created, and only a running VM can be forked";
    refused(copies(1), wrong, title, "banger start web").await;
    let web = find(&daemon, "web");
    finish(web.start(StartVm::default()).await).await.expect("start");
    let invalid = ErrorCode::InvalidArgument;
    for (count, title) in [
        (0, "0 copies at once are none, or too many"),
        (MAX_COPIES + 1, "65 copies at once are none, or too many"),
    ] {
        refused(copies(count), invalid, title, "from 1 to 64 copies can be made at once").await;
    }
    refused(
        named("web", 1),
        ErrorCode::VmNameTaken,
        "a VM called web exists",
        "banger rm web, or choose another --name",
    )
    .await;
    world.machine.set_manner(Manner::Old);
    refused(copies(1), wrong, "VM web cannot be saved while it runs", "banger restart web").await;
    world.machine.set_manner(Manner::Mute);
    let title = "VM web was not saved";
    refused(copies(1), ErrorCode::Internal, title, "banger show web").await;
    world.machine.set_manner(Manner::Good);
    world.machine.used_bytes.store((1 << 40) - (300 << 20), Ordering::SeqCst);
    let title = "the host's disk is nearly full";
    refused(copies(1), ErrorCode::HostDiskFull, title, "banger system df").await;
    assert_eq!((list(&daemon).len(), world.machine.alive()), (1, 1));
}

#[tokio::test]
async fn a_copy_that_fails_takes_the_others_along_and_not_the_vm() {
    for at in [
        step::FORK_CAPTURE,
        step::FORK_DISKS,
        step::CREATE_ROW,
        step::START_SPAWN,
        step::CREATE_FINISH,
    ] {
        let world = World::new();
        let trap = Trap::at(at, Effect::Fail(Failing::Eio));
        let daemon = world.daemon().await;
        web(&daemon).await;
        drop(daemon);
        let daemon = world.daemon_with(trap.gate()).await;
        fork(&daemon, named("try", 3)).await.expect_err("it fails");
        let names: Vec<String> = list(&daemon).into_iter().map(|vm| vm.name).collect();
        assert_eq!((names, world.machine.alive()), (vec!["web".to_owned()], 1), "{}", at.name());
        assert!(is_shelf_empty(&world), "{}", at.name());
    }
}

#[tokio::test]
async fn a_copy_that_does_not_go_on_never_boots_instead() {
    let world = World::new();
    let daemon = world.daemon().await;
    web(&daemon).await;
    world.machine.bad_templates.store(true, Ordering::SeqCst);
    let problem = fork(&daemon, named("copy", 1)).await.expect_err("it cannot");
    assert_eq!(problem.code, ErrorCode::BootFailed);
    assert_eq!(problem.title, "the copy copy did not go on from what was saved");
    assert_eq!((list(&daemon).len(), world.machine.alive()), (1, 1));
}
