//! "snapshot create/ls/show/restore/rm": what a VM is can be kept, and it can go back to it.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use banger_e2e::{BOOT, SOON};
use banger_testkit::{Host, manifest, wait};

/// How far the clock of a VM that went back may be off, in seconds.
const CLOCK_SLACK_S: f64 = 1.0;

/// What a script prints in a VM.
fn said(host: &Host, vm: &str, script: &str) -> String {
    host.banger(["exec", vm, "--", "sh", "-c", script]).run().assert_ok().stdout_text()
}

fn snapshots(host: &Host) -> Vec<String> {
    let listed = host.banger(["snapshot", "ls", "-q"]).run().assert_ok().stdout_text();
    listed.lines().map(str::to_owned).collect()
}

fn file(host: &Host, snapshot: &str, name: &str) -> PathBuf {
    host.vm_dir("web").join("snapshots").join(snapshot).join(name)
}

/// "disk + memory of a running VM, consistent pair"; "back in place (the old state kept as an automatic
/// snapshot, so that restore can be undone)"
#[test]
fn a_running_vm_goes_back_and_forward_again() {
    let host = Host::new();
    host.banger(["run", "-d", "-q", "--name", "web", "--work-disk", "128M"]).run().assert_ok();
    let script = "ssh-keygen -A > /dev/null; cat /etc/machine-id /etc/ssh/*.pub > /dev/shm/was; \
                  mkdir -p /etc/banger/copied.d; \
                  printf \"#!/bin/sh\\necho hooked > /dev/shm/hooked\\n\" > /etc/banger/copied.d/10; \
                  chmod +x /etc/banger/copied.d/10; cd; df --output=target . | tail -1; \
                  for f in /note /root/note /dev/shm/note; do echo early > $f; done";
    assert_eq!(said(&host, "web", script), "/root\n", "the work disk");
    let count = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; sleep 0.05; done";
    said(&host, "web", &format!("setsid nohup sh -c '{count}' > /dev/null 2>&1 &"));
    let counted = || said(&host, "web", "cat /dev/shm/count || true").trim().parse::<u64>().ok();
    wait::until("it counts", BOOT, counted);

    let taken = host.banger(["snapshot", "create", "web", "early"]).run().assert_ok();
    taken.assert_stdout("early\n").assert_stderr_has("web stood still for ");
    host.banger(["snapshot", "show", "web", "early"]).run().assert_ok().assert_stdout_has("memory");
    said(&host, "web", "for f in /note /root/note /dev/shm/note; do echo late > $f; done; sync");
    let at_that_time = wait::until("a number", SOON, counted);
    let chat = host.banger(["exec", "web", "--", "sleep", "1000"]).timeout(4 * BOOT).spawn();

    let notes = "cat /note /root/note /dev/shm/note";
    let mut drawn = BTreeSet::new();
    let mut boots = BTreeSet::new();
    for undo in ["auto-1", "auto-2"] {
        let restored = host.banger(["snapshot", "restore", "web", "early"]).run().assert_ok();
        let hint = format!("to undo: banger snapshot restore web {undo}");
        restored.assert_stdout("web\n").assert_stderr_has(&hint);
        assert_eq!(said(&host, "web", notes), "early\nearly\nearly\n");
        let then = wait::until("a number", SOON, counted);
        wait::until("it counts on", BOOT, || counted().filter(|now| *now > then));
        let is_itself =
            "cat /etc/machine-id /etc/ssh/*.pub | cmp - /dev/shm/was && cat /dev/shm/hooked";
        assert_eq!(said(&host, "web", is_itself), "hooked\n", "the same machine, which was told");
        drawn.insert(said(&host, "web", "head -c 32 /dev/urandom | od -An -tx1"));
        boots.insert(said(&host, "web", "cat /proc/sys/kernel/random/boot_id"));
        let there: f64 = said(&host, "web", "date +%s.%N").trim().parse().expect("a time");
        let here = wait::since_1970().as_secs_f64();
        assert!((there - here).abs() < CLOCK_SLACK_S, "{there}, and here it is {here}");
    }
    assert!(drawn.len() == 2 && boots.len() == 2, "no number is drawn twice");
    assert_ne!(chat.wait().code, 0, "a command of before has ended");
    host.banger(["show", "web"]).run().assert_ok().assert_stdout_has("from a snapshot");

    host.banger(["snapshot", "restore", "-q", "web", "auto-1"]).run().assert_ok();
    assert_eq!(said(&host, "web", notes), "late\nlate\nlate\n");
    assert!(counted().is_some_and(|now| now >= at_that_time), "with its memory");
    assert_eq!(snapshots(&host), ["early", "auto-1", "auto-2", "auto-3"]);
    host.banger(["snapshot", "rm", "web", "auto-1", "auto-2"]).run().assert_ok();
    assert_eq!(said(&host, "web", notes), "late\nlate\nlate\n", "it needs no name any more");
    host.banger(["restart", "web"]).run().assert_ok();
    assert_eq!(said(&host, "web", "cat /note /root/note"), "late\nlate\n", "a VM like any other");
    host.banger(["rm", "-f", "web"]).run().assert_ok();
    assert!(snapshots(&host).is_empty());
    host.finish();
}

