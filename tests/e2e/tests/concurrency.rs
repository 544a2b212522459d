//! Several things at once: operations on one VM queue or are refused, and nothing that is stuck holds
//! up `stop`, `rm` or another VM.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use banger_e2e::{BOOT, SOON};
use banger_testkit::fixtures::TestRegistry;
use banger_testkit::registry::{Fault, FaultProxy, TestImage, When};
use banger_testkit::{Host, Output, wait};
use nix::sys::signal::Signal;

/// Stops the VMM of the only VM of a host: its guest answers nothing any more.
fn freeze(host: &Host) {
    signal_vmm(host, Signal::SIGSTOP);
}

fn signal_vmm(host: &Host, signal: Signal) {
    for pid in host.processes_named("qemu-system-x86_64") {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("alive");
    }
}

/// What was refused because of a state: with the state, and what to type.
fn assert_refused(output: Output, state: &str, hint: &str) {
    let output = output.assert_code(125);
    let text = output.stderr_text();
    assert!(text.contains(&format!(" is {state}, so it cannot be ")), "{output}");
    assert!(text.contains(&format!("hint: {hint}")), "{output}");
}

/// "`stop` and `rm` work while a copy, exec … is stuck": commands whose output nobody reads, and one
/// that reads what nobody sends.
#[test]
fn a_stuck_exec_holds_up_neither_stop_nor_rm() {
    let host = Host::new();
    let vm = host.running_vm("stuck");
    let flood = "touch /tmp/$0; exec cat /dev/zero";
    for (verb, name) in [("stop", "first"), ("rm", "second")] {
        let unread = host.banger(["exec", &vm, "--", "sh", "-c", flood, name]).spawn_unread();
        let waiting = host.banger(["exec", &vm, "--", "cat"]).spawn();
        banger_e2e::wait_for_guest_file(&host, &vm, &format!("/tmp/{name}"));
        let words: &[&str] = if verb == "rm" { &["rm", "-f"] } else { &["stop"] };
        host.banger([words, &[&vm]].concat()).timeout(SOON).run().assert_ok();
        assert_ne!(unread.wait().code, 0, "its VM is gone");
        assert_ne!(waiting.wait().code, 0, "its VM is gone");
        if verb == "stop" {
            assert_eq!(host.show(&vm)["status"]["end"]["cause"], "stopped");
            host.banger(["start", &vm]).run().assert_ok();
        }
    }
    assert_eq!(host.vm_names(), [""; 0]);
    host.finish();
}

/// "`stop` and `rm` work while … [an] image pull is stuck"; the VM that waits for it has its name,
/// and gives it up when its maker is interrupted or killed.
#[test]
fn a_stuck_pull_holds_up_nothing_else() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    registry.push(&TestImage::new().noise("large", 3_000_000, 7), "app:1");
    let proxy = FaultProxy::start(registry.server.address());
    proxy.fault(When::get("/blobs/"), Fault::Stall(1_000_000));
    let app = proxy.reference("app:1");
    let other = host.running_vm("other");
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        proxy.forget();
        let stuck = host.banger(["run", "-d", "--name", "waits", &app]).spawn();
        wait::until("it comes", SOON, || (proxy.bytes("/blobs/") > 0).then_some(()));
        let taken = host.banger(["create", "--name", "waits"]).run().assert_code(125);
        assert!(taken.stderr_text().contains("a VM called waits exists"), "{taken}");
        assert_eq!(host.vm_names(), ["other"], "nothing half-made is shown");
        host.banger(["restart", &other]).timeout(BOOT).run().assert_ok();
        stuck.signal(signal);
        assert_eq!(stuck.wait().code, if signal == Signal::SIGINT { 130 } else { 137 });
        wait::until("the name is free", SOON, || {
            (host.banger(["create", "-q", "--name", "waits"]).run().code == 0).then_some(())
        });
        host.banger(["rm", "waits"]).timeout(SOON).run().assert_ok();
    }
    host.banger(["stop", &other]).timeout(SOON).run().assert_ok();
    host.banger(["rm", &other]).timeout(SOON).run().assert_ok();
    host.finish();
}

