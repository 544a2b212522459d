//! Snapshots on a simulated machine.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use banger_api::change::SetVm;
use banger_api::event::EventType;
use banger_api::operation::OperationResult;
use banger_api::shim::{Begin, COW_FILE, LAUNCH_FILE, LaunchSpec, MEMORY_FILE, WORK_FILE, Was};
use banger_api::snapshot::{CreateSnapshot, RestoreSnapshot, Restored, Snapshot};
use banger_api::step::{self, Failing};
use banger_api::vm::{StartVm, Vm, VmState};
use banger_api::{ErrorCode, Problem};
use banger_core::lifecycle::Request;
use tokio::sync::Notify;

use super::{GoingBack, Record, Taking, list, remove, show, users_of_image};
use crate::daemon::Daemon;
use crate::gate::trap::{Effect, Trap};
use crate::host::simulated::Manner;
use crate::saved::Manifest;
use crate::testing::{PATIENCE, World, eventually, make, outcome, request};
use crate::vm::Wanted;
use crate::vm::tests::{find, finish, stop};

async fn take(daemon: &Arc<Daemon>, name: Option<&str>) -> Result<Snapshot, Problem> {
    let wanted = CreateSnapshot { name: name.map(str::to_owned) };
    let taking = Taking::check(daemon, find(daemon, "web"), wanted).await?;
    let operation = daemon.operations.start(taking.description(), |handle| taking.run(handle));
    match outcome(daemon, &operation).await? {
        OperationResult::Snapshot(snapshot) => Ok(*snapshot),
        other => panic!("{other:?}"),
    }
}

async fn restore(daemon: &Arc<Daemon>, name: &str) -> Result<Restored, Problem> {
    let request = RestoreSnapshot::default();
    let back = GoingBack::check(daemon, find(daemon, "web"), name, request).await?;
    let operation = daemon.operations.start(back.description(), |handle| back.run(handle));
    match outcome(daemon, &operation).await? {
        OperationResult::Restored(restored) => Ok(*restored),
        other => panic!("{other:?}"),
    }
}

async fn names(daemon: &Arc<Daemon>) -> Vec<String> {
    let all = list(daemon, None).await.expect("listed");
    all.into_iter().map(|snapshot| snapshot.name).collect()
}

fn write(vm: &Vm, file: &str, text: &str) {
    std::fs::write(Path::new(&vm.dir).join(file), text).expect("write");
}

fn disk(vm: &Vm, file: &str) -> String {
    let mut bytes = Vec::new();
    let disk = std::fs::File::open(Path::new(&vm.dir).join(file)).expect("open");
    // It is large, and a hole after that.
    disk.take(64).read_to_end(&mut bytes).expect("read");
    let text = bytes.into_iter().take_while(|byte| *byte != 0).collect();
    String::from_utf8(text).expect("text")
}

fn launched(vm: &Vm) -> LaunchSpec {
    let json = std::fs::read(Path::new(&vm.dir).join(LAUNCH_FILE)).expect("read");
    serde_json::from_slice(&json).expect("a launch spec")
}

fn dir(vm: &Vm, snapshot: &str) -> PathBuf {
    Path::new(&vm.dir).join(super::SNAPSHOTS).join(snapshot)
}

/// A VM called web that runs, with a work disk.
async fn web(daemon: &Arc<Daemon>) -> Vm {
    let mut web = request("web", true);
    web.spec.work_disk_bytes = Some(1 << 30);
    let web = make(daemon, web).await.expect("make");
    write(&web, COW_FILE, "early");
    write(&web, WORK_FILE, "early work");
    web
}

fn half_made(world: &World) -> usize {
    std::fs::read_dir(world.dirs.templates()).into_iter().flatten().count()
}

/// The same, with a snapshot called early and a disk that was written since.
async fn web_that_went_on(daemon: &Arc<Daemon>) -> Vm {
    let web = web(daemon).await;
    take(daemon, Some("early")).await.expect("taken");
    write(&web, COW_FILE, "late");
    web
}

