//! Changing VMs on a simulated machine.

use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use banger_api::ErrorCode;
use banger_api::change::{Applies, SetVm};
use banger_api::shim::{COW_FILE, LAUNCH_FILE, LaunchSpec, WORK_FILE};
use banger_api::step::{self, Failing};
use banger_api::vm::{RestartPolicy, StartVm, StopVm};
use banger_core::lifecycle::Request;
use banger_host::cow;

use crate::daemon::Daemon;
use crate::gate::trap::{Effect, Trap};
use crate::testing::{World, make, request};
use crate::vm::{Outcome, VmHandle, Wanted, disks};

const GIB: u64 = 1 << 30;

/// Runs a daemon's life; when it is over everything the daemon was doing stops, as by `kill -9`.
fn life<F: Future>(future: F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(future)
}

fn find(daemon: &Daemon) -> Arc<VmHandle> {
    daemon.find("web").expect("the VM exists")
}

async fn start(vm: &VmHandle) {
    match vm.start(StartVm::default()).await.expect("allowed") {
        Outcome::Accepted(work) => work.finished().await.expect("it starts"),
        Outcome::AlreadySo => panic!("it ran already"),
    }
}

async fn stop(vm: &VmHandle) {
    match vm.end(Request::Stop, StopVm { grace_ms: 10 }).await.expect("allowed") {
        Outcome::Accepted(work) => work.finished().await.expect("it stops"),
        Outcome::AlreadySo => panic!("it did not run"),
    }
}

/// A VM that runs, with a work disk.
async fn with_work_disk(daemon: &Arc<Daemon>) -> Arc<VmHandle> {
    let mut request = request("web", true);
    request.spec.work_disk_bytes = Some(GIB);
    make(daemon, request).await.expect("make");
    find(daemon)
}

fn dir(vm: &VmHandle) -> PathBuf {
    PathBuf::from(vm.snapshot().dir)
}

fn launch(dir: &Path) -> LaunchSpec {
    let json = std::fs::read(dir.join(LAUNCH_FILE)).expect("it was started");
    serde_json::from_slice(&json).expect("a launch spec")
}

fn bytes(file: &Path) -> Option<u64> {
    std::fs::metadata(file).ok().map(|found| found.len())
}

fn set(set: SetVm) -> Wanted {
    Wanted { set, image: None }
}

fn work(bytes: u64) -> Wanted {
    set(SetVm { work_disk_bytes: Some(bytes), ..SetVm::default() })
}

/// The image called `name`, and a root disk of it.
pub(in crate::vm) fn image(daemon: &Daemon, digest: &str) -> Wanted {
    let mut image = daemon.host.artifacts.images().expect("listed").remove(0);
    image.name = "other".to_owned();
    image.digest = digest.to_owned();
    let set = SetVm { image: Some(image.name.clone()), ..SetVm::default() };
    Wanted { set, image: Some(image) }
}

/// Whether a file, which may be as large as a disk, begins as the tests' own do.
fn is_ours(file: &Path) -> bool {
    let mut begin = [0; 4];
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && begin == *b"data"
}

/// Names of root disks in a VM's directory.
pub(in crate::vm) fn roots(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).expect("listed").flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("root.cow")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_running_vm_has_the_rest_at_its_next_start() {
    let world = World::new();
    let daemon = world.daemon().await;
    make(&daemon, request("web", true)).await.expect("make");
    let vm = find(&daemon);
    let wanted = SetVm {
        cpus: Some(4),
        memory_mib: Some(2048),
        disk_bytes: Some(20 * GIB),
        work_disk_bytes: Some(GIB),
        image: None,
        labels: [("team".to_owned(), Some("a".to_owned()))].into(),
        restart: Some(RestartPolicy::OnFailure),
        ttl_ms: Some(60_000_000),
    };
    let changes = vm.change(set(wanted.clone())).await.expect("allowed");
    let settings = |applies: Applies| -> Vec<&str> {
        let those = changes.iter().filter(|change| change.applies == applies);
        those.map(|change| change.setting.as_str()).collect()
    };
    assert_eq!(settings(Applies::NextStart), ["cpus", "memory", "disk", "work-disk"]);
    assert_eq!(settings(Applies::Now), ["label team", "restart", "ttl"]);
    let shown = vm.snapshot();
    assert_eq!((shown.spec.cpus, shown.disk_bytes), (4, 20 * GIB));
    assert_eq!(shown.spec.labels["team"], "a");
    assert!(shown.expires_at_ms.is_some_and(|at| at > shown.created_at_ms + 59_000_000));
    assert_eq!(shown.pending.len(), 4, "{:?}", shown.pending);
    assert_eq!(launch(&dir(&vm)).cpus, 1, "it runs as it was");
    assert_eq!(bytes(&dir(&vm).join(COW_FILE)), Some(cow::store_bytes(8 * GIB)));
    let again = SetVm { ttl_ms: None, ..wanted };
    assert_eq!(vm.change(set(again)).await.expect("allowed"), [], "it is so already");

    stop(&vm).await;
    assert_eq!(vm.snapshot().pending, [], "nothing runs that could differ");
    start(&vm).await;
    let launched = launch(&dir(&vm));
    assert_eq!((launched.cpus, launched.memory_mib), (4, 2048));
    assert_eq!((launched.disk_bytes, launched.work_disk_bytes), (20 * GIB, Some(GIB)));
    assert_eq!(bytes(&dir(&vm).join(COW_FILE)), Some(cow::store_bytes(20 * GIB)));
    assert_eq!(bytes(&dir(&vm).join(WORK_FILE)), Some(GIB));
    assert_eq!(vm.snapshot().pending, []);
}