/// "per-VM operations queue in order, contradictory ones are denied with the state and the next
/// command": while a guest does not listen to `stop`, everything else is answered at once.
#[test]
fn what_contradicts_a_stop_under_way_is_refused_and_rm_is_not() {
    let host = Host::new();
    let vm = host.running_vm("deaf");
    assert_refused(
        host.banger(["rm", &vm]).run(),
        "running",
        "banger stop deaf, or banger rm --force deaf",
    );
    freeze(&host);
    let stopping: Vec<_> =
        (0..2).map(|_| host.banger(["stop", "--grace", "5m", &vm]).spawn()).collect();
    host.wait_for_state(&vm, "stopping");
    for (verb, hint) in [("start", "banger wait deaf"), ("restart", "banger wait deaf")] {
        assert_refused(host.banger([verb, &vm]).timeout(SOON).run(), "stopping", hint);
    }
    assert_refused(host.banger(["rm", &vm]).run(), "stopping", "banger wait deaf");
    host.banger(["rm", "-f", &vm]).timeout(SOON).run().assert_ok();
    for stop in stopping {
        let output = stop.wait();
        assert!(output.took < BOOT, "whoever waited for the end is told: {output}");
    }
    host.finish();
}

/// Whoever no longer waits for a stop is told that it goes on. One whose VMM is killed before the guest
/// was done is not called clean: the guest had no time to write everything down.
#[test]
fn a_stop_goes_on_without_its_client_and_tells_how_it_ended() {
    let host = Host::new();
    let vm = host.running_vm("deaf");
    freeze(&host);
    let stop = || host.banger(["stop", "--grace", "5m", &vm]).spawn();
    let interrupted = stop();
    host.wait_for_state(&vm, "stopping");
    interrupted.signal(Signal::SIGINT);
    let words = "no longer waited for; what was asked for goes on";
    interrupted.wait().assert_code(130).assert_stderr_has(words);
    assert_eq!(host.state(&vm).as_deref(), Some("stopping"));
    let second = stop();
    signal_vmm(&host, Signal::SIGCONT);
    second.wait().assert_ok();
    assert_eq!(host.state(&vm).as_deref(), Some("stopped"), "whoever asks again waits as well");

    host.banger(["start", &vm]).run().assert_ok();
    freeze(&host);
    let patient = stop();
    host.wait_for_state(&vm, "stopping");
    signal_vmm(&host, Signal::SIGKILL);
    patient
        .wait()
        .assert_ok()
        .assert_stderr_has("VM deaf did not stop in order: the VMM was killed");
    host.wait_for_state(&vm, "failed");
    let shown = host.banger(["show", &vm]).run().assert_ok().stdout_text();
    assert!(shown.contains("killed by signal 9 (SIGKILL), sender unknown"), "{shown}");
    host.banger(["start", &vm]).run().assert_ok();
    host.finish();
}

/// "Two processes asking at once do the work once", for every verb of a VM's life.
#[test]
fn two_that_want_the_same_both_get_it() {
    let host = Host::new();
    let both = |words: &[&str]| -> Vec<Output> {
        let running: Vec<_> = (0..2).map(|_| host.banger(words).spawn()).collect();
        running.into_iter().map(banger_testkit::Running::wait).collect()
    };
    let made = both(&["create", "--name", "twin"]);
    let (ok, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(|output| output.code == 0);
    assert_eq!((ok.len(), refused.len()), (1, 1), "one name, one VM: {refused:?}");
    assert!(refused[0].stderr_text().contains("a VM called twin exists"), "{}", refused[0]);
    for (words, state) in [
        (&["start", "twin"][..], Some("running")),
        (&["stop", "twin"], Some("stopped")),
        (&["start", "twin"], Some("running")),
        (&["kill", "twin"], Some("stopped")),
        (&["rm", "-f", "twin"], None),
    ] {
        for output in both(words) {
            output.assert_ok();
        }
        assert_eq!(host.state("twin").as_deref(), state, "{words:?}");
    }
    host.finish();
}

/// "`image rm` while a VM starts from it": the VM has it, or is told that there is none.
#[test]
fn an_image_goes_or_is_used() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    registry.push(&TestImage::new().file("kind", b"small"), "small:1");
    let app = registry.reference("small:1");
    for round in 0..4 {
        host.banger(["image", "pull", "-q", &app]).run().assert_ok();
        let words = ["create", "--pull", "never", "--name", "user", &app];
        // By turns, the one or the other comes first.
        let (removed, made) = if round % 2 == 0 {
            let making = host.banger(words).spawn();
            (host.banger(["image", "rm", &app]).run(), making.wait())
        } else {
            let removing = host.banger(["image", "rm", &app]).spawn();
            let made = host.banger(words).run();
            (removing.wait(), made)
        };
        assert_ne!(removed.code == 0, made.code == 0, "{removed}{made}");
        if made.code == 0 {
            assert!(removed.stderr_text().contains("banger rm user"), "{removed}");
            host.banger(["image", "show", &app]).run().assert_ok();
            host.banger(["rm", "user"]).run().assert_ok();
        } else {
            assert!(made.stderr_text().contains("small:1"), "{made}");
            assert_eq!(host.vm_names(), [""; 0]);
        }
    }
    host.finish();
}

