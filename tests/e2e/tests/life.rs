//! What becomes of VMs over time: reasons, restart policies, times to live, events, power cuts.

use std::path::Path;

use banger_e2e::{BOOT, SOON, remove_whole};
use banger_testkit::{Host, Seed, wait};
use serde_json::{Value, json};

/// "honour `--restart no|on-failure|always` with back-off"
#[test]
fn what_fails_is_started_again_until_somebody_stops_it() {
    let host = Host::new();
    let run = ["run", "-d", "--restart", "on-failure", "--name", "phoenix", "--"];
    let fails = ["sh", "-c", "echo here >> /root/tries; sync; exit 3"];
    host.banger([&run[..], &fails].concat()).run().assert_ok();
    let status = || host.show("phoenix")["status"].clone();
    let resting = wait::until("the pause", 2 * BOOT, || {
        Some(status()).filter(|status| status["next_start_ms"].is_u64())
    });
    assert_eq!(resting["end"]["main"], json!({ "exited": 3 }));
    // If the first pause is over by now, there comes a longer one.
    wait::until("it is shown", 3 * BOOT, || {
        let table = host.banger(["ls"]).run().assert_ok().stdout_text();
        table.contains("restarting").then_some(())
    });

    // The pause is the VM's, not the daemon's.
    host.kill_dash_nine(host.daemon_pid().expect("a daemon runs"));
    wait::until("the second start", 3 * BOOT, || {
        (status()["restarts"].as_u64() >= Some(2)).then_some(())
    });
    host.banger(["stop", "phoenix"]).timeout(BOOT).run().assert_ok();
    let stopped = status();
    assert!(stopped.get("next_start_ms").is_none(), "{stopped}");
    assert_eq!(stopped["state"], "stopped", "{stopped}");
    host.finish();
}

/// "a VM that somebody stopped or killed stays so"; "always"
#[test]
fn a_guest_that_switches_itself_off_comes_back_and_a_stopped_one_does_not() {
    let host = Host::new();
    let run = ["run", "-d", "-q", "--restart", "always", "--name", "lamp"];
    host.banger(run).run().assert_ok();
    host.banger(["exec", "lamp", "--", "sh", "-c", "echo o > /proc/sysrq-trigger"]).run();
    wait::until("it ran again", 2 * BOOT, || {
        let status = host.show("lamp")["status"].clone();
        (status["state"] == "running" && status["restarts"] == 1).then_some(())
    });
    let events = events(&host, "lamp");
    let ended = events.iter().find(|event| event["type"] == "vm.stopped").expect("it ended");
    assert_eq!(ended["cause"], "guest_power_off", "{ended}");
    host.banger(["kill", "lamp"]).run().assert_ok();
    host.kill_dash_nine(host.daemon_pid().expect("a daemon runs"));
    assert_eq!(host.state("lamp").as_deref(), Some("stopped"));
    host.finish();
}

/// Everything that the daemon remembers of a VM.
fn events(host: &Host, vm: &str) -> Vec<Value> {
    let filter = format!("vm={vm}");
    let asked = ["events", "--since", "1h", "--no-follow", "--format", "json", "--filter", &filter];
    let output = host.banger(asked).run().assert_ok().stdout_text();
    output.lines().map(|line| serde_json::from_str(line).expect("an event")).collect()
}

/// "`--ttl` expiry", also of one that is set while the VM runs; "`events` stream"
#[test]
fn a_vm_whose_time_is_over_goes_and_the_events_tell() {
    let host = Host::new();
    // Before the first command there is no daemon to remember anything.
    host.banger(["ls"]).run().assert_ok();
    let following = host.banger(["events", "--filter", "type=vm.expired"]).spawn();
    host.banger(["run", "-d", "-q", "--ttl", "1h", "--name", "brief"]).run().assert_ok();
    assert!(host.show("brief")["expires_at_ms"].is_u64());
    host.banger(["ls"]).run().assert_ok().assert_stdout_has("expires in");
    let set = host.banger(["set", "brief", "--ttl", "1s"]).run().assert_ok();
    set.assert_stdout_has("(at once)");
    // It is shown no more as soon as its removal begins.
    let kinds = wait::until("it went", BOOT, || {
        let kind = |event: &Value| event["type"].as_str().expect("a kind").to_owned();
        let kinds: Vec<String> = events(&host, "brief").iter().map(kind).collect();
        kinds.iter().any(|kind| kind == "vm.removed").then_some(kinds)
    });
    assert!(host.vm_names().is_empty());
    let before = ["created", "starting", "running", "changed"];
    let after = ["expired", "stopping", "stopped", "removed"];
    let want: Vec<String> =
        [before, after].concat().iter().map(|kind| format!("vm.{kind}")).collect();
    assert_eq!(kinds, want);
    let line = "vm.expired        brief";
    wait::until("who follows is told", SOON, || {
        String::from_utf8_lossy(&following.stdout_so_far()).contains(line).then_some(())
    });
    following.signal(nix::sys::signal::Signal::SIGINT);
    following.wait().assert_code(130).assert_stdout_has(line);
    host.finish();
}