#[test]
fn what_was_set_is_so_for_the_next_daemon_also_of_a_vm_that_runs() {
    let world = World::new();
    let pending = life(async {
        let daemon = world.daemon().await;
        make(&daemon, request("web", true)).await.expect("make");
        let vm = find(&daemon);
        vm.change(set(SetVm { cpus: Some(2), ..SetVm::default() })).await.expect("allowed");
        vm.snapshot().pending
    });
    assert_eq!(pending.len(), 1);
    life(async {
        let daemon = world.daemon().await;
        let shown = find(&daemon).snapshot();
        assert_eq!(shown.spec.cpus, 2);
        assert_eq!(shown.pending, pending, "what its shim says it has is compared");
    });
}

#[tokio::test]
async fn a_work_disk_grows_and_goes_only_when_nobody_uses_it() {
    let world = World::new();
    let daemon = world.daemon().await;
    let vm = with_work_disk(&daemon).await;
    let disk = dir(&vm).join(WORK_FILE);
    assert_eq!(bytes(&disk), Some(GIB));
    let refused = vm.change(work(0)).await.expect_err("it runs");
    assert_eq!(refused.code, ErrorCode::VmWrongState);
    assert_eq!(refused.hint.as_deref(), Some("banger stop web"));
    vm.change(work(2 * GIB)).await.expect("larger");
    let refused = vm.change(work(GIB)).await.expect_err("smaller");
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
    stop(&vm).await;
    std::fs::write(&disk, "data").expect("write");
    start(&vm).await;
    assert_eq!(bytes(&disk), Some(2 * GIB));
    assert!(is_ours(&disk));
    stop(&vm).await;
    vm.change(work(0)).await.expect("it does not run");
    assert_eq!(bytes(&disk), None);
    start(&vm).await;
    assert_eq!(launch(&dir(&vm)).work_disk_bytes, None);
}

#[test]
fn a_daemon_that_dies_while_it_changes_a_vm_has_done_it_or_not() {
    for step in [step::SET_ROW, step::SET_WORK_DISK] {
        let world = World::new();
        let trap = Trap::at(step, Effect::Crash);
        let disk = life(async {
            let daemon = world.daemon_with(trap.gate()).await;
            let vm = with_work_disk(&daemon).await;
            stop(&vm).await;
            let disk = dir(&vm).join(WORK_FILE);
            std::fs::write(&disk, "data").expect("write");
            let change = vm.change(set(SetVm { cpus: Some(3), ..work(0).set }));
            tokio::select! {
                done = change => panic!("{step}: {done:?}"),
                () = trap.reached.notified() => {}
            }
            disk
        });
        life(async {
            let daemon = world.daemon().await;
            let vm = find(&daemon);
            let spec = vm.snapshot().spec;
            let done = step != step::SET_ROW;
            assert_eq!(spec.cpus == 3, done, "{step}");
            assert_eq!(spec.work_disk_bytes.is_none(), done, "{step}");
            let at = step.name();
            // A new work disk is new.
            vm.change(work(0)).await.expect(at);
            assert_eq!(bytes(&disk), None, "{step}");
            vm.change(work(GIB)).await.expect(at);
            start(&vm).await;
            assert!(!is_ours(&disk), "{step}");
        });
    }
}

#[tokio::test]
async fn a_removal_that_was_cut_off_does_not_come_back_with_its_data() {
    let world = World::new();
    let trap = Trap::at(step::SET_WORK_DISK, Effect::Fail(Failing::Eio));
    let daemon = world.daemon_with(trap.gate()).await;
    let vm = with_work_disk(&daemon).await;
    stop(&vm).await;
    let disk = dir(&vm).join(WORK_FILE);
    std::fs::write(&disk, "data").expect("write");
    vm.change(work(0)).await.expect_err("the test says so");
    assert!(disk.exists());
    vm.change(work(GIB)).await.expect("added");
    assert!(!disk.exists(), "the old one is gone before there is a new one");
}

