//! "fork VM [-n N]": running copies of a running VM, each of which is its own machine.

use std::fs::DirEntry;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use banger_e2e::{BOOT, SOON};
use banger_testkit::sparse::disk_digest;
use banger_testkit::{Host, wait};

use crate::network::address_of_this_host;

/// What a guest has to stop in.
const GRACE: Duration = Duration::from_secs(10);
/// How far the clock of a copy may be off, in seconds.
const CLOCK_SLACK_S: f64 = 1.0;

/// What a script prints in a VM.
fn said(host: &Host, vm: &str, script: &str) -> String {
    host.banger(["exec", vm, "--", "sh", "-c", script]).run().assert_ok().stdout_text()
}

fn is_unfinished(entry: &DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with("tmp-")
}

/// Starts something that no command waits for.
fn leave_running(host: &Host, vm: &str, script: &str) {
    said(host, vm, &format!("setsid nohup sh -c '{script}' > /dev/null 2>&1 &"));
}

/// "N running copies of a running VM … every copy must be its own machine"
#[test]
fn copies_have_memory_and_disks_and_are_machines_of_their_own() {
    let host = Host::new();
    let env = ["-e", "TOKEN=hush", "--label", "a=b", "--work-disk", "128M"];
    let run = ["run", "-d", "-q", "--name", "web"].into_iter().chain(env);
    host.banger(run).run().assert_ok();
    let script = "head -c 20M /dev/urandom > /dev/shm/blob; echo disk > /root/note; \
                  mkdir -p /etc/banger/copied.d; \
                  printf \"#!/bin/sh\\necho hooked > /dev/shm/hooked\\n\" > /etc/banger/copied.d/10-told; \
                  chmod +x /etc/banger/copied.d/10-told; ssh-keygen -A > /dev/null; \
                  cat /proc/sys/kernel/random/boot_id > /dev/shm/was";
    said(&host, "web", script);
    leave_running(
        &host,
        "web",
        "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; sleep 0.05; done",
    );
    wait::until("it counts", BOOT, || {
        said(&host, "web", "cat /dev/shm/count || true").trim().parse::<u64>().ok()
    });
    let chat = ["exec", "web", "--", "sh", "-c", "cat; echo over >> /dev/shm/over"];
    let mut chat = host.banger(chat).timeout(4 * BOOT).spawn();
    chat.send(b"before\n");
    wait::until("the echo", SOON, || (chat.stdout_so_far() == b"before\n").then_some(()));

    let forked = host.banger(["fork", "web", "-n", "2", "--name", "try"]).run().assert_ok();
    forked.assert_stdout("try-1\ntry-2\n").assert_stderr_has("web stood still for ");
    let machines = ["web", "try-1", "try-2"];
    let same = |what: &str, script: &str| {
        let all = machines.map(|vm| said(&host, vm, script));
        assert!(!all[0].is_empty() && all.iter().all(|it| *it == all[0]), "{what}: {all:?}");
    };
    same("the memory", "sha256sum < /dev/shm/blob; cat /dev/shm/was");
    same("the disks", "cat /root/note; df --output=size,target | sort");
    assert_three_machines(&host, machines);
    for copy in ["try-1", "try-2"] {
        assert_eq!(said(&host, copy, "cat /dev/shm/hooked; echo $TOKEN"), "hooked\n\n", "{copy}");
        assert_eq!(said(&host, copy, "cat /dev/shm/over 2> /dev/null; pgrep -x cat || true"), "");
        host.banger(["show", copy]).run().assert_ok().assert_stdout_has("as a copy");
        let shown = host.show(copy);
        assert_eq!(
            (&*shown["status"]["origin"].to_string(), &*shown["spec"]["labels"]["a"].to_string()),
            ("\"fork\"", "\"b\"")
        );
        // What did not belong to a command goes on, in each by itself.
        let count = || said(&host, copy, "cat /dev/shm/count || true").trim().parse::<u64>().ok();
        let then = wait::until("a number", SOON, count);
        wait::until("it counts on", BOOT, || count().filter(|now| *now > then));
        let there: f64 = said(&host, copy, "date +%s.%N").trim().parse().expect("a time");
        let here = wait::since_1970().as_secs_f64();
        assert!((there - here).abs() < CLOCK_SLACK_S, "{copy}: {there}, and here it is {here}");
    }
    assert_eq!(said(&host, "web", "ls /dev/shm/hooked 2> /dev/null; echo $TOKEN"), "hush\n");

    chat.send(b"after\n");
    wait::until("the echo", SOON, || (chat.stdout_so_far() == b"before\nafter\n").then_some(()));
    chat.close_stdin();
    chat.wait().assert_ok().assert_stdout("before\nafter\n");
    said(&host, "try-1", "echo mine > /root/note; echo mine > /dev/shm/note; sync");
    same_elsewhere(&host);
    host.banger(["restart", "try-1"]).run().assert_ok();
    assert_eq!(said(&host, "try-1", "cat /root/note"), "mine\n", "it is a VM like any other");
    let shelf = std::fs::read_dir(host.data.join("templates")).expect("there are templates");
    assert!(!shelf.flatten().any(|entry| is_unfinished(&entry)), "what was saved is gone");
    host.finish();
}