/// "a `kill -9` of the CLI" at bad moments leaves no VM that nobody wanted: before its directory is
/// there, when it is, when its supervisor is, and when its VMM is.
#[test]
fn a_cli_that_dies_while_it_makes_a_vm_leaves_none() {
    let host = Host::new();
    let has_directory = || {
        let entries = std::fs::read_dir(host.data.join("vms")).into_iter().flatten();
        entries.count() > 0
    };
    let runs = |program: &'static str| !host.processes_named(program).is_empty();
    let moments: [(&str, &dyn Fn() -> bool); 4] = [
        ("at once", &|| true),
        ("it has a directory", &has_directory),
        ("it has a supervisor", &|| runs("banger-shim")),
        ("it has a VMM", &|| runs("qemu-system-x86_64")),
    ];
    for (moment, has_come) in moments {
        for signal in [Signal::SIGKILL, Signal::SIGINT] {
            let making = host.banger(["run", "-d", "--name", "orphan"]).spawn();
            wait::until(moment, SOON, || has_come().then_some(()));
            making.signal(signal);
            let output = making.wait();
            if output.code == 0 {
                // It was made before the signal came.
                host.banger(["rm", "-f", "orphan"]).run().assert_ok();
            }
            wait::until("nothing of it is left", SOON, || {
                let gone = host.vm_names().is_empty() && !has_directory();
                (gone && !runs("banger-shim") && !runs("qemu-system-x86_64")).then_some(())
            });
        }
    }
    host.finish();
}

/// "20 VMs created at once": all get up, with names of their own, and all go.
#[test]
fn twenty_at_once() {
    const COUNT: usize = 20;
    const BOUND: Duration = Duration::from_secs(600);
    let host = Host::new();
    if nix::unistd::Uid::effective().is_root() && !host.account.is_root() {
        host.finish();
        return banger_testkit::skip("it takes a minute of all processors, and root's half has it");
    }
    // All share the processors: each boot takes as long as all of them.
    banger_e2e::configure(&host, "config.toml", "boot_timeout_s = 600\n");
    let begun = Instant::now();
    let making = || host.banger(["run", "-d", "-q", "--cpus", "1", "--memory", "128M"]);
    let making: Vec<_> = (0..COUNT).map(|_| making().timeout(BOUND).spawn()).collect();
    let name = |output: Output| output.assert_ok().stdout_text().trim().to_owned();
    let names: BTreeSet<String> = making.into_iter().map(|making| name(making.wait())).collect();
    let all_up = begun.elapsed();
    assert_eq!(names.len(), COUNT, "all names are distinct");
    let listed: BTreeSet<String> = host.vm_names().into_iter().collect();
    assert_eq!(listed, names);
    for name in &names {
        assert_eq!(host.state(name).as_deref(), Some("running"));
    }
    let begun = Instant::now();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    host.banger([&["rm", "-f"], &all[..]].concat()).timeout(BOUND).run().assert_ok();
    eprintln!("{COUNT} up after {all_up:.1?}, removed in {:.1?}", begun.elapsed());
    host.finish();
}
