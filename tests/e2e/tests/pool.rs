//! Guests that stand ready before anybody asks for them.

use std::time::Duration;

use banger_testkit::{Host, wait};

/// How long what comes by itself may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How far the clock of a guest may be off, in seconds.
const CLOCK_SLACK_S: f64 = 1.0;

fn origin(host: &Host, vm: &str) -> String {
    host.show(vm)["status"]["origin"].as_str().unwrap_or_default().to_owned()
}

/// What a script prints in a VM.
fn said(host: &Host, vm: &str, script: &str) -> String {
    host.banger(["exec", vm, "--", "sh", "-c", script]).run().assert_ok().stdout_text()
}

/// A VM of the kind that `run -d` makes.
fn run(host: &Host, name: &str, more: &[&str]) {
    let words = ["run", "-d", "-q", "--name", name].into_iter().chain(more.iter().copied());
    host.banger(words).run().assert_ok();
}

/// A host on which one guest stands ready for the VMs of [`run`].
fn host() -> Host {
    let host = Host::builder().pool(1).build();
    run(&host, "first", &[]);
    assert_ne!(origin(&host, "first"), "pool", "nothing was ready yet");
    host.wait_for_pool(1);
    host
}

/// "A pool of ready shims + restored paused VMs (`pool` in config, off by default, size and memory
/// bounded)"
#[test]
fn a_vm_is_taken_from_the_pool_and_the_pool_fills_again() {
    let host = host();
    let envs = ["-e", "A=b c", "-w", "/srv/new", "--label", "tier=web"];
    run(&host, "web", &envs);
    assert_eq!(origin(&host, "web"), "pool");
    host.banger(["show", "web"]).run().assert_ok().assert_stdout_has("from the pool");
    assert_eq!(
        said(&host, "web", "hostname; cat /etc/hostname; echo $A; pwd"),
        "web\nweb\nb c\n/srv/new\n"
    );
    assert!(said(&host, "web", "cat /etc/hosts").contains("web"));
    assert!(!said(&host, "web", "cat /etc/hosts /etc/hostname").contains("ready"));
    // It has a network, and its own disk that it keeps.
    assert!(said(&host, "web", "ip route; cat /etc/resolv.conf").contains("default via"));
    said(&host, "web", "echo kept > /root/kept; sync");
    host.banger(["restart", "web"]).run().assert_ok();
    assert_eq!(origin(&host, "web"), "boot");
    assert_eq!(said(&host, "web", "cat /root/kept; echo $A"), "kept\nb c\n");
    host.wait_for_pool(1);
    let listed = host.banger(["template", "ls"]).run().assert_ok();
    listed.assert_stdout_has("READY");
    host.finish();
}

/// "Every copy must be its own machine": also one that stood ready for a while.
#[test]
fn two_from_the_pool_have_nothing_in_common_that_they_must_not() {
    let host = host();
    for name in ["left", "right"] {
        host.wait_for_pool(1);
        run(&host, name, &[]);
        assert_eq!(origin(&host, name), "pool");
    }
    for (what, script) in [
        ("random bytes", "head -c 32 /dev/urandom | od -An -tx1"),
        ("the boot's id", "cat /proc/sys/kernel/random/boot_id"),
        ("the machine's id", "cat /etc/machine-id"),
        ("the host's name", "hostname; cat /etc/hostname"),
        ("the places of programs", "head -n 1 /proc/self/maps"),
        ("ssh host keys", "ssh-keygen -A > /dev/null; cat /etc/ssh/ssh_host_ed25519_key.pub"),
    ] {
        let [left, right] = ["left", "right"].map(|vm| said(&host, vm, script));
        assert_ne!(left, right, "{what}");
    }
    for vm in ["left", "right"] {
        let there: f64 = said(&host, vm, "date +%s.%N").trim().parse().expect("a time");
        let here = wait::since_1970().as_secs_f64();
        assert!((here - there).abs() < CLOCK_SLACK_S, "{vm}: {there}, and here it is {here}");
        let id = said(&host, vm, "cat /etc/machine-id");
        assert_eq!(id.trim().len(), 32, "{id}");
    }
    host.finish();
}

/// A command's streams and code are what they are without a pool, and nothing stays.
#[test]
fn run_rm_takes_from_the_pool_and_leaves_nothing() {
    let host = Host::builder().pool(1).build();
    let echo = |text: &str| {
        let script = "cat; echo to stderr >&2; exit 7";
        let run = host.banger(["run", "--rm", "-q", "--", "sh", "-c", script]);
        let output = run.stdin(text).run();
        assert_eq!((output.code, output.stdout_text().as_str()), (7, text));
        assert_eq!(output.stderr_text(), "to stderr\n");
    };
    echo("first");
    host.wait_for_pool(1);
    let traced = host.banger(["run", "--rm", "-q", "--trace", "--", "true"]).run().assert_ok();
    let stages = traced.stderr_text();
    assert!(stages.contains("daemon.claim") && !stages.contains("vmm.load"), "{stages}");
    host.wait_for_pool(1);
    echo("second");
    host.finish();
}

/// "Any process of ours may be killed": what stands ready is nobody's, and goes with its daemon.
#[test]
fn what_stands_ready_goes_with_its_daemon() {
    let host = host();
    assert_eq!(host.processes_named("qemu-system-x86_64").len(), 2, "the VM's, and one that waits");
    host.kill_dash_nine(host.daemon_pid().expect("it runs"));
    wait::until("the kernel ends what waits", PATIENCE, || {
        (host.processes_named("qemu-system-x86_64").len() == 1).then_some(())
    });
    assert_eq!(host.state("first").as_deref(), Some("running"), "a VM does not");
    let dirs = || std::fs::read_dir(host.data.join("vms")).expect("it is there").count();
    wait::until("its directory goes", PATIENCE, || (dirs() == 1).then_some(()));
    host.finish();
}

/// A VM whose guest died while it waited starts all the same.
#[test]
fn one_that_has_died_is_done_without_and_replaced() {
    let host = Host::builder().pool(1).build();
    host.banger(["run", "--rm", "-q", "--", "true"]).run().assert_ok();
    host.wait_for_pool(1);
    let vmms = host.processes_named("qemu-system-x86_64");
    assert_eq!(vmms.len(), 1, "{vmms:?}");
    host.kill_dash_nine(vmms[0]);
    host.banger(["run", "--rm", "-q", "--", "echo", "done"])
        .run()
        .assert_ok()
        .assert_stdout("done\n");
    host.wait_for_pool(1);
    host.finish();
}

/// "Size and memory bounded": one that turns out to be too large does not stay, and is not made again.
#[test]
fn a_pool_that_may_take_no_memory_stays_empty() {
    let host = Host::builder().pool(1).pool_memory(1).build();
    let made = || {
        let log = std::fs::read_to_string(host.data.join("daemon.log")).unwrap_or_default();
        log.matches("stands ready").count()
    };
    for _ in 0..2 {
        host.banger(["run", "--rm", "-q", "--", "true"]).run().assert_ok();
        let empty = || std::fs::read_dir(host.data.join("vms")).is_ok_and(|vms| vms.count() == 0);
        wait::until("it was made and ended", PATIENCE, || (made() == 1 && empty()).then_some(()));
    }
    host.finish();
}