#[tokio::test]
async fn a_vm_that_runs_goes_back_to_its_memory_and_its_disks_and_forward_again() {
    let world = World::new();
    let daemon = world.daemon().await;
    let web = web(&daemon).await;
    let before = launched(&web);
    let first = take(&daemon, None).await.expect("taken");
    assert_eq!((first.name.as_str(), &*first.vm, first.automatic), ("snapshot-1", "web", false));
    assert_eq!(first.memory.as_ref().map(|memory| memory.paused_ms), Some(3));
    assert!(!dir(&web, "snapshot-1").join("lock").exists() && half_made(&world) == 0);
    write(&web, COW_FILE, "late");
    write(&web, WORK_FILE, "late work");

    let restored = restore(&daemon, "snapshot-1").await.expect("restored");
    assert_eq!((restored.vm.status.state, &*restored.undo), (VmState::Running, "auto-1"));
    assert_eq!(
        (disk(&web, COW_FILE), disk(&web, WORK_FILE)),
        ("early".into(), "early work".into())
    );
    let after = launched(&web);
    let saved = dir(&web, "snapshot-1").to_string_lossy().into_owned();
    assert_eq!(after.begin, Begin::Restore { saved, was: Was::Itself });
    assert_eq!((after.machine_id, after.name), (before.machine_id, before.name), "it is itself");
    assert!(half_made(&world) == 0 && world.machine.alive() == 1);

    let undo = show(&daemon, &find(&daemon, "web"), "auto-1").await.expect("kept");
    assert!(undo.automatic && undo.memory.is_some());
    let restored = restore(&daemon, "auto-1").await.expect("undone");
    assert_eq!(restored.undo, "auto-2");
    assert_eq!((disk(&web, COW_FILE), disk(&web, WORK_FILE)), ("late".into(), "late work".into()));
    for _ in 0..3 {
        restore(&daemon, "snapshot-1").await.expect("restored");
    }
    assert_eq!(names(&daemon).await, ["snapshot-1", "auto-3", "auto-4", "auto-5"]);
    let mut told = Vec::new();
    let mut events = daemon.events.subscribe(Some(0), false);
    while let Some(event) = events.next().await {
        if matches!(event.kind, EventType::SnapshotMade | EventType::SnapshotRestored) {
            told.push((event.kind.as_str(), event.reason.expect("the snapshot")));
        }
    }
    let first = [("snapshot.made", "snapshot-1"), ("snapshot.made", "auto-1")];
    assert_eq!(told[..2], first.map(|(kind, name)| (kind, name.to_owned())));
}

#[tokio::test]
async fn a_vm_that_does_not_run_goes_back_to_its_disks_and_does_not_run() {
    let world = World::new();
    let daemon = world.daemon().await;
    let web = web(&daemon).await;
    stop(&find(&daemon, "web")).await.expect("stop");
    assert!(take(&daemon, Some("clean")).await.expect("taken").memory.is_none());
    assert!(!dir(&web, "clean").join(MEMORY_FILE).exists());
    write(&web, COW_FILE, "late");
    finish(find(&daemon, "web").start(StartVm::default()).await).await.expect("start");

    // Snapshots outlive the daemon that made them.
    drop(daemon);
    let daemon = world.daemon().await;
    let restored = restore(&daemon, "clean").await.expect("restored");
    assert_eq!((restored.vm.status.state, world.machine.alive()), (VmState::Stopped, 0));
    assert_eq!(disk(&web, COW_FILE), "early");
    assert!(show(&daemon, &find(&daemon, "web"), "auto-1").await.expect("kept").memory.is_some());
    finish(find(&daemon, "web").start(StartVm::default()).await).await.expect("start");
    assert_eq!((launched(&web).begin, disk(&web, COW_FILE)), (Begin::Boot, "early".into()));
    stop(&find(&daemon, "web")).await.expect("stop");
    finish(find(&daemon, "web").remove(false).await).await.expect("remove");
    assert!(world.is_clean(), "its snapshots go with it");
}