/// Nothing of what makes a machine one is shared.
fn assert_three_machines(host: &Host, machines: [&str; 3]) {
    for (what, script) in [
        ("random bytes", "head -c 32 /dev/urandom | od -An -tx1"),
        ("the boot's id", "cat /proc/sys/kernel/random/boot_id"),
        ("the machine's id", "cat /etc/machine-id"),
        ("the host's name", "hostname; cat /etc/hostname"),
        ("ssh host keys", "cat /etc/ssh/ssh_host_ed25519_key.pub"),
    ] {
        let all = machines.map(|vm| said(host, vm, script));
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2], "{what}: {all:?}");
    }
}

fn same_elsewhere(host: &Host) {
    for vm in ["web", "try-2"] {
        assert_eq!(
            said(host, vm, "cat /root/note; ls /dev/shm/note 2> /dev/null || true"),
            "disk\n",
            "{vm}"
        );
    }
}

/// Writes pages in small windows, each window many times before it goes to the next: only in one of them can
/// pages be unfinished at any moment.
const WRITER: &str = r#"
    open(my $f, '+>', '/dev/shm/pages') or die;
    syswrite($f, sprintf("%012d\n", 19) . ("\0" x 4083)) for 1..64 * 400;
    for (my $g = 1;; $g++) { for my $w (0..399) { for my $r (0..19) {
        my $v = sprintf("%012d\n", $g * 1000 + $r);
        for my $p (0..63) { sysseek($f, ($w * 64 + $p) * 4096, 0); syswrite($f, $v); }
    } } }
"#;
const CHECK: &str = r#"
    open(my $f, '<', '/dev/shm/pages') or die; my %torn;
    for my $p (0..64 * 400 - 1) {
        sysseek($f, $p * 4096, 0); sysread($f, my $b, 12); $torn{int($p / 64)}++ if $b % 1000 != 19;
    }
    print scalar(keys %torn), "\n";
"#;
/// How often: without what QEMU before 9.0 needs, every tenth copy was torn.
const BUSY_COPIES: usize = 8;

/// A processor that never rests writes the same pages over and over while they are saved: its stacks most of
/// all. A copy with an older one of those has a kernel that falls over.
#[test]
fn a_busy_guest_is_copied_whole() {
    let host = Host::new();
    host.running_vm("web");
    host.banger(["exec", "-i", "web", "--", "sh", "-c", "cat > /root/writer"])
        .stdin(WRITER)
        .run()
        .assert_ok();
    host.banger(["exec", "-i", "web", "--", "sh", "-c", "cat > /root/check"])
        .stdin(CHECK)
        .run()
        .assert_ok();
    leave_running(&host, "web", "exec perl /root/writer");
    let is_busy = || said(&host, "web", "stat -c %s /dev/shm/pages || true").trim().parse().ok();
    wait::until("it writes", BOOT, || is_busy().filter(|size: &u64| *size >= 64 * 400 * 4096));
    for _ in 0..BUSY_COPIES {
        host.banger(["fork", "-q", "web", "--name", "copy"]).run().assert_ok();
        let script =
            "pkill -STOP perl; perl /root/check; dmesg | grep -E 'BUG|Oops|general prot' || true";
        let said = said(&host, "copy", script);
        assert!(["0\n", "1\n"].contains(&said.as_str()), "{said}");
        host.banger(["rm", "-f", "copy"]).run().assert_ok();
    }
    host.finish();
}

