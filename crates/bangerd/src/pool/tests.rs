//! Guests that stand ready, on a simulated machine.

use std::sync::atomic::Ordering;

use banger_api::ErrorCode;
use banger_api::shim::LaunchSpec;
use banger_api::step::Failing;
use banger_api::vm::{CreateVm, Vm, VmState};

use super::*;
use crate::gate::Gate;
use crate::gate::trap::{Effect, Trap};
use crate::host::simulated::{Manner, PRIVATE_BYTES};
use crate::testing::{World, begin, eventually, list, make, outcome, request};
use crate::vm::tests::{find, finish, life};
use crate::{system, templates};

fn launched(vm: &Vm) -> LaunchSpec {
    read_launch_file(&Path::new(&vm.dir).join(LAUNCH_FILE)).expect("it was launched")
}

fn standing(daemon: &Daemon) -> Vec<Id> {
    daemon.pool.state().guests.iter().map(|guest| guest.id.clone()).collect()
}

/// Makes a VM as by `run`, after which a guest like it stands ready, and is alone.
async fn fill(daemon: &Arc<Daemon>) -> Id {
    make(daemon, request("first", true)).await.expect("make");
    finish(find(daemon, "first").remove(true).await).await.expect("remove");
    eventually("a guest stands ready", || standing(daemon).len() == 1).await;
    standing(daemon).remove(0)
}

/// Makes a VM whose id says whether it had the guest that stood ready.
async fn run(daemon: &Arc<Daemon>, request: CreateVm) -> Vm {
    make(daemon, request).await.expect("make")
}

#[tokio::test]
async fn a_vm_of_that_kind_is_the_guest_that_stood_ready() {
    let world = World::new().with_pool(1);
    let daemon = world.daemon().await;
    let ready = fill(&daemon).await;
    assert_eq!(list(&daemon), [], "nobody sees it");
    assert_eq!(world.machine.alive(), 1);
    let machine_id = daemon.pool.state().guests[0].machine_id.clone();
    let mut wanted = request("web", true);
    wanted.spec.env.insert("A".into(), "b".into());
    let vm = run(&daemon, wanted).await;
    let launch = launched(&vm);
    assert_eq!((vm.id.as_str(), launch.vm_id.as_str()), (ready.as_str(), ready.as_str()));
    assert!(!launch.waits && launch.name == "web" && launch.env["A"] == "b", "{launch:?}");
    assert_eq!((launch.machine_id, vm.status.state), (machine_id, VmState::Running));
    eventually("another one stands ready", || standing(&daemon).len() == 1).await;
    assert_ne!(standing(&daemon), [ready]);
}

#[tokio::test]
async fn what_a_guest_cannot_become_it_is_not() {
    let world = World::new().with_pool(1);
    let daemon = world.daemon().await;
    let ready = fill(&daemon).await;
    let change: [fn(&mut CreateVm); 5] = [
        |it| it.spec.cpus += 1,
        |it| it.spec.work_disk_bytes = Some(1 << 30),
        |it| it.spec.remove_on_exit = !it.spec.remove_on_exit,
        |it| it.start = Some(StartVm { cold: true, ..StartVm::default() }),
        |it| it.start = None,
    ];
    for (number, change) in change.into_iter().enumerate() {
        let mut wanted = request(&format!("other-{number}"), true);
        change(&mut wanted);
        let vm = run(&daemon, wanted).await;
        assert_ne!(vm.id, ready.as_str(), "{number}");
    }
}

#[tokio::test]
async fn they_take_no_more_than_they_may_and_those_used_last_stay() {
    let mut world = World::new().with_pool(3);
    world.config.pool.max_memory_mib = 3 * PRIVATE_BYTES / MIB - 1;
    let daemon = world.daemon().await;
    run(&daemon, request("small", true)).await;
    eventually("two fit", || standing(&daemon).len() == 2).await;
    let of_small = standing(&daemon);
    let mut large = request("large", true);
    large.spec.memory_mib *= 2;
    run(&daemon, large).await;
    let all_others = || {
        let now = standing(&daemon);
        now.len() == 2 && now.iter().all(|id| !of_small.contains(id))
    };
    eventually("those of the other kind have made room", all_others).await;
    eventually("and are gone", || of_small.iter().all(|id| !daemon.vm_dir(id).exists())).await;
}

#[tokio::test]
async fn one_that_does_not_work_is_a_start_from_the_template_all_the_same() {
    let world = World::new().with_pool(1);
    let mishaps: [fn(&World, &Path); 2] = [
        |world, dir| world.machine.vanish(dir),
        |world, _| world.machine.bad_templates.store(true, Ordering::SeqCst),
    ];
    for mishap in mishaps {
        let daemon = world.daemon().await;
        let ready = fill(&daemon).await;
        mishap(&world, &daemon.vm_dir(&ready));
        let vm = run(&daemon, request("web", true)).await;
        assert_eq!(vm.status.state, VmState::Running);
        world.machine.bad_templates.store(false, Ordering::SeqCst);
        finish(find(&daemon, "web").remove(true).await).await.expect("remove");
        daemon.pool.empty(&daemon).await;
        eventually("nothing is left", || world.is_clean()).await;
    }
    let trap = Trap::at(step::START_CLAIM, Effect::Fail(Failing::Eio));
    let daemon = world.daemon_with(trap.gate()).await;
    let ready = fill(&daemon).await;
    let vm = run(&daemon, request("web", true)).await;
    assert!(trap.has_sprung() && vm.id == ready.as_str() && !launched(&vm).waits);
    assert!(matches!(launched(&vm).begin, Begin::Restore { .. }), "from the template, anew");
}