#[tokio::test]
async fn settings_go_back_with_the_disks_and_what_the_daemon_acts_on_stays() {
    let world = World::new();
    let daemon = world.daemon().await;
    let web = web(&daemon).await;
    let set = async |set| {
        let wanted = Wanted { set, image: None };
        find(&daemon, "web").change(wanted).await.expect("set")
    };
    // What is pending is no part of what runs.
    set(SetVm { cpus: Some(2), disk_bytes: Some(16 << 30), ..SetVm::default() }).await;
    let snapshot = take(&daemon, Some("small")).await.expect("taken");
    assert_eq!((snapshot.cpus, snapshot.disk_bytes), (web.spec.cpus, web.disk_bytes));
    stop(&find(&daemon, "web")).await.expect("stop");
    let label = [("team".to_owned(), Some("a".to_owned()))].into();
    set(SetVm { work_disk_bytes: Some(0), labels: label, ..SetVm::default() }).await;

    let vm = restore(&daemon, "small").await.expect("restored").vm;
    assert_eq!((vm.spec.cpus, vm.disk_bytes), (web.spec.cpus, web.disk_bytes));
    assert_eq!(vm.spec.work_disk_bytes, Some(1 << 30));
    assert_eq!(vm.spec.labels.get("team").map(String::as_str), Some("a"));
    assert_eq!(disk(&web, WORK_FILE), "early work");
    let vm = restore(&daemon, "auto-1").await.expect("undone").vm;
    assert_eq!((vm.spec.cpus, vm.disk_bytes, vm.spec.work_disk_bytes), (2, 16 << 30, None));
}

#[tokio::test]
async fn what_cannot_be_used_says_why_and_changes_nothing() {
    let world = World::new();
    let daemon = world.daemon().await;
    let web = web(&daemon).await;
    let vm = find(&daemon, "web");
    let spoil = async |name: &str, how: &dyn Fn(&Path)| {
        take(&daemon, Some(name)).await.expect("taken");
        how(&dir(&web, name));
        let problem = restore(&daemon, name).await.expect_err(name);
        assert_eq!(problem.code, ErrorCode::SnapshotUnusable, "{problem}");
        assert_eq!(problem.title, format!("the snapshot {name} of VM web cannot be used"));
        assert!(problem.hint.is_some(), "{problem}");
        problem.causes.join("; ")
    };
    let rewrite = |dir: &Path, file: &str, text: &str| {
        std::fs::remove_file(dir.join(file)).expect("remove");
        std::fs::write(dir.join(file), text).expect("write");
    };
    // As another host would have written it.
    let replace = |dir: &Path, from: &str, to: &str| {
        let manifest = std::fs::read_to_string(dir.join(super::MANIFEST)).expect("read");
        assert!(manifest.contains(from), "{manifest}");
        let manifest: Manifest<Record> =
            serde_json::from_str(&manifest.replace(from, to)).expect("a manifest");
        std::fs::remove_file(dir.join(super::MANIFEST)).expect("remove");
        manifest.write(dir, super::MANIFEST).expect("write");
    };
    let cause = spoil("altered", &|dir| rewrite(dir, COW_FILE, "eaRly")).await;
    assert_eq!(cause, "root.cow is not what it was: it has another digest");
    let cause = spoil("short", &|dir| rewrite(dir, MEMORY_FILE, "mem")).await;
    assert_eq!(cause, "memory is not what it was: it has another size");
    let cause = spoil("elsewhere", &|dir| replace(dir, "\"simulated\"", "\"another\"")).await;
    assert_eq!(cause, "its guest ran by another 1 (tcg) and here is simulated 1 (tcg)");
    let cpu = "\"cpu\": \"simulated\"";
    let cause = spoil("moved", &|dir| replace(dir, cpu, "\"cpu\": \"a 486\"")).await;
    assert_eq!(cause, "its guest ran on another processor: a 486, and this one is simulated");
    let cause = spoil("foreign", &|dir| replace(dir, &web.id, "aaaaaaaaaaaa")).await;
    assert_eq!(cause, "it was made of another VM");
    let image = &web.image_digest;
    let cause = spoil("old", &|dir| replace(dir, image, "sha256:gone")).await;
    assert_eq!(cause, "its image debian-bookworm (sha256:gone) is no longer here");
    let machine = banger_host::qemu::arguments::machine_digest(&launched(&web));
    let cause = spoil("upgraded", &|dir| replace(dir, &machine, "0123")).await;
    assert_eq!(cause, "its guest ran in another machine: it was made by another release of banger");
    let unreadable = "its snapshot.json cannot be read";
    let cause = spoil("torn", &|dir| rewrite(dir, super::MANIFEST, "{")).await;
    assert_eq!(cause, unreadable);
    let edited = |dir: &Path| {
        let manifest = std::fs::read_to_string(dir.join(super::MANIFEST)).expect("read");
        rewrite(dir, super::MANIFEST, &manifest.replace("\"cpus\": 1", "\"cpus\": 2"));
    };
    assert_eq!(spoil("edited", &edited).await, unreadable);
    assert_eq!(vm.state(), VmState::Running, "nothing has happened to it");
    for name in ["altered", "torn"] {
        remove(&daemon, &vm, name).await.expect("also a damaged one goes");
    }
    assert!(names(&daemon).await.len() == 6 && half_made(&world) == 0);
}

