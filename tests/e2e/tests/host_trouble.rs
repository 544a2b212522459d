//! "Host trouble: … fd and process limits, … two daemons, … HOME on NFS-like storage without flock (a
//! clear refusal), very long paths." Full disks are in `full_disk.rs`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_e2e::{SOON, remove_whole, static_program};
use banger_testkit::{Account, Host, Output, Seed, skip, wait};

/// Long enough on a busy machine, and far from the half minute that a start may take.
const AT_ONCE: Duration = Duration::from_secs(12);

/// "two daemons over one data dir (refused at once with the cause)"
#[test]
fn a_second_daemon_is_refused_at_once() {
    let host = Host::builder().seed(Seed::Nothing).build();
    host.banger(["ls"]).run().assert_ok();
    let other = host.scratch.join("other-run");
    let there = |words: &[&str]| host.banger(words).env("BANGER_RUNTIME_DIR", &other);
    let refused = there(&["ls"]).timeout(AT_ONCE).run().assert_code(125);
    let runtime = host.runtime.display().to_string();
    refused.clone().assert_stderr_has("another daemon serves").assert_stderr_has(&runtime);
    refused.assert_stderr_has("hint: BANGER_RUNTIME_DIR=");
    there(&["daemon", "stop"]).timeout(AT_ONCE).run().assert_code(125);
    assert!(host.daemon_pid().is_some(), "it goes on");
    host.finish();
}

/// Nor does a command talk to the daemon of other data, whose VMs it would show, or remove.
#[test]
fn a_daemon_with_other_data_is_not_talked_to() {
    let host = Host::builder().seed(Seed::Nothing).build();
    host.banger(["ls"]).run().assert_ok();
    let other = host.scratch.join("other-data");
    let there = |words: &[&str]| host.banger(words).env("BANGER_DATA_DIR", &other);
    let refused = there(&["ls"]).timeout(AT_ONCE).run().assert_code(125);
    let data = host.data.display().to_string();
    refused.clone().assert_stderr_has("has other data").assert_stderr_has(&data);
    refused.assert_stderr_has("hint: set BANGER_RUNTIME_DIR");
    // The same data by another name are the same.
    let link = host.scratch.join("link");
    std::os::unix::fs::symlink(&host.data, &link).expect("its place is free");
    std::os::unix::fs::lchown(&link, Some(host.account.uid), Some(host.account.gid)).expect("ours");
    host.banger(["ls"]).env("BANGER_DATA_DIR", &link).run().assert_ok();
    host.finish();
}

/// "HOME on NFS-like storage without flock (a clear refusal)"
#[test]
fn storage_without_locks_is_refused_clearly() {
    let host = Host::builder().seed(Seed::Nothing).build();
    // The runtime directory is on a local file system as a rule, but here it has none either.
    let no_locks = static_program(&host, "no_locks");
    let banger = host.programs().join("bin/banger");
    let refused = host.program(&no_locks, [banger.as_os_str(), "ls".as_ref()]).run();
    let refused = refused.assert_code(125);
    refused.clone().assert_stderr_has("has no locks").assert_stderr_has("No locks available");
    refused.assert_stderr_has("hint: ");
    assert_eq!(host.daemon_pid(), None);
    host.banger(["ls"]).run().assert_ok();
    host.finish();
}

/// "very long paths for data dir (>108 for sockets …), paths with spaces"
#[test]
fn long_and_odd_paths_work() {
    let base = tempfile::Builder::new().prefix("banger e2e ").tempdir_in("/var/tmp").expect("tmp");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(base.path(), mode).expect("ours");
    let long: PathBuf = (0..8).map(|n| format!("a directory with a long näme {n}")).collect();
    let data = base.path().join(long);
    let host = Host::builder().data_dir(data.clone()).build();
    // A runtime directory may be as long.
    let runtime = host.data.join("run");
    let run = ["run", "--rm", "--", "echo", "works"];
    let done = host.banger(run).env("BANGER_RUNTIME_DIR", &runtime).run();
    done.assert_ok().assert_stdout("works\n");
    let stop = host.banger(["daemon", "stop"]).env("BANGER_RUNTIME_DIR", &runtime);
    stop.run().assert_ok();
    let endless = format!("/tmp/{}", "x/".repeat(2500));
    let refused = host.banger(["ls"]).env("BANGER_DATA_DIR", endless).run().assert_code(125);
    refused.assert_stderr_has("File name too long");
    host.finish();
}

