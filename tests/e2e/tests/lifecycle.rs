//! The life of a machine: create, start, stop, kill, wait, list, remove.

use banger_e2e::{BOOT, SOON};
use banger_testkit::{Host, ImageGuard, wait};
use serde_json::Value;

/// "`create start stop restart kill rm ls show … wait prune`"
#[test]
fn a_machine_from_start_to_end() {
    let host = Host::new();
    let created = host.banger(["create", "--name", "tour"]).run().assert_ok();
    assert_eq!(created.stdout_text().trim(), "tour");
    assert_eq!(host.state("tour").as_deref(), Some("created"));
    host.banger(["start", "tour"]).run().assert_ok();
    assert_eq!(host.state("tour").as_deref(), Some("running"));
    host.banger(["start", "tour"]).run().assert_ok();
    let boot_id = || {
        let read = ["exec", "tour", "--", "cat", "/proc/sys/kernel/random/boot_id"];
        host.banger(read).run().assert_ok().stdout_text()
    };
    let before = boot_id();
    host.banger(["restart", "tour"]).run().assert_ok();
    assert_ne!(boot_id(), before, "it booted anew");
    host.banger(["stop", "tour"]).run().assert_ok();
    host.banger(["stop", "tour"]).run().assert_ok();
    assert_eq!(host.state("tour").as_deref(), Some("stopped"));
    assert_eq!(host.show("tour")["status"]["end"]["cause"], "stopped");
    host.banger(["start", "tour"]).run().assert_ok();
    let id = host.show("tour")["id"].as_str().expect("an id").to_owned();
    host.banger(["kill", &id[..6]]).run().assert_ok();
    host.wait_for_state("tour", "stopped");
    host.banger(["rm", "tour"]).run().assert_ok();
    assert_eq!(host.state("tour"), None);
    host.finish();
}

/// "Lists print a table for people; `--format json` prints one stable object per line … `-q` prints
/// names only"
#[test]
fn lists_are_for_people_and_scripts() {
    let host = Host::new();
    for name in ["alpha", "beta"] {
        host.banger(["create", "--name", name, "--label", &format!("first={}", &name[..1])])
            .run()
            .assert_ok();
    }
    let mut names = host.vm_names();
    names.sort();
    assert_eq!(names, ["alpha", "beta"]);
    let table = host.banger(["ls"]).run().assert_ok().stdout_text();
    assert!(table.lines().next().is_some_and(|head| head.contains("NAME")), "{table}");
    assert!(table.contains("alpha") && table.contains("debian-bookworm"), "{table}");
    let json = host.banger(["ls", "--format", "json"]).run().assert_ok().stdout_text();
    for line in json.lines() {
        let vm: Value = serde_json::from_str(line).expect("one object per line");
        assert!(vm["name"].is_string() && vm["status"]["state"] == "created", "{vm}");
    }
    host.banger(["ls", "-q", "--filter", "label=first=b"])
        .run()
        .assert_ok()
        .assert_stdout("beta\n");
    let dry = host.banger(["prune", "--dry-run"]).run();
    assert_eq!(dry.code, 0, "{dry}");
    assert_eq!(host.vm_names().len(), 2, "a dry run removes nothing");
    host.finish();
}

/// "shows what goes and take `--dry-run` and `--yes`"
#[test]
fn prune_removes_what_has_ended() {
    let host = Host::new();
    host.banger(["run", "--name", "ended", "--", "true"]).run().assert_ok();
    let vm = host.running_vm("living");
    host.wait_for_state("ended", "stopped");
    host.banger(["prune", "--dry-run"]).run().assert_ok().assert_stdout_has("ended");
    host.banger(["prune", "--yes"]).run().assert_ok();
    assert_eq!(host.vm_names(), [vm]);
    host.finish();
}

/// "`stop` syncs and unmounts in the guest before power-off"
#[test]
fn stop_saves_what_was_not_synced() {
    let host = Host::new();
    let vm = host.running_vm("saver");
    let script = "head -c 3000000 /dev/urandom > /root/data; sha256sum /root/data";
    let sum = host.banger(["exec", &vm, "--", "sh", "-c", script]).run().assert_ok();
    host.banger(["stop", &vm]).run().assert_ok();
    host.banger(["start", &vm]).run().assert_ok();
    let again = host.banger(["exec", &vm, "--", "sha256sum", "/root/data"]).run().assert_ok();
    assert_eq!(sum.stdout_text(), again.stdout_text());
    host.finish();
}