#[tokio::test]
async fn what_cannot_be_made_says_why() {
    let world = World::new();
    let daemon = world.daemon().await;
    web(&daemon).await;
    let vm = find(&daemon, "web");
    take(&daemon, Some("one")).await.expect("taken");
    let told = |problem: Problem| (problem.code, problem.title, problem.hint.unwrap_or_default());
    let refused = async |name| told(take(&daemon, Some(name)).await.expect_err(name));
    let (code, title, hint) = refused("one").await;
    assert_eq!((code, &*title), (ErrorCode::SnapshotNameTaken, "VM web has a snapshot one"));
    assert_eq!(hint, "banger snapshot rm web one, or choose another name");
    let (code, title, _) = refused("auto-7").await;
    assert_eq!(code, ErrorCode::InvalidArgument);
    assert_eq!(title, "names that begin with auto- are those of automatic snapshots");
    for name in ["../one", "One", "", "."] {
        assert_eq!(refused(name).await.0, ErrorCode::InvalidArgument, "{name}");
    }
    let problem = restore(&daemon, "on").await.expect_err("there is none");
    let (code, title, hint) = told(problem);
    assert_eq!((code, &*title), (ErrorCode::SnapshotNotFound, "VM web has no snapshot \"on\""));
    assert_eq!(hint, "did you mean one?");
    let problem = remove(&daemon, &vm, "../../web").await.expect_err("there is none");
    assert_eq!(problem.code, ErrorCode::SnapshotNotFound);

    world.machine.set_manner(Manner::Old);
    let (code, title, hint) = refused("two").await;
    let want = "VM web cannot be saved while it runs";
    assert_eq!((code, &*title, &*hint), (ErrorCode::VmWrongState, want, "banger restart web"));
    world.machine.set_manner(Manner::Good);
    world.machine.used_bytes.store((1 << 40) - (300 << 20), Ordering::SeqCst);
    assert_eq!(refused("two").await.0, ErrorCode::HostDiskFull);
    assert_eq!(names(&daemon).await, ["one"]);
}