#[tokio::test]
async fn one_that_has_died_is_replaced_at_the_next_look() {
    let world = World::new().with_pool(1);
    let daemon = world.daemon().await;
    let dead = fill(&daemon).await;
    world.machine.vanish(&daemon.vm_dir(&dead));
    crate::reconcile::look(&daemon);
    let another = || standing(&daemon).iter().any(|id| *id != dead);
    eventually("another one stands ready", another).await;
    assert!(!daemon.vm_dir(&dead).exists(), "and of the dead one nothing is left");
}

#[tokio::test]
async fn a_claim_that_is_cancelled_leaves_nothing() {
    let world = World::new().with_pool(1);
    let daemon = world.daemon().await;
    fill(&daemon).await;
    world.machine.set_manner(Manner::Hangs);
    let operation = begin(&daemon, request("web", true)).await.expect("begun");
    eventually("it is claimed", || standing(&daemon).is_empty()).await;
    daemon.operations.cancel(&operation.id).expect("known");
    let problem = outcome(&daemon, &operation).await.expect_err("cancelled");
    assert_eq!(problem.code, ErrorCode::Cancelled);
    assert!(world.is_clean() && list(&daemon).is_empty());
}

#[tokio::test]
async fn one_that_cannot_be_made_is_not_tried_until_the_next_start() {
    let world = World::new().with_pool(1);
    for step in [step::POOL_BEGIN, step::POOL_SPAWN] {
        let trap = Trap::at(step, Effect::Fail(Failing::Enospc));
        let daemon = world.daemon_with(trap.gate()).await;
        run(&daemon, request("one", true)).await;
        eventually("it is tried", || trap.has_sprung()).await;
        eventually("and noted", || daemon.pool.state().wishes.iter().any(|it| it.has_failed)).await;
        assert!(standing(&daemon).is_empty());
        let left = std::fs::read_dir(world.dirs.vms()).expect("it is there").count();
        assert_eq!(left, 1, "of what was begun nothing is left");
        run(&daemon, request("two", true)).await;
        eventually("then it works", || standing(&daemon).len() == 1).await;
        daemon.pool.empty(&daemon).await;
        for name in ["one", "two"] {
            finish(find(&daemon, name).remove(true).await).await.expect("remove");
        }
    }
}

#[tokio::test]
async fn guests_go_with_their_template_and_at_a_reset() {
    let world = World::new().with_pool(2);
    let daemon = world.daemon().await;
    fill_two(&daemon).await;
    let template = templates::list(&daemon).await.expect("list").remove(0);
    assert_eq!(template.ready, 2);
    templates::remove(&daemon, &template.id).await.expect("remove");
    eventually("they are gone", || world.is_clean()).await;

    fill_two(&daemon).await;
    let all = Arc::clone(&daemon);
    let reset = daemon.operations.start("reset", |handle| system::reset(all, handle));
    outcome(&daemon, &reset).await.expect("reset");
    assert!(world.is_clean());
}

async fn fill_two(daemon: &Arc<Daemon>) {
    make(daemon, request("first", true)).await.expect("make");
    finish(find(daemon, "first").remove(true).await).await.expect("remove");
    eventually("two stand ready", || standing(daemon).len() == 2).await;
}

/// At whatever moment it ends, also while one stands ready.
#[test]
fn nothing_outlives_a_daemon_that_ends() {
    let steps = [step::POOL_BEGIN, step::POOL_SPAWN, step::START_CLAIM, step::POOL_END];
    for at in steps.map(Some).into_iter().chain([None]) {
        let world = World::in_memory().with_pool(1);
        let trap = at.map(|step| Trap::at(step, Effect::Crash));
        life(async {
            let gate = trap.as_ref().map_or_else(Gate::default, Trap::gate);
            let daemon = world.daemon_with(gate).await;
            let used = use_them(&daemon);
            match &trap {
                Some(trap) => tokio::select! {
                    biased;
                    () = trap.reached.notified() => {}
                    () = used => panic!("{at:?} was not reached"),
                },
                None => {
                    fill(&daemon).await;
                }
            }
        });
        life(async {
            let daemon = world.daemon().await;
            // VMs do outlive it.
            for vm in daemon.handles() {
                let _ = finish(vm.remove(true).await).await;
            }
            eventually(&format!("{at:?}: nothing is left"), || world.is_clean()).await;
            run(&daemon, request("web", true)).await;
        });
    }
}

/// Has a guest stand ready, a VM be it, and ends the next one.
async fn use_them(daemon: &Arc<Daemon>) {
    fill(daemon).await;
    let vm = run(daemon, request("web", true)).await;
    finish(find(daemon, &vm.name).remove(true).await).await.expect("remove");
    eventually("another one stands ready", || standing(daemon).len() == 1).await;
    daemon.pool.empty(daemon).await;
}