/// "Data written and fsynced in the guest is there after `kill` + `start`."
#[test]
fn synced_data_survives_a_kill() {
    let host = Host::new();
    let vm = host.running_vm("phoenix");
    let script =
        "head -c 3000000 /dev/urandom > /root/data; sync /root/data /root; sha256sum /root/data";
    let sum = host.banger(["exec", &vm, "--", "sh", "-c", script]).run().assert_ok();
    host.banger(["kill", &vm]).run().assert_ok();
    host.wait_for_state(&vm, "stopped");
    host.banger(["start", &vm]).run().assert_ok();
    let again = host.banger(["exec", &vm, "--", "sha256sum", "/root/data"]).run().assert_ok();
    assert_eq!(sum.stdout_text(), again.stdout_text());
    host.finish();
}

/// "falls back to a hard kill after a grace period and says so"
#[test]
fn a_stop_that_takes_too_long_becomes_a_kill() {
    let host = Host::new();
    let vm = host.running_vm("stubborn");
    // A VMM that stands still is a guest that answers nothing.
    let vmms = host.processes_named("qemu-system-x86_64");
    assert!(!vmms.is_empty(), "a running VM has a VMM");
    for pid in vmms {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP)
            .expect("the VMM is alive");
    }
    host.banger(["stop", "--grace", "1s", &vm]).timeout(BOOT).run().assert_ok();
    let end = host.show(&vm)["status"]["end"].clone();
    assert_eq!(end["cause"], "stop_timed_out", "{end}");
    let reason = end["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("did not stop within its grace period"), "{reason}");
    host.finish();
}

/// "a guest that powers itself off … gives `stopped`"
#[test]
fn a_guest_may_power_itself_off() {
    let host = Host::new();
    let vm = host.running_vm("selfish");
    host.banger(["exec", &vm, "--", "sh", "-c", "echo o > /proc/sysrq-trigger; sleep 60"]).run();
    host.wait_for_state(&vm, "stopped");
    assert_eq!(host.show(&vm)["status"]["end"]["cause"], "guest_power_off");
    host.finish();
}

/// "a panic gives `failed` with the last console lines"
#[test]
fn a_guest_panic_is_a_failure_with_its_last_words() {
    let host = Host::new();
    let vm = host.running_vm("panicky");
    host.banger(["exec", &vm, "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60"]).run();
    host.wait_for_state(&vm, "failed");
    let end = host.show(&vm)["status"]["end"].clone();
    assert_eq!(end["cause"], "guest_panic", "{end}");
    assert!(end["reason"].as_str().is_some_and(|reason| reason.contains("panic")), "{end}");
    assert!(end["console_tail"].as_array().is_some_and(|tail| !tail.is_empty()), "{end}");
    host.banger(["start", &vm]).run().assert_ok();
    host.finish();
}

/// "Guest `reboot` restarts the guest under the same shim"
#[test]
fn a_guest_may_reboot_itself() {
    let host = Host::new();
    let vm = host.running_vm("again");
    let boot_id = || {
        let read = ["exec", &vm, "--", "cat", "/proc/sys/kernel/random/boot_id"];
        let output = host.banger(read).run();
        (output.code == 0).then(|| output.stdout_text())
    };
    let before = boot_id().expect("it runs");
    host.banger(["exec", &vm, "--", "sh", "-c", "echo b > /proc/sysrq-trigger; sleep 60"]).run();
    wait::until("the guest is back", BOOT, || boot_id().filter(|now| *now != before));
    assert_eq!(host.state(&vm).as_deref(), Some("running"));
    host.finish();
}

/// "`stop`, `rm` … are repeatable", and `wait` answers at once for what has ended.
#[test]
fn repeatable_verbs() {
    let host = Host::new();
    host.banger(["run", "--name", "twice", "--", "sh", "-c", "exit 3"]).run().assert_code(3);
    host.wait_for_state("twice", "stopped");
    for _ in 0..2 {
        let waited = host.banger(["wait", "twice"]).timeout(SOON).run();
        waited.assert_ok().assert_stdout("3\n");
        host.banger(["stop", "twice"]).run().assert_ok();
        host.banger(["kill", "twice"]).run().assert_ok();
    }
    host.banger(["rm", "-f", "twice"]).run().assert_ok();
    host.banger(["rm", "-f", "twice"]).run().assert_ok();
    host.finish();
}