#[tokio::test]
async fn a_way_back_that_breaks_off_anywhere_loses_nothing() {
    let before_the_end = [
        step::RESTORE_DISKS,
        step::PAUSE_ASK,
        step::SNAPSHOT_CAPTURE,
        step::SNAPSHOT_SEAL,
        step::SNAPSHOT_PUBLISH,
        step::RESTORE_END,
    ];
    let after = [step::RESTORE_PLACE, step::RESTORE_ROW, step::RESTORE_SETTLE, step::START_SPAWN];
    for at in before_the_end.into_iter().chain(after) {
        let world = World::new();
        let daemon = world.daemon().await;
        let web = web_that_went_on(&daemon).await;
        drop(daemon);
        let trap = Trap::at(at, Effect::Fail(Failing::Eio));
        let daemon = world.daemon_with(trap.gate()).await;
        restore(&daemon, "early").await.expect_err(at.name());
        assert!(trap.has_sprung() && half_made(&world) == 0, "{at}");
        if before_the_end.contains(&at) {
            assert_eq!(find(&daemon, "web").state(), VmState::Running, "{at}: it goes on");
            assert_eq!(
                (names(&daemon).await, disk(&web, COW_FILE)),
                (vec!["early".into()], "late".into())
            );
        }
        drop(daemon);
        let daemon = world.daemon().await;
        restore(&daemon, "early").await.expect("it can be repeated");
        assert_eq!((disk(&web, COW_FILE), world.machine.alive()), ("early".into(), 1), "{at}");
        let automatic = names(&daemon).await.into_iter().find(|name| name.starts_with("auto-"));
        restore(&daemon, &automatic.expect("kept")).await.expect("undone");
        assert_eq!(disk(&web, COW_FILE), "late", "{at}: what it was is kept");
    }
}

