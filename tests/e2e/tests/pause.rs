//! "pause, resume": the virtual CPUs stand still, nothing of the machine is lost, and it goes on.

use banger_e2e::{BOOT, SOON};
use banger_testkit::{Host, wait};
use serde_json::{Value, json};

use crate::lifecycle::SmallDisk;

/// A machine whose main process counts, a line each time.
fn counting(host: &Host, name: &str) -> String {
    let count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
    host.banger(["run", "-d", "-q", "--name", name, "--", "sh", "-c", count]).run().assert_ok();
    name.to_owned()
}

/// How far it has counted.
fn count(host: &Host, vm: &str) -> u64 {
    let tail = host.banger(["logs", "--tail", "1", vm]).run().assert_ok().stdout_text();
    tail.trim().parse().unwrap_or(0)
}

fn wait_for_count(host: &Host, vm: &str, least: u64) {
    let what = format!("{vm} counts to {least}");
    wait::until(&what, BOOT, || (count(host, vm) >= least).then_some(()));
}

fn pause(host: &Host, vm: &str) {
    host.banger(["pause", vm]).run().assert_ok().assert_stdout(&format!("{vm}\n"));
    let status = host.show(vm)["status"].clone();
    assert_eq!((&status["state"], &status["paused"]), (&json!("paused"), &json!(["requested"])));
}

fn resume(host: &Host, vm: &str) {
    host.banger(["resume", vm]).run().assert_ok().assert_stdout(&format!("{vm}\n"));
    assert_eq!(host.state(vm).as_deref(), Some("running"));
}

/// "the virtual CPUs of a running VM stand still … nothing of it is lost; exec streams stay open and
/// simply get no bytes"
#[test]
fn a_paused_machine_stands_still_and_goes_on_where_it_was() {
    const LINES: u64 = 2_000_000;
    let host = Host::new();
    let vm = counting(&host, "still");
    let neighbour = counting(&host, "neighbour");
    wait_for_count(&host, &vm, 1);
    let mut chat = host.banger(["exec", &vm, "--", "cat"]).timeout(4 * BOOT).spawn();
    chat.send(b"before\n");
    wait::until("the echo", SOON, || (chat.stdout_so_far() == b"before\n").then_some(()));
    let script = format!("seq 1 {LINES}; read go; seq $(({LINES} + 1)) $((2 * {LINES}))");
    let flood = ["exec", &vm, "--", "sh", "-c", &script];
    let mut flood = host.banger(flood).timeout(4 * BOOT).spawn();
    wait::closely("the flood", SOON, || (!flood.stdout_so_far().is_empty()).then_some(()));

    pause(&host, &vm);
    pause(&host, &vm);
    let progress = || (count(&host, &vm), flood.stdout_so_far().len());
    let some_time = || wait_for_count(&host, &neighbour, count(&host, &neighbour) + 20);
    let (frozen, arrived) = wait::until("what was under way has arrived", BOOT, || {
        let before = progress();
        some_time();
        (progress() == before).then_some(before)
    });
    chat.send(b"during\n");
    flood.send(b"go\n");
    some_time();
    assert_eq!(count(&host, &vm), frozen, "it counts on");
    assert_eq!(flood.stdout_so_far().len(), arrived, "it writes on");
    assert_eq!(chat.stdout_so_far(), b"before\n", "it echoes on");

    resume(&host, &vm);
    resume(&host, &vm);
    wait_for_count(&host, &vm, frozen + 5);
    wait::until("the echo", SOON, || (chat.stdout_so_far() == b"before\nduring\n").then_some(()));
    chat.close_stdin();
    chat.wait().assert_ok().assert_stdout("before\nduring\n");
    let flood = flood.wait().assert_ok();
    let want: String = (1..=2 * LINES).map(|number| format!("{number}\n")).collect();
    assert!(flood.stdout_text() == want, "{} bytes of {}", flood.stdout.len(), want.len());
    let logs = host.banger(["logs", &vm]).run().assert_ok().stdout_text();
    let counted: Vec<u64> = logs.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(counted.iter().copied().eq(1..=counted.len() as u64), "it counted once: {logs}");
    host.finish();
}