/// "Console logs are capped", and so are those of main processes.
#[test]
fn logs_are_capped() {
    const CAP: u64 = 8 << 20;
    let host = Host::new();
    let script = "seq 1 4000000; touch /tmp/said-it; sleep 1000";
    host.banger(["run", "-d", "--name", "chatty", "--", "sh", "-c", script]).run().assert_ok();
    wait::until("it has said everything", 4 * BOOT, || {
        let test = ["exec", "chatty", "--", "test", "-e", "/tmp/said-it"];
        (host.banger(test).run().code == 0).then_some(())
    });
    wait::until("the last line is in the log", SOON, || {
        let tail = host.banger(["logs", "--tail", "1", "chatty"]).run().assert_ok();
        (tail.stdout_text() == "4000000\n").then_some(())
    });
    let dir = host.vm_dir("chatty");
    let bytes: u64 = ["main.log", "main.log.1"]
        .iter()
        .filter_map(|name| std::fs::metadata(dir.join(name)).ok())
        .map(|metadata| metadata.len())
        .sum();
    assert!((CAP / 4..=CAP).contains(&bytes), "{bytes} bytes of at most {CAP}");
    host.finish();
}

/// "a full host disk under a running VM pauses it with a reason and loses nothing …, never a
/// corrupted image or another VM's data"
#[test]
fn a_full_host_disk_pauses_the_machine() {
    if !nix::unistd::Uid::effective().is_root() {
        return banger_testkit::skip("mounting a small file system needs root");
    }
    let host = Host::new();
    let vms = host.data.join("vms");
    let disk = SmallDisk::mount(&host, &vms);
    let images = ImageGuard::of(&host.data);
    let neighbour = host.running_vm("neighbour");
    let before = "head -c 3000000 /dev/urandom > /root/data; sync; sha256sum < /root/data";
    let before = host.banger(["exec", &neighbour, "--", "sh", "-c", before]).run().assert_ok();
    // It goes on writing while its neighbour fills the disk, until it is paused as well, or told.
    let busy = "i=0; while [ ! -e /tmp/enough ]; do i=$((i+1)); echo $i > /root/count; sync /root/count; done; cat /root/count";
    let busy = host.banger(["exec", &neighbour, "--", "sh", "-c", busy]).timeout(4 * BOOT).spawn();
    let vm = host.running_vm("cramped");
    let script = "head -c 150000000 /dev/urandom > /root/data; sync; sha256sum < /root/data";
    let writing = host.banger(["exec", &vm, "--", "sh", "-c", script]).timeout(4 * BOOT).spawn();
    host.wait_for_state(&vm, "paused");
    let warnings = host.show(&vm)["status"]["warnings"].to_string();
    assert!(warnings.contains("host-disk-full"), "{warnings}");
    disk.grow();
    let sum = writing.wait().assert_ok();
    host.wait_for_state(&vm, "running");
    host.banger(["restart", &vm]).run().assert_ok();
    let again = host.banger(["exec", &vm, "--", "sh", "-c", "sha256sum < /root/data"]).run();
    assert_eq!(again.assert_ok().stdout_text(), sum.stdout_text());
    host.wait_for_state(&neighbour, "running");
    host.banger(["exec", &neighbour, "--", "touch", "/tmp/enough"]).run().assert_ok();
    let count = busy.wait().assert_ok().stdout_text();
    host.banger(["restart", &neighbour]).run().assert_ok();
    let read = ["exec", &neighbour, "--", "sh", "-c", "sha256sum < /root/data; cat /root/count"];
    let after = host.banger(read).run().assert_ok();
    let both = before.stdout_text() + &count;
    assert_eq!(after.stdout_text(), both, "another machine's data");
    images.assert_unchanged(&host.data);
    host.banger(["rm", "-f", &vm, &neighbour]).run().assert_ok();
    drop(disk);
    host.finish();
}

/// A file system of 100 MiB under a host's machines.
pub(crate) struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    pub(crate) fn mount(host: &Host, dir: &std::path::Path) -> Self {
        host.program("/bin/mkdir".as_ref(), ["-m", "700", "-p", &dir.to_string_lossy()])
            .run()
            .assert_ok();
        let (uid, gid) = (host.account.uid, host.account.gid);
        let options = format!("size=100m,mode=0700,uid={uid},gid={gid}");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("small"), dir, Some("tmpfs"), flags, Some(options.as_str()))
            .expect("we are root");
        Self(dir.to_owned())
    }

    /// Makes it one of 600 MiB.
    pub(crate) fn grow(&self) {
        let flags = nix::mount::MsFlags::MS_REMOUNT;
        nix::mount::mount(Some("small"), &self.0, Some("tmpfs"), flags, Some("size=600m"))
            .expect("we are root");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