/// "disk only of a stopped one"; "survive daemon and host restarts"
#[test]
fn snapshots_outlive_what_runs() {
    let host = Host::new();
    host.running_vm("web");
    said(&host, "web", "echo early > /root/note; sync; echo memory > /dev/shm/note");
    host.banger(["snapshot", "create", "-q", "web", "warm"]).run().assert_ok();
    host.banger(["stop", "web"]).run().assert_ok();
    let taken = host.banger(["snapshot", "create", "web"]).run().assert_ok();
    taken.assert_stdout("snapshot-1\n");
    let show = ["snapshot", "show", "--format", "json", "web", "snapshot-1"];
    let shown = host.banger(show).run().assert_ok().stdout_text();
    assert!(!shown.contains("\"memory\":"), "{shown}");
    host.banger(["start", "-q", "web"]).run().assert_ok();
    said(&host, "web", "echo late > /root/note; sync");

    // As when the power is cut: nothing of it runs, and nobody has said a word.
    host.kill_dash_nine(host.daemon_pid().expect("a daemon runs"));
    for pid in host.processes_named("banger-shim") {
        host.kill_dash_nine(pid);
    }
    host.wait_until_gone("qemu-system-x86_64");
    host.banger(["snapshot", "restore", "-q", "web", "snapshot-1"]).run().assert_ok();
    let state = host.state("web").expect("it is there");
    assert_eq!(state, "failed", "it was not running then, and how it ended is still so");
    host.banger(["start", "-q", "web"]).run().assert_ok();
    assert_eq!(said(&host, "web", "cat /root/note"), "early\n");
    host.banger(["snapshot", "restore", "-q", "web", "warm"]).run().assert_ok();
    assert_eq!(said(&host, "web", "cat /root/note /dev/shm/note"), "early\nmemory\n");
    host.banger(["snapshot", "restore", "-q", "web", "auto-1"]).run().assert_ok();
    host.banger(["start", "-q", "web"]).run().assert_ok();
    assert_eq!(said(&host, "web", "cat /root/note"), "late\n");
    host.finish();
}

/// "truncated, altered or foreign files are refused with a clear error; restore on another CPU model is
/// refused with the reason": and the VM runs on.
#[test]
fn what_is_not_what_it_was_is_refused() {
    let host = Host::new();
    host.running_vm("web");
    let since = host.show("web")["status"]["since_ms"].clone();
    let spoil = |name: &str, words: &str, how: &dyn Fn()| {
        host.banger(["snapshot", "create", "-q", "web", name]).run().assert_ok();
        how();
        let refused = host.banger(["snapshot", "restore", "web", name]).run().assert_code(125);
        let refused =
            refused.assert_stderr_has(&format!("the snapshot {name} of VM web cannot be"));
        refused.assert_stderr_has(words).assert_stderr_has("hint: ");
    };
    let write = |name: &str, file_name: &str| {
        let path = file(&host, name, file_name);
        let mut mode = std::fs::metadata(&path).expect("it is there").permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
        std::fs::set_permissions(&path, mode).expect("ours");
        std::fs::File::options().write(true).open(&path).expect("open")
    };
    spoil("altered", "root.cow is not what it was", &|| {
        write("altered", "root.cow").write_all_at(b"x", 4096).expect("written");
    });
    spoil("short", "memory is not what it was: it has another size", &|| {
        write("short", "memory").set_len(4096).expect("truncated");
    });
    spoil("moved", "its guest ran on another processor: a 486", &|| {
        let path = file(&host, "moved", "snapshot.json");
        manifest::rewrite(&path, &host.account, |manifest| {
            manifest["what"]["snapshot"]["memory"]["cpu"] = "a 486".into();
        });
    });
    spoil("upgraded", "it was made by another release of banger", &|| {
        let path = file(&host, "upgraded", "snapshot.json");
        manifest::rewrite(&path, &host.account, |manifest| {
            manifest["what"]["snapshot"]["memory"]["machine"] = "another".into();
        });
    });
    spoil("edited", "its snapshot.json cannot be read", &|| {
        let path = file(&host, "edited", "snapshot.json");
        let text = std::fs::read_to_string(&path).expect("read");
        std::fs::write(&path, text.replace("\"cpus\": 2", "\"cpus\": 4")).expect("write");
    });
    let spoilt = ["altered", "short", "moved", "upgraded", "edited"];
    host.banger(["snapshot", "rm", "web"].into_iter().chain(spoilt)).run().assert_ok();
    host.banger(["snapshot", "restore", "web", "nope"]).run().assert_code(125);
    host.banger(["snapshot", "create", "web", "auto-1"]).run().assert_code(125);
    host.banger(["snapshot", "rm", "web", "nope"]).run().assert_code(125);
    host.banger(["snapshot", "rm", "-f", "web", "nope"]).run().assert_ok();
    assert_eq!(host.show("web")["status"]["since_ms"], since, "it ran all the time");
    host.finish();
}