/// That a command came to its end, or was refused with one of these words and a hint; what it said.
fn works_or_is_told(done: &Output, words: &[&str]) -> String {
    let text = done.stderr_text();
    assert!(!text.contains("panicked"), "{done}");
    match done.code {
        0 => assert_eq!(done.stdout_text(), "works\n", "{done}"),
        125 => {
            assert!(words.iter().any(|word| text.contains(word)), "{done}");
            assert!(text.contains("hint: "), "{done}");
        }
        _ => panic!("{done}"),
    }
    text
}

/// "fd limit for daemon and shim"
#[test]
fn few_descriptors_give_a_clear_error_or_a_machine() {
    let host = Host::new();
    let banger = host.programs().join("bin/banger").display().to_string();
    let mut told = false;
    for limit in [12, 16, 24, 32] {
        let script = format!("ulimit -n {limit}; exec {banger} run --rm -- echo works");
        let done = host.program(Path::new("/bin/sh"), ["-c", &script]).run();
        told |= works_or_is_told(&done, &["Too many open files"]).contains("(ulimit -n)");
        host.banger(["daemon", "stop"]).run().assert_ok();
    }
    assert!(told, "the lowest is too low, and it is said which to raise");
    host.banger(["run", "--rm", "--", "true"]).run().assert_ok();
    assert_eq!(host.vm_names(), [""; 0], "nothing is left of those that failed");
    host.finish();
}

/// "fd and process limits": at whatever step there can be no more processes or threads.
#[test]
fn few_processes_give_a_clear_error_or_a_machine() {
    let host = Host::new();
    if host.account.is_root() {
        host.finish();
        return skip("no such limit holds for root");
    }
    let banger = host.programs().join("bin/banger").display().to_string();
    // The user's other processes count, too.
    let others = threads_of(host.account.uid);
    let mut told = false;
    for more in [1, 2, 4, 8, 12, 16] {
        let limit = format!("--nproc={}", others + more);
        let limited = [&limit, &banger, "run", "--rm", "--", "echo", "works"];
        let done = host.program(Path::new("/usr/bin/prlimit"), limited).run();
        let words = ["Resource temporarily unavailable", "EAGAIN"];
        told |= works_or_is_told(&done, &words).contains("(ulimit -u)");
        host.banger(["daemon", "stop"]).run().assert_ok();
    }
    assert!(told, "the lowest is too low, and it is said which to raise");
    host.banger(["run", "--rm", "--", "true"]).run().assert_ok();
    assert_eq!(host.vm_names(), [""; 0], "nothing is left of those that failed");
    host.finish();
}

fn threads_of(uid: u32) -> usize {
    let processes = std::fs::read_dir("/proc").expect("there is /proc").flatten();
    let theirs = processes.filter(|entry| entry.metadata().is_ok_and(|found| found.uid() == uid));
    let threads = theirs.filter_map(|entry| std::fs::read_dir(entry.path().join("task")).ok());
    threads.map(Iterator::count).sum()
}