/// "demote dead ones with the true reason"; `stop` keeps what the main command said last.
#[test]
fn the_end_of_a_vm_is_told_as_it_was() {
    let host = Host::new();
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    host.banger(["run", "-d", "-q", "--name", "polite", "--", "sh", "-c", script])
        .run()
        .assert_ok();
    wait::until("the trap is set", SOON, || {
        let logs = host.banger(["logs", "polite"]).run().assert_ok();
        logs.stdout_text().contains("ready").then_some(())
    });
    let waiting = host.banger(["wait", "polite"]).spawn();
    host.banger(["stop", "polite"]).run().assert_ok();
    let end = host.show("polite")["status"]["end"].clone();
    assert_eq!((&end["cause"], &end["main"]), (&json!("stopped"), &json!({ "exited": 7 })));
    waiting.wait().assert_ok().assert_stdout("7\n");

    host.banger(["start", "polite"]).run().assert_ok();
    for pid in host.processes_named("banger-shim") {
        // The VM's inner processes may end with the first of them.
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    host.wait_for_state("polite", "failed");
    let end = host.show("polite")["status"]["end"].clone();
    let reason = end["reason"].as_str().expect("a reason");
    assert!(reason.contains("killed by signal 9, sender unknown"), "{end}");
    host.finish();
}

/// "a `kill -9` of the daemon costs a running exec nothing"; "/run on tmpfs emptied"
#[test]
fn neither_a_dead_daemon_nor_an_empty_run_costs_a_command_anything() {
    let host = Host::new();
    let vm = host.running_vm("steady");
    let script = "echo up; read go; exit 5";
    let mut owned = host.banger(["run", "--rm", "--", "sh", "-c", script]).spawn();
    wait::until("it runs", 2 * BOOT, || (owned.stdout_so_far() == b"up\n").then_some(()));
    host.kill_dash_nine(host.daemon_pid().expect("a daemon runs"));
    owned.send(b"go\n");
    owned.wait().assert_code(5).assert_stdout("up\n");
    wait::until("it is gone", SOON, || (host.vm_names() == [vm.clone()]).then_some(()));

    let daemon = host.daemon_pid();
    remove_whole(&host.runtime);
    let output = host.banger(["exec", "--timeout", "1s", &vm, "--", "sleep", "60"]).run();
    output.assert_code(124).assert_stderr_has("--timeout");
    assert_eq!(host.daemon_pid(), daemon, "the same daemon");
    host.finish();
}

/// "Host reboot and power cut are tested with a copy of the state directory", torn writes included
#[test]
fn a_power_cut_is_survived() {
    let host = Host::new();
    let run = ["run", "-d", "-q", "--restart", "always", "--name", "server"];
    host.banger(run).run().assert_ok();
    let note = "echo kept > /root/note; sync /root/note /root";
    host.banger(["exec", "server", "--", "sh", "-c", note]).run().assert_ok();
    let vm = host.running_vm("scratch");

    let after = Host::builder().seed(Seed::Nothing).build();
    let copy = |from: &Path, to: &Path| {
        let options = ["-a".as_ref(), "--sparse=always".as_ref(), "-T".as_ref()];
        let arguments = [&options[..], &[from.as_os_str(), to.as_os_str()]].concat();
        host.program(Path::new("/bin/cp"), arguments).timeout(BOOT).run().assert_ok();
    };
    copy(&host.data, &after.data);
    let dir = |vm: &str| {
        let id = host.vm_dir(vm).file_name().expect("an id").to_owned();
        after.data.join("vms").join(id)
    };
    for vm in ["server", &vm] {
        let launch = dir(vm).join("launch.json");
        let other = r#"s/"host_boot_id": "[^"]*"/"host_boot_id": "another"/"#;
        let arguments = ["-i".as_ref(), other.as_ref(), launch.as_os_str()];
        host.program(Path::new("/bin/sed"), arguments).run().assert_ok();
    }
    std::fs::write(dir(&vm).join("status.json"), "{\"state\":\"runn").expect("torn");

    assert_eq!(after.show(&vm)["status"]["end"]["cause"], "host_restarted");
    after.wait_for_state("server", "running");
    let read = ["exec", "server", "--", "cat", "/root/note"];
    after.banger(read).run().assert_ok().assert_stdout("kept\n");
    host.finish();
    after.finish();
}
