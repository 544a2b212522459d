//! "for every step × {daemon, shim, VMM, pasta, agent, CLI} × {crash, fail, stall}: do the operation,
//! break it there, start again, reconcile" — of the full product (`cargo xtask torture`) a part that
//! covers every way in which every process breaks, and every kind of operation; it needs no network.

use std::collections::BTreeSet;

use banger_api::step::{self, Who};
use banger_testkit::torture::{Verdict, WAYS, case, run};

/// Runs a case; the process that breaks is there to break.
fn held(name: &str) {
    let case = case(name).unwrap_or_else(|| panic!("{name} is a case"));
    assert_eq!(run(case), Verdict::Held, "{name}");
}

macro_rules! cases {
    ($($test:ident = $name:literal;)+) => {
        const NAMES: &[&str] = &[$($name),+];

        $(
            #[test]
            fn $test() {
                held($name);
            }
        )+
    };
}

cases! {
    a_daemon_dies_before_the_row = "create.row/daemon/crash";
    a_daemon_finds_no_room_for_the_disk = "create.disk/daemon/fail";
    a_daemon_dies_as_the_vm_is_ready = "start.ready/daemon/crash";
    a_client_dies_as_the_shim_is_started = "start.spawn/cli/crash";
    a_shim_hangs_before_its_socket = "shim.namespaces/shim/stall";
    a_shim_dies_as_it_makes_the_network = "vm.network/shim/crash";
    a_shim_cannot_enter_the_jail = "vm.jail/shim/fail";
    a_shim_hangs_before_the_guest_is_configured = "vm.configure/shim/stall";
    a_vmm_is_killed_before_the_guest_is_configured = "vm.configure/vmm/crash";
    a_vmm_is_told_to_end_as_the_guest_is_configured = "vm.configure/vmm/fail";
    a_vmm_is_stopped_as_the_vm_is_ready = "vm.ready/vmm/stall";
    pasta_is_killed_as_the_guest_boots = "vm.boot/pasta/crash";
    pasta_is_told_to_end_as_the_guest_boots = "vm.boot/pasta/fail";
    pasta_is_stopped_before_the_guest_is_configured = "vm.configure/pasta/stall";
    a_daemon_dies_before_a_change = "set.row/daemon/crash";
    a_daemon_cannot_keep_a_layer = "blob.publish/daemon/fail";
    a_daemon_dies_as_it_migrates = "migrate.apply/daemon/crash";
    a_shim_is_killed_as_a_template_is_saved = "vm.save/shim/crash";
    a_daemon_dies_before_a_template_is_sealed = "template.seal/daemon/crash";
    a_vmm_is_killed_as_a_guest_is_restored = "vm.restore/vmm/crash";
    a_daemon_dies_as_its_vm_is_copied = "fork.disks/daemon/crash";
    a_daemon_dies_before_a_snapshot_is_sealed = "snapshot.seal/daemon/crash";
    a_daemon_dies_as_it_removes_a_snapshot = "snapshot.remove/daemon/crash";
    a_daemon_dies_as_a_vm_goes_back = "restore.row/daemon/crash";
    a_vmm_is_killed_before_its_vm_goes_back = "restore.end/vmm/crash";
    a_daemon_dies_as_a_vm_takes_a_guest_that_stands_ready = "start.claim/daemon/crash";
    a_shim_dies_before_its_guest_stands_ready = "vm.wait/shim/crash";
    a_daemon_fails_to_end_a_guest_that_stands_ready = "pool.end/daemon/fail";
    a_shim_fails_to_save_its_vm = "shim.capture/shim/fail";
    an_agent_dies_before_its_root = "guest.root/agent/crash";
    an_agent_cannot_configure = "guest.configure/agent/fail";
    an_agent_hangs_before_a_command = "guest.exec/agent/stall";
    a_client_dies_before_its_command = "cli.command/cli/crash";
    a_client_cannot_follow = "cli.follow/cli/fail";
    a_client_hangs_before_its_exec = "cli.exec/cli/stall";
    a_daemon_is_stopped_as_a_client_follows = "cli.follow/daemon/stall";
    a_shim_is_killed_as_it_shuts_down = "shim.shut_down/shim/crash";
    a_daemon_dies_as_its_vm_is_paused = "shim.pause/daemon/crash";
    a_shim_fails_to_have_a_vm_go_on = "shim.resume/shim/fail";
    a_daemon_dies_before_it_records_an_end = "stop.record/daemon/crash";
    a_daemon_dies_as_it_removes = "remove.rename/daemon/crash";
    a_daemon_fails_to_delete = "remove.tree/daemon/fail";
    a_daemon_dies_as_it_settles = "daemon.settle/daemon/crash";
    a_daemon_dies_before_an_image_is_visible = "store.publish/daemon/crash";
    a_daemon_fails_as_it_names_an_image = "store.name/daemon/fail";
    a_daemon_dies_as_it_deletes_an_image = "store.delete/daemon/crash";
    a_daemon_dies_as_it_looks_at_a_directory = "image.look/daemon/crash";
    a_daemon_cannot_make_a_layer_to_send = "image.layer/daemon/fail";
    a_daemon_cannot_read_a_kernel = "kernel.read/daemon/fail";
}

#[test]
fn everybody_breaks_in_every_way_and_every_operation_is_broken() {
    let cases = || NAMES.iter().map(|name| case(name).expect("a case"));
    let broken: BTreeSet<_> = cases().map(|case| (case.who, case.what)).collect();
    for who in Who::EVERYBODY {
        for what in WAYS {
            assert!(broken.contains(&(who, what)), "{who}/{what}");
        }
    }
    let operations: BTreeSet<_> = cases().map(|case| case.step.operation()).collect();
    for (_, step) in step::ALL {
        assert!(operations.contains(&step.operation()), "{:?}", step.operation());
    }
}
