//! Templates on a simulated machine.

use std::sync::atomic::Ordering;

use banger_api::ErrorCode;
use banger_api::shim::{Begin, COW_FILE, DEVICES_FILE, LAUNCH_FILE, LaunchSpec, MEMORY_FILE};
use banger_api::vm::{StartVm, Vm};
use banger_host::cow;

use super::*;
use banger_api::step::Failing;

use crate::gate::trap::{Effect, Trap};
use crate::host::simulated::Manner;
use crate::testing::{World, begin, eventually, make, outcome, request};
use crate::vm::tests::{find, finish, stop};

/// How the VM was last started.
fn launched(vm: &Vm) -> LaunchSpec {
    let json = std::fs::read(std::path::Path::new(&vm.dir).join(LAUNCH_FILE)).expect("read");
    serde_json::from_slice(&json).expect("a launch spec")
}

fn is_restored(vm: &Vm) -> bool {
    matches!(launched(vm).begin, Begin::Restore { .. })
}

fn saves(world: &World) -> usize {
    world.machine.saves.load(Ordering::SeqCst)
}

/// What lies on the shelf, by name.
fn shelf_of(world: &World) -> Vec<String> {
    let entries = std::fs::read_dir(world.dirs.templates()).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn the_first_vm_makes_a_template_and_all_of_its_kind_begin_from_it() {
    let world = World::new().with_templates();
    let daemon = world.daemon().await;
    let vm = make(&daemon, request("one", true)).await.expect("make");
    assert!(is_restored(&vm));
    let template = launched(&vm);
    assert!(template.name == "one" && saves(&world) == 1);
    daemon.templates.all_settled().await;
    let vm = make(&daemon, request("two", true)).await.expect("make");
    assert!(is_restored(&vm) && saves(&world) == 1, "it is used again");

    let mut larger = request("larger", true);
    larger.spec.memory_mib *= 2;
    let vm = make(&daemon, larger).await.expect("make");
    assert!(is_restored(&vm) && saves(&world) == 2, "another kind has another template");
    let mut with_work = request("work", true);
    with_work.spec.work_disk_bytes = Some(128 << 20);
    let vm = make(&daemon, with_work).await.expect("make");
    assert!(is_restored(&vm) && saves(&world) == 2, "a work disk makes no difference");
}

#[tokio::test]
async fn what_makes_a_vm_one_vm_is_not_in_its_template() {
    let world = World::new().with_templates();
    let daemon = world.daemon().await;
    let mut secret = request("secret", true);
    secret.spec.env.insert("TOKEN".into(), "hush".into());
    world.machine.set_manner(Manner::Hangs);
    let operation = begin(&daemon, secret).await.expect("begun");
    eventually("somebody boots for the template", || world.machine.alive() == 1).await;
    let dir = world.dirs.templates().join(&shelf_of(&world)[0]);
    let json = std::fs::read_to_string(dir.join(LAUNCH_FILE)).expect("it is there");
    assert!(!json.contains("hush") && !json.contains("secret"), "{json}");
    daemon.operations.cancel(&operation.id).expect("known");
    let problem = outcome(&daemon, &operation).await.expect_err("cancelled");
    assert_eq!(problem.code, ErrorCode::Cancelled);
    assert!(shelf_of(&world).is_empty() && world.is_clean(), "whoever is cancelled leaves nothing");
}

#[tokio::test]
async fn a_template_that_does_not_work_is_a_boot_and_is_made_anew() {
    let world = World::new().with_templates();
    let daemon = world.daemon().await;
    world.machine.bad_templates.store(true, Ordering::SeqCst);
    let vm = make(&daemon, request("one", true)).await.expect("it boots");
    assert_eq!(launched(&vm).begin, Begin::Boot);
    assert!(cow::is_unused(&std::path::Path::new(&vm.dir).join(COW_FILE)).expect("its own disk"));
    assert!(shelf_of(&world).is_empty(), "nobody else has it");
    world.machine.bad_templates.store(false, Ordering::SeqCst);
    let vm = make(&daemon, request("two", true)).await.expect("make");
    assert!(is_restored(&vm) && saves(&world) == 2);
}

#[tokio::test]
async fn one_that_cannot_be_made_is_a_boot_and_is_not_tried_at_every_start() {
    let world = World::new().with_templates();
    let daemon = world.daemon().await;
    world.machine.set_manner(Manner::Fails);
    make(&daemon, request("one", true)).await.expect_err("it does not boot either");
    world.machine.set_manner(Manner::Good);
    let vm = make(&daemon, request("two", true)).await.expect("make");
    assert_eq!((launched(&vm).begin, saves(&world)), (Begin::Boot, 0));
}

#[tokio::test]
async fn who_wants_a_boot_gets_one_and_so_does_a_disk_that_was_used() {
    let world = World::new().with_templates();
    let daemon = world.daemon().await;
    let mut cold = request("cold", true);
    cold.start = Some(StartVm { cold: true, ..StartVm::default() });
    let vm = make(&daemon, cold).await.expect("make");
    assert_eq!((launched(&vm).begin, saves(&world)), (Begin::Boot, 0));

    let vm = make(&daemon, request("used", true)).await.expect("make");
    assert!(is_restored(&vm));
    let handle = find(&daemon, "used");
    stop(&handle).await.expect("stop");
    // A guest wrote it, which no simulated one does.
    let disk = std::path::Path::new(&vm.dir).join(COW_FILE);
    std::fs::write(&disk, [b"SnAp".as_slice(), &[0; 64]].concat()).expect("write");
    std::fs::File::options()
        .write(true)
        .open(&disk)
        .and_then(|file| file.set_len(cow::store_bytes(vm.disk_bytes)))
        .expect("as long as it was");
    finish(handle.start(StartVm::default()).await).await.expect("start");
    assert_eq!(launched(&vm).begin, Begin::Boot);
}

#[tokio::test]
async fn the_next_daemon_uses_what_was_sealed_and_removes_what_was_not() {
    let world = World::new().with_templates();
    let daemon = world.daemon().await;
    make(&daemon, request("one", true)).await.expect("make");
    daemon.templates.all_settled().await;
    let sealed_name = shelf_of(&world).remove(0);
    let unsealed = world.dirs.templates().join("0123456789ab");
    std::fs::create_dir(&unsealed).expect("a directory");
    std::fs::write(unsealed.join(MEMORY_FILE), "what a power cut left").expect("write");
    drop(daemon);

    let daemon = world.daemon().await;
    eventually("only what is sealed is left", || shelf_of(&world) == [sealed_name.clone()]).await;
    let vm = make(&daemon, request("two", true)).await.expect("make");
    assert!(is_restored(&vm) && saves(&world) == 1);
}

#[tokio::test]
async fn one_that_was_altered_is_refused_and_made_anew() {
    let world = World::new().with_templates();
    let daemon = world.daemon().await;
    make(&daemon, request("one", true)).await.expect("make");
    daemon.templates.all_settled().await;
    let file = world.dirs.templates().join(&shelf_of(&world)[0]).join(DEVICES_FILE);
    std::fs::remove_file(&file).expect("ours");
    std::fs::write(&file, "other devices").expect("ours");
    let vm = make(&daemon, request("two", true)).await.expect("make");
    assert!(is_restored(&vm) && saves(&world) == 2);
}

#[tokio::test]
async fn one_that_cannot_be_sealed_or_removed_is_no_trouble() {
    let world = World::new().with_templates();
    for step in [step::TEMPLATE_SEAL, step::TEMPLATE_REMOVE] {
        let trap = Trap::at(step, Effect::Fail(Failing::Enospc));
        let daemon = world.daemon_with(trap.gate()).await;
        // It may be gone again before the VM has its disk.
        make(&daemon, request("one", true)).await.expect("make");
        daemon.templates.all_settled().await;
        prune(&daemon, PruneTemplates { all: true, dry_run: false }).await.ok();
        finish(find(&daemon, "one").remove(true).await).await.expect("remove");
    }
    let daemon = world.daemon().await;
    let vm = make(&daemon, request("two", true)).await.expect("make");
    assert!(is_restored(&vm));
}

#[tokio::test]
async fn those_of_no_use_go_and_so_does_what_is_too_much() {
    let mut world = World::new().with_templates();
    world.config.templates.max_size_mib = 0;
    let daemon = world.daemon().await;
    make(&daemon, request("one", true)).await.expect("make");
    daemon.templates.all_settled().await;
    eventually("the last one stays", || shelf_of(&world).len() == 1).await;
    let first = shelf_of(&world);
    let mut other = request("two", true);
    other.spec.cpus = 2;
    make(&daemon, other).await.expect("make");
    daemon.templates.all_settled().await;
    let only_the_second = || shelf_of(&world).len() == 1 && shelf_of(&world) != first;
    eventually("the first has to go", only_the_second).await;

    world.machine.forget_artifacts();
    tidy(&daemon).await;
    assert!(shelf_of(&world).is_empty(), "its image is gone");
}