/// "/run on tmpfs emptied" under a running VM, with and without its daemon.
#[test]
fn an_emptied_runtime_directory_is_made_again() {
    let host = Host::new();
    let vm = host.running_vm("rooted");
    let daemon = host.daemon_pid().expect("a daemon runs");
    let exec = || host.banger(["exec", &vm, "--", "echo", "works"]).run().assert_ok();
    remove_whole(&host.runtime);
    exec().assert_stdout("works\n");
    assert_eq!(host.daemon_pid(), Some(daemon), "the same daemon");
    assert_eq!(host.processes_named("bangerd").len(), 1, "and no other");

    host.kill_dash_nine(daemon);
    remove_whole(&host.runtime);
    exec().assert_stdout("works\n");
    host.banger(["stop", &vm]).run().assert_ok();
    assert_eq!(host.state(&vm).as_deref(), Some("stopped"));
    host.finish();
}

/// Whoever removes all state while a daemon runs gets a new one, and is shown what runs on without any.
#[test]
fn removed_state_makes_room_for_a_new_daemon() {
    let host = Host::new();
    host.running_vm("lost");
    let before = host.daemon_pid().expect("a daemon runs");
    remove_whole(&host.data);
    host.wait_until_gone("bangerd");
    assert_eq!(host.vm_names(), [""; 0]);
    assert_ne!(host.daemon_pid(), Some(before));
    // It has no directory any more that would say whose it is, but its working directory did.
    host.banger(["doctor", "--fix"])
        .run()
        .assert_ok()
        .assert_stdout_has("whose directory was deleted");
    for program in ["banger-shim", "qemu-system-x86_64", "pasta"] {
        host.wait_until_gone(program);
    }
    host.finish();
}

/// A VM whose directory somebody removes runs on, says so, and can be ended.
#[test]
fn a_vm_without_its_directory_can_be_ended() {
    let host = Host::new();
    for verb in [&["stop", "lost"][..], &["kill", "lost"], &["rm", "-f", "lost"]] {
        let vm = host.running_vm("lost");
        remove_whole(&host.vm_dir(&vm));
        if verb[0] == "stop" {
            wait::until("it is noticed", SOON, || {
                let warnings = host.show(&vm)["status"]["warnings"].to_string();
                warnings.contains("its directory is missing").then_some(())
            });
            assert_eq!(host.state(&vm).as_deref(), Some("running"));
        }
        host.banger(verb).timeout(SOON).run().assert_ok();
        host.wait_until_gone("banger-shim");
        host.banger(["rm", "-f", &vm]).run().assert_ok();
        assert!(host.vm_names().is_empty());
    }
    host.finish();
}

/// "two users": each has VMs of their own, even of the same name, and neither sees the other's.
#[test]
fn two_users_do_not_meet() {
    let ours = Host::new();
    if ours.account.current {
        ours.finish();
        return skip("for two users it takes BANGER_E2E_USER");
    }
    let theirs = Host::builder().account(Account::current()).build();
    let whose = |host: &Host, is: &str| {
        let write = format!("echo {is} > /root/whose");
        host.banger(["exec", "same", "--", "sh", "-c", &write]).run().assert_ok();
    };
    for (host, is) in [(&ours, "ours"), (&theirs, "theirs")] {
        host.running_vm("same");
        assert_eq!(host.vm_names(), ["same"]);
        whose(host, is);
    }
    let read = ["exec", "same", "--", "cat", "/root/whose"];
    ours.banger(read).run().assert_ok().assert_stdout("ours\n");
    theirs.banger(read).run().assert_ok().assert_stdout("theirs\n");

    let intrude = ours.banger(["rm", "-f", "same"]).env("BANGER_DATA_DIR", &theirs.data);
    let refused = intrude.env("BANGER_RUNTIME_DIR", &theirs.runtime).run().assert_code(125);
    refused.assert_stderr_has("Permission denied").assert_stderr_has("hint: ");
    let disk = theirs.vm_dir("same").join("root.cow");
    let read = ours.program(Path::new("/bin/cat"), [&disk]).run();
    assert_ne!(read.code, 0, "another user's disk was read");
    assert_eq!(theirs.state("same").as_deref(), Some("running"));
    ours.finish();
    theirs.finish();
}