/// "no growth of the image or template files", and neither of the VM that they are copies of.
#[test]
fn copies_write_nowhere_but_to_what_is_their_own() {
    let host = Host::new();
    host.running_vm("web");
    said(&host, "web", "echo 1 > /root/note; sync");
    host.banger(["pause", "web"]).run().assert_ok();
    host.banger(["fork", "-q", "web", "--name", "copy"]).run().assert_ok().assert_stdout("copy\n");
    assert_eq!(host.state("web").as_deref(), Some("paused"), "it stays so");
    assert_eq!(host.state("copy").as_deref(), Some("running"));
    let disk = host.vm_dir("web").join("root.cow");
    let before = disk_digest(&disk).expect("its digest");
    said(&host, "copy", "head -c 8M /dev/urandom > /root/blob; sync");
    assert_eq!(disk_digest(&disk).expect("its digest"), before);
    host.banger(["fork", "-q", "web", "--name", "again"]).run().assert_ok();
    assert_eq!(host.state("web").as_deref(), Some("paused"), "it still does");
    host.banger(["resume", "web"]).run().assert_ok();
    assert_eq!(said(&host, "web", "cat /root/note; ls /root"), "1\nnote\n");
    host.finish();
}

/// "in-flight TCP connections reset not hung": in the copy. Those of the VM stay.
#[test]
fn connections_of_the_vm_are_reset_in_the_copy() {
    let Some(address) = address_of_this_host() else {
        return eprintln!("skipped: this host has no address of its own");
    };
    let host = Host::new();
    host.banger(["run", "-d", "-q", "--net", "host-access", "--name", "web"]).run().assert_ok();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let reads = format!(
        "exec 3<>/dev/tcp/{address}/{port}; echo hello >&3; read line <&3; echo \"$line.\" > /dev/shm/read"
    );
    said(&host, "web", &format!("setsid nohup bash -c '{reads}' > /dev/null 2>&1 &"));
    let (mut peer, _) = listener.accept().expect("the guest connects");
    peer.read_exact(&mut [0; 6]).expect("it says hello");

    host.banger(["fork", "-q", "web", "--name", "copy"]).run().assert_ok();
    let read = |vm: &str| said(&host, vm, "cat /dev/shm/read 2> /dev/null || true");
    wait::until("it is told in the copy", BOOT, || (read("copy") == ".\n").then_some(()));
    assert_eq!(read("web"), "", "it still waits");
    peer.write_all(b"there\n").expect("the connection stands");
    wait::until("it is told in the VM", BOOT, || (read("web") == "there.\n").then_some(()));
    host.finish();
}

/// A VM that is to end does not wait for its copy, and ends in order.
#[test]
fn a_stop_ends_a_fork_that_is_under_way() {
    let host = Host::new();
    host.running_vm("web");
    said(
        &host,
        "web",
        "head -c 300M /dev/zero | tr '\\0' x > /dev/shm/blob; echo kept > /root/note",
    );
    let fork = host.banger(["fork", "web", "--name", "copy"]).timeout(4 * BOOT).spawn();
    wait::closely("it begins to be saved", SOON, || {
        let shelf = std::fs::read_dir(host.data.join("templates")).ok()?;
        shelf.flatten().find(|entry| entry.path().join("memory").exists() && is_unfinished(entry))
    });
    let began = Instant::now();
    host.banger(["stop", "web"]).run().assert_ok();
    assert!(began.elapsed() < GRACE, "{:?}", began.elapsed());
    assert_eq!(host.state("web").as_deref(), Some("stopped"));
    let forked = fork.wait();
    let copies = usize::from(forked.code == 0);
    assert_eq!(host.vm_names().len(), 1 + copies, "all or nothing");
    host.banger(["start", "-q", "web"]).run().assert_ok();
    assert_eq!(said(&host, "web", "cat /root/note"), "kept\n");
    host.finish();
}

/// What cannot be copied says so, and what to type.
#[test]
fn what_cannot_be_copied_says_why() {
    let host = Host::new();
    host.banger(["create", "-q", "--name", "web"]).run().assert_ok();
    host.banger(["fork", "web"]).run().assert_code(125).assert_stderr_has("banger start web");
    host.banger(["fork", "nobody"]).run().assert_code(125).assert_stderr_has("banger ls");
    host.banger(["fork", "web", "-n", "0"]).run().assert_code(2);
    host.banger(["start", "-q", "web"]).run().assert_ok();
    host.banger(["fork", "web", "--name", "web"]).run().assert_code(125).assert_stderr_has("web");
    host.banger(["set", "web", "-c", "1"]).run().assert_ok();
    host.banger(["fork", "web"]).run().assert_code(125).assert_stderr_has("banger restart web");
    assert_eq!(host.vm_names(), ["web"]);
    host.finish();
}