#[tokio::test]
async fn a_vm_that_goes_with_its_end_has_no_snapshots() {
    let world = World::new();
    let daemon = world.daemon().await;
    let mut wanted = request("web", true);
    wanted.spec.remove_on_exit = true;
    make(&daemon, wanted).await.expect("make");
    let problem = take(&daemon, None).await.expect_err("it goes");
    assert_eq!(problem.title, "VM web has no snapshots: it goes when it ends");
    assert_eq!(problem.code, ErrorCode::VmWrongState);
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

/// Ends a daemon, as by `kill -9`, at a step of a restore; what a new one finds comes back.
fn end_at(world: &World, at: step::Step) -> VmState {
    let trap = Trap::at(at, Effect::Crash);
    runtime().block_on(async {
        let daemon = world.daemon_with(trap.gate()).await;
        let request = RestoreSnapshot::default();
        let back = GoingBack::check(&daemon, find(&daemon, "web"), "early", request).await;
        let back = back.expect("it can be restored");
        daemon.operations.start(back.description(), |handle| back.run(handle));
        tokio::time::timeout(PATIENCE, trap.reached.notified()).await.expect("the step is reached");
    });
    runtime().block_on(async {
        let daemon = world.daemon().await;
        let web = find(&daemon, "web");
        let stays = || !matches!(web.state(), VmState::Paused | VmState::Stopping);
        eventually("it goes on, or has ended", stays).await;
        eventually("nothing half-made is left", || half_made(world) == 0).await;
        assert!(!world.dirs.vm(web.id.as_str()).join("going-back").exists(), "{at}");
        web.state()
    })
}

#[test]
fn a_daemon_that_dies_as_a_vm_stands_still_has_it_go_on_by_the_next() {
    for (at, goes_on) in [
        (step::SNAPSHOT_CAPTURE, true),
        (step::SNAPSHOT_SEAL, true),
        (step::SNAPSHOT_PUBLISH, true),
        (step::RESTORE_END, true),
        // It has been ended for this.
        (step::RESTORE_PLACE, false),
        (step::RESTORE_ROW, false),
        (step::RESTORE_SETTLE, false),
    ] {
        let world = World::new();
        runtime().block_on(async { web_that_went_on(&world.daemon().await).await });
        assert_eq!(end_at(&world, at) == VmState::Running, goes_on, "{at}");
    }
}

#[tokio::test]
async fn a_vm_that_somebody_else_wakes_or_changes_does_not_go_back() {
    for wakes in [true, false] {
        let world = World::new();
        let daemon = world.daemon().await;
        let web = web_that_went_on(&daemon).await;
        drop(daemon);
        let go_on = Arc::new(Notify::new());
        let trap = Trap::at(step::SNAPSHOT_SEAL, Effect::Hold(Arc::clone(&go_on)));
        let daemon = world.daemon_with(trap.gate()).await;
        let all = Arc::clone(&daemon);
        let restoring = tokio::spawn(async move { restore(&all, "early").await });
        trap.reached.notified().await;
        let vm = find(&daemon, "web");
        if wakes {
            finish(vm.turn(Request::Resume).await).await.expect("resumed");
        } else {
            let set = SetVm { cpus: Some(2), ..SetVm::default() };
            vm.change(Wanted { set, image: None }).await.expect("set");
        }
        go_on.notify_one();
        let problem = restoring.await.expect("no panic").expect_err("it is another one");
        assert!(problem.to_string().contains("meanwhile"), "{problem}");
        assert_eq!((vm.state(), disk(&web, COW_FILE)), (VmState::Running, "late".into()));
        assert_eq!(names(&daemon).await, ["early"], "there is nothing to undo");
    }
}

#[tokio::test]
async fn a_vm_that_stood_still_goes_back_and_runs() {
    let world = World::new();
    let daemon = world.daemon().await;
    web(&daemon).await;
    take(&daemon, Some("early")).await.expect("taken");
    finish(find(&daemon, "web").turn(Request::Pause).await).await.expect("paused");
    take(&daemon, Some("still")).await.expect("taken");
    assert_eq!(find(&daemon, "web").state(), VmState::Paused, "it stays so");
    for name in ["early", "still"] {
        restore(&daemon, name).await.expect("restored");
        assert_eq!(find(&daemon, "web").state(), VmState::Running, "{name}");
    }
}

#[tokio::test]
async fn a_guest_that_does_not_go_on_says_where_what_was_is() {
    let world = World::new();
    let daemon = world.daemon().await;
    web(&daemon).await;
    take(&daemon, Some("early")).await.expect("taken");
    world.machine.bad_templates.store(true, Ordering::SeqCst);
    let problem = restore(&daemon, "early").await.expect_err("it does not");
    assert_eq!(problem.title, "VM web did not go back to its snapshot early");
    assert!(problem.causes[0].starts_with("VM web did not go on from what was saved"), "{problem}");
    let hint = "what it was is kept: banger snapshot restore web auto-1";
    assert_eq!(problem.hint.as_deref(), Some(hint));
    world.machine.bad_templates.store(false, Ordering::SeqCst);
    restore(&daemon, "auto-1").await.expect("undone");
}

#[tokio::test]
async fn a_work_disk_that_nobody_had_used_is_new_again() {
    let world = World::new();
    let daemon = world.daemon().await;
    let mut wanted = request("web", false);
    wanted.spec.work_disk_bytes = Some(1 << 30);
    let web = make(&daemon, wanted).await.expect("make");
    take(&daemon, Some("unused")).await.expect("taken");
    finish(find(&daemon, "web").start(StartVm::default()).await).await.expect("start");
    let fresh = disk(&web, WORK_FILE);
    write(&web, WORK_FILE, "used");
    restore(&daemon, "unused").await.expect("restored");
    assert_eq!(disk(&web, WORK_FILE), fresh);
    restore(&daemon, "auto-1").await.expect("undone");
    assert_eq!(disk(&web, WORK_FILE), "used");
}

#[tokio::test]
async fn the_image_of_a_snapshot_is_in_use() {
    let world = World::new();
    let daemon = world.daemon().await;
    let web = web(&daemon).await;
    assert!(users_of_image(&daemon, &web.image_digest).await.expect("asked").is_empty());
    take(&daemon, None).await.expect("taken");
    let users = users_of_image(&daemon, &web.image_digest).await.expect("asked");
    assert_eq!(users, ["web".to_owned()].into());
}