/// "exec refused … and what to type"; "events (vm.paused, vm.resumed)"
#[test]
fn what_a_paused_machine_cannot_do_is_said_with_what_to_type() {
    let host = Host::new();
    host.banger(["create", "-q", "--name", "off"]).run().assert_ok();
    let refused = |words: &[&str], title: &str, hint: &str| {
        let refused = host.banger(words).run().assert_code(125);
        refused.assert_stderr_has(title).assert_stderr_has(&format!("hint: {hint}\n"));
    };
    refused(&["pause", "off"], "VM off is created, so it cannot be paused", "banger start off");
    refused(&["resume", "off"], "VM off is created, so it cannot be resumed", "banger start off");

    let vm = host.running_vm("web");
    pause(&host, &vm);
    refused(&["exec", "web", "--", "true"], "VM web is paused", "banger resume web");
    refused(&["shell", "web"], "VM web is paused", "banger resume web");
    refused(&["start", "web"], "VM web is paused, so it cannot be started", "banger resume web");
    refused(&["image", "promote", "web", "x"], "web is paused", "banger stop web");
    host.banger(["ls"]).run().assert_ok().assert_stdout_has("paused");
    host.banger(["show", "web"]).run().assert_ok().assert_stdout_has("until `banger resume web`");
    let set = host.banger(["set", "web", "-c", "1"]).run().assert_ok();
    set.assert_stdout_has("at the next start");
    host.banger(["logs", "--console", "web"]).run().assert_ok();
    resume(&host, &vm);
    host.banger(["exec", "web", "--", "true"]).run().assert_ok();
    let kinds = ["vm.paused", "vm.resumed"].map(|kind| format!("type={kind}"));
    let filters = kinds.iter().flat_map(|kind| ["--filter", kind]);
    let asked = ["events", "--since", "1h", "--no-follow", "--format", "json"];
    let told = host.banger(asked.into_iter().chain(filters)).run().assert_ok().stdout_text();
    let told: Vec<Value> =
        told.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!((&told[0]["type"], &told[0]["reason"]), (&json!("vm.paused"), &json!("requested")));
    assert_eq!(told[1]["type"], "vm.resumed");
    host.finish();
}

/// "the guest's clock is set to the host's", while what measures time in it stood still
#[test]
fn the_clock_is_right_after_a_pause() {
    const PAUSE_S: u64 = 5;
    let host = Host::new();
    let vm = host.running_vm("clock");
    let read = || -> (f64, f64) {
        let script = "date +%s.%N; cut -d' ' -f1 /proc/uptime";
        let told = host.banger(["exec", &vm, "--", "sh", "-c", script]).run().assert_ok();
        let text = told.stdout_text();
        let numbers: Vec<f64> = text.lines().map(|line| line.parse().expect("a time")).collect();
        (numbers[0], numbers[1])
    };
    let now = || wait::since_1970().as_secs_f64();
    let (began, before) = (now(), read().1);
    pause(&host, &vm);
    let paused = now();
    wait::until("some seconds", SOON, || (now() > paused + PAUSE_S as f64).then_some(()));
    let resumed = now();
    resume(&host, &vm);
    let asked = now();
    let (guest, after) = read();
    let answered = now();
    assert!(guest > asked - 1.0, "{guest} is behind {asked}");
    assert!(guest < answered + 1.0, "{guest} is ahead of {answered}");
    let could_run = (answered - began) - (resumed - paused);
    assert!(after - before <= could_run + 0.1, "up {before} and {after}, could run {could_run}");
    host.finish();
}

/// "`stop` resumes it first and then stops it in order"
#[test]
fn stop_saves_what_a_paused_machine_has_not_synced() {
    let host = Host::new();
    let vm = host.running_vm("saver");
    let write = "head -c 2000000 /dev/urandom > /root/synced; sync /root/synced /root; \
         head -c 2000000 /dev/urandom > /root/not-synced; cd /root; sha256sum synced not-synced";
    let sums = host.banger(["exec", &vm, "--", "sh", "-c", write]).run().assert_ok();
    pause(&host, &vm);
    let stopped = host.banger(["stop", &vm]).timeout(BOOT).run().assert_ok();
    assert!(!stopped.stderr_text().contains("warning"), "{stopped}");
    let status = host.show(&vm)["status"].clone();
    assert_eq!(status["end"]["cause"], "stopped", "{status}");
    assert!(status["paused"].is_null(), "{status}");
    host.banger(["start", &vm]).run().assert_ok();
    let read = ["exec", "-w", "/root", &vm, "--", "sha256sum", "synced", "not-synced"];
    host.banger(read).run().assert_ok().assert_stdout(&sums.stdout_text());
    host.finish();
}