#[tokio::test]
async fn a_change_that_fails_changes_nothing() {
    let world = World::new();
    let trap = Trap::at(step::SET_ROW, Effect::Fail(Failing::Eio));
    let daemon = world.daemon_with(trap.gate()).await;
    make(&daemon, request("web", false)).await.expect("make");
    let vm = find(&daemon);
    let before = vm.snapshot();
    let wanted = SetVm { cpus: Some(2), ..SetVm::default() };
    vm.change(set(wanted.clone())).await.expect_err("the test says so");
    assert_eq!(vm.snapshot(), before);
    vm.change(set(wanted)).await.expect("it can be repeated");
    assert_eq!(vm.snapshot().spec.cpus, 2);
    let trap = Trap::at(step::SET_ROW, Effect::Fail(Failing::Eio));
    let daemon = world.daemon_with(trap.gate()).await;
    let vm = find(&daemon);
    std::fs::write(dir(&vm).join(COW_FILE), "data").expect("write");
    vm.change(image(&daemon, "sha256:image1")).await.expect_err("the test says so");
    disks::settle_root(&daemon, &vm.row()).await.expect("nothing to settle");
    assert!(is_ours(&dir(&vm).join(COW_FILE)), "the old disk stays");
    assert_eq!(roots(&dir(&vm)), [COW_FILE]);
    let absurd = SetVm { memory_mib: Some(u32::MAX), ..SetVm::default() };
    assert_eq!(vm.change(set(absurd)).await.expect_err("absurd").code, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn a_new_root_disk_that_went_meanwhile_is_missed() {
    let world = World::new();
    let at = Arc::new(OnceLock::<PathBuf>::new());
    let new = Arc::clone(&at);
    let strike = move || std::fs::remove_file(new.get().expect("known")).expect("it was made");
    let trap = Trap::at(step::SET_ROOT, Effect::Strike(Box::new(strike)));
    let daemon = world.daemon_with(trap.gate()).await;
    world.machine.add_image("other", "sha256:other");
    make(&daemon, request("web", false)).await.expect("make");
    let vm = find(&daemon);
    at.set(dir(&vm).join("root.cow.new-other")).expect("once");
    let problem = vm.change(image(&daemon, "sha256:other")).await.expect_err("it is gone");
    assert_eq!(problem.hint.as_deref(), Some("banger set web --image other"));
    vm.change(image(&daemon, "sha256:other")).await.expect("it can be repeated");
}

#[test]
fn a_root_disk_is_replaced_whole_or_not_at_all_and_never_under_another_image() {
    for (step, digest) in [step::SET_NEW_ROOT, step::SET_ROW, step::SET_ROOT]
        .into_iter()
        .flat_map(|step| [(step, "sha256:other"), (step, "sha256:image1")])
    {
        let world = World::new();
        world.machine.add_image("other", "sha256:other");
        let trap = Trap::at(step, Effect::Crash);
        let place = life(async {
            let daemon = world.daemon_with(trap.gate()).await;
            let vm = with_work_disk(&daemon).await;
            let refused = vm.change(image(&daemon, digest)).await.expect_err("it runs");
            assert_eq!(refused.code, ErrorCode::VmWrongState);
            stop(&vm).await;
            for file in [COW_FILE, WORK_FILE] {
                std::fs::write(dir(&vm).join(file), "data").expect("write");
            }
            tokio::select! {
                done = vm.change(image(&daemon, digest)) => panic!("{step}: {done:?}"),
                () = trap.reached.notified() => {}
            }
            dir(&vm)
        });
        life(async {
            let daemon = world.daemon().await;
            let vm = find(&daemon);
            let at = step.name();
            disks::settle_root(&daemon, &vm.row()).await.expect(at);
            assert_eq!(roots(&place), [COW_FILE], "{step}");
            let is_old = is_ours(&place.join(COW_FILE));
            let wants_old = vm.row().image_digest == "sha256:image1";
            if digest == "sha256:other" {
                assert_eq!(is_old, wants_old, "{step}: disk and image belong together");
                assert_eq!(wants_old, step != step::SET_ROOT, "{step}");
            }
            assert!(is_ours(&place.join(WORK_FILE)), "{step}: the work disk stays");
            vm.change(image(&daemon, digest)).await.expect("it can be repeated");
            assert_eq!(vm.row().image_digest, digest);
            assert!(!is_ours(&place.join(COW_FILE)));
            assert_eq!(vm.snapshot().spec.image, "other");
        });
    }
}