/// "a daemon restart adopts it as paused", whose command goes on as well
#[test]
fn a_paused_machine_outlives_the_daemon() {
    let host = Host::new();
    let vm = host.running_vm("steady");
    let script = "echo up; read go; exit 5";
    let mut command = host.banger(["exec", &vm, "--", "sh", "-c", script]).spawn();
    wait::until("it runs", SOON, || (command.stdout_so_far() == b"up\n").then_some(()));
    pause(&host, &vm);
    host.kill_dash_nine(host.daemon_pid().expect("a daemon runs"));
    let status = host.show(&vm)["status"].clone();
    assert_eq!((&status["state"], &status["paused"]), (&json!("paused"), &json!(["requested"])));
    command.send(b"go\n");
    resume(&host, &vm);
    command.wait().assert_code(5);
    host.finish();
}

/// "`kill`, `rm -f` and the end of a `run --rm` client work at once", and so does the time to live
#[test]
fn a_paused_machine_can_be_ended_at_once() {
    let host = Host::new();
    let vm = host.running_vm("doomed");
    pause(&host, &vm);
    let waiting = host.banger(["wait", &vm]).spawn();
    host.banger(["kill", &vm]).timeout(SOON).run().assert_ok();
    assert_eq!(host.show(&vm)["status"]["end"]["cause"], "killed");
    waiting.wait().assert_ok();
    host.banger(["start", &vm]).run().assert_ok();
    pause(&host, &vm);
    host.banger(["rm", &vm]).run().assert_code(125).assert_stderr_has("VM doomed is paused");
    host.banger(["rm", "-f", &vm]).timeout(SOON).run().assert_ok();

    // Its client has more to say than anybody takes while it stands still.
    let run = ["run", "--rm", "--name", "once", "--", "sh", "-c", "echo up; cat > /dev/null"];
    let feed = "yes | \"$0\" \"$@\"";
    let banger = host.programs().join("bin/banger");
    let words = ["-c", feed, &banger.to_string_lossy()];
    let client = host.program("/bin/sh".as_ref(), words.into_iter().chain(run)).spawn();
    wait::until("it runs", 2 * BOOT, || (client.stdout_so_far() == b"up\n").then_some(()));
    pause(&host, "once");
    for pid in host.processes_named("banger") {
        host.kill_dash_nine(pid);
    }
    client.wait();
    wait::until("it is gone", SOON, || host.vm_names().is_empty().then_some(()));

    let vm = host.running_vm("brief");
    pause(&host, &vm);
    host.banger(["set", &vm, "--ttl", "1s"]).run().assert_ok();
    wait::until("it is gone", BOOT, || host.vm_names().is_empty().then_some(()));
    host.finish();
}

/// "A VM that a person paused must NOT be resumed by that tick, and a full host disk while it is
/// paused must not lose either fact"
#[test]
fn a_machine_that_somebody_paused_does_not_go_on_when_the_disk_has_space() {
    if !nix::unistd::Uid::effective().is_root() {
        return banger_testkit::skip("mounting a small file system needs root");
    }
    let host = Host::new();
    let disk = SmallDisk::mount(&host, &host.data.join("vms"));
    let vm = host.running_vm("cramped");
    let script = "head -c 150000000 /dev/urandom > /root/data; sync; sha256sum < /root/data";
    let writing = host.banger(["exec", &vm, "--", "sh", "-c", script]).timeout(4 * BOOT).spawn();
    host.wait_for_state(&vm, "paused");
    let reasons = || host.show(&vm)["status"]["paused"].clone();
    assert_eq!(reasons(), json!(["host-disk-full"]));
    host.banger(["ls"]).run().assert_ok().assert_stdout_has("paused (host-disk-full)");
    let refused = host.banger(["resume", &vm]).run().assert_code(125);
    refused.assert_stderr_has("the host's disk is full").assert_stderr_has("hint: make room");
    host.banger(["pause", &vm]).run().assert_ok();
    assert_eq!(reasons(), json!(["requested", "host-disk-full"]));
    disk.grow();
    wait::until("one reason is left", SOON, || (reasons() == json!(["requested"])).then_some(()));
    assert_eq!(host.state(&vm).as_deref(), Some("paused"));
    resume(&host, &vm);
    let sum = writing.wait().assert_ok();
    host.banger(["restart", &vm]).run().assert_ok();
    let again = host.banger(["exec", &vm, "--", "sh", "-c", "sha256sum < /root/data"]).run();
    assert_eq!(again.assert_ok().stdout_text(), sum.stdout_text());
    host.banger(["rm", "-f", &vm]).run().assert_ok();
    drop(disk);
    host.finish();
}
