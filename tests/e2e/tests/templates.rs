//! VMs that begin from a saved guest, and what two of them must not have in common.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use banger_testkit::sparse::disk_digest;
use banger_testkit::{Host, manifest, wait};
use serde_json::Value;

/// How far the clock of a guest may be off, in seconds.
const CLOCK_SLACK_S: f64 = 1.0;

fn origin(host: &Host, vm: &str) -> String {
    host.show(vm)["status"]["origin"].as_str().unwrap_or_default().to_owned()
}

/// What a script prints in a VM.
fn said(host: &Host, vm: &str, script: &str) -> String {
    host.banger(["exec", vm, "--", "sh", "-c", script]).run().assert_ok().stdout_text()
}

/// The directory of the one template that there is.
fn template(host: &Host) -> PathBuf {
    let entries = std::fs::read_dir(host.data.join("templates")).expect("there are templates");
    let mut dirs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    assert_eq!(dirs.len(), 1, "{dirs:?}");
    dirs.remove(0)
}

/// Takes a file of the template out of what tests share, so that it can be damaged.
fn own_copy(host: &Host, name: &str) -> PathBuf {
    let path = template(host).join(name);
    let copy = path.with_extension("copy");
    banger_testkit::sparse::copy(&path, &copy).expect("copied");
    std::fs::rename(&copy, &path).expect("our own directory");
    host.account.own(&path);
    path
}

/// "Later run/create/start of a fresh root disk restore from it … `--cold` forces a boot … hit or miss
/// is shown in show and events"
#[test]
fn fresh_disks_begin_from_the_template_and_used_ones_boot() {
    let host = Host::new();
    let vm = host.running_vm("warm");
    assert_eq!(origin(&host, &vm), "template");
    host.banger(["show", &vm]).run().assert_ok().assert_stdout_has("from a template");
    assert!(said(&host, &vm, "uname -r; cat /proc/mounts").contains("/lib/modules/"));
    host.banger(["logs", "--console", &vm]).run().assert_ok().assert_stdout_has("device-mapper");
    said(&host, &vm, "echo kept > /root/kept; sync");
    host.banger(["restart", &vm]).run().assert_ok();
    assert_eq!(origin(&host, &vm), "boot");
    assert_eq!(said(&host, &vm, "cat /root/kept"), "kept\n");
    host.banger(["rm", "-f", &vm]).run().assert_ok();

    host.banger(["create", "-q", "--name", "late"]).run().assert_ok();
    host.banger(["start", "late"]).run().assert_ok();
    assert_eq!(origin(&host, "late"), "template");
    host.banger(["rm", "-f", "late"]).run().assert_ok();
    host.banger(["run", "-d", "-q", "--cold", "--name", "cold"]).run().assert_ok();
    assert_eq!(origin(&host, "cold"), "boot");
    let events = host.banger(["events", "--since", "1h", "--no-follow", "--format", "json"]).run();
    let origins: Vec<String> = events
        .assert_ok()
        .stdout_text()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("an object per line"))
        .filter(|event| event["type"] == "vm.running")
        .map(|event| event["origin"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(origins, ["template", "boot", "template", "boot"]);
    host.finish();
}

/// "Two VMs from one template never share identity: machine-id, host keys, random streams, clocks right"
#[test]
fn two_from_one_template_have_nothing_in_common_that_they_must_not() {
    let host = Host::new();
    let vms = ["left", "right"].map(|name| host.running_vm(name));
    for vm in &vms {
        assert_eq!(origin(&host, vm), "template");
    }
    for (what, script) in [
        ("random bytes", "head -c 32 /dev/urandom | od -An -tx1"),
        ("random bytes of a program", "head -c 16 /proc/sys/kernel/random/uuid"),
        ("the boot's id", "cat /proc/sys/kernel/random/boot_id"),
        ("the machine's id", "cat /etc/machine-id"),
        ("the host's name", "hostname; cat /etc/hostname; cat /proc/sys/kernel/hostname"),
        (
            "the places of programs",
            "cat /proc/self/maps | head -n 1; cat /proc/self/auxv | od -An -tx1 | tail -n 4",
        ),
        ("ssh host keys", "ssh-keygen -A > /dev/null; cat /etc/ssh/ssh_host_ed25519_key.pub"),
    ] {
        let [left, right] = vms.each_ref().map(|vm| said(&host, vm, script));
        assert_ne!(left, right, "{what}");
    }
    for vm in &vms {
        let there: f64 = said(&host, vm, "date +%s.%N").trim().parse().expect("a time");
        let here = wait::since_1970().as_secs_f64();
        assert!((here - there).abs() < CLOCK_SLACK_S, "{vm}: {there}, and here it is {here}");
        let uptime = said(&host, vm, "cut -d ' ' -f 1 /proc/uptime");
        let uptime: f64 = uptime.trim().parse().expect("seconds");
        assert!((0.0..600.0).contains(&uptime), "{vm}: up for {uptime} s");
    }
    host.finish();
}

/// "A test compares the template's digest after its clones ran": what they write is their own.
#[test]
fn a_template_is_never_written() {
    let host = Host::new();
    let dir = template(&host);
    let digests = || {
        ["memory", "devices", "root.cow"].map(|name| disk_digest(&dir.join(name)).expect("read"))
    };
    let (before, taken) = (digests(), std::fs::metadata(dir.join("memory")).expect("it").blocks());
    let vms = ["one", "two", "three"].map(|name| host.running_vm(name));
    for vm in &vms {
        let fill = "head -c 60000000 /dev/urandom > /dev/shm/x; cp /dev/shm/x /root/x; sync; rm /dev/shm/x";
        said(&host, vm, fill);
    }
    for vm in &vms {
        host.banger(["rm", "-f", vm]).run().assert_ok();
    }
    assert_eq!(digests(), before);
    assert_eq!(std::fs::metadata(dir.join("memory")).expect("it").blocks(), taken);
    host.finish();
}

/// The memory that others begin with can be read by a VMM and not written, whoever has taken it over.
#[test]
fn a_vmm_cannot_write_the_template() {
    const ACCESS: u32 = 0o3;
    let host = Host::new();
    let vm = host.running_vm("reader");
    let memory = std::fs::metadata(template(&host).join("memory")).expect("it is there");
    let vmm = host.processes_named("qemu-system-x86_64")[0];
    let mut opens = 0;
    for entry in std::fs::read_dir(format!("/proc/{vmm}/fd")).expect("it lives").flatten() {
        let Ok(found) = std::fs::metadata(entry.path()) else { continue };
        if (found.dev(), found.ino()) != (memory.dev(), memory.ino()) {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let info =
            std::fs::read_to_string(format!("/proc/{vmm}/fdinfo/{name}")).expect("it is open");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
        let flags = u32::from_str_radix(flags.trim(), 8).expect("octal");
        assert_eq!(flags & ACCESS, 0, "for reading only: {info}");
        opens += 1;
    }
    let mounts = std::fs::read_to_string(format!("/proc/{vmm}/mountinfo")).expect("it lives");
    let mount = mounts.lines().find(|line| line.contains(" /vm/memory ")).expect("it is mounted");
    let options = mount.split(' ').nth(5).expect("options");
    assert!(options.split(',').any(|option| option == "ro"), "{mount}");
    assert!(opens <= 1, "QEMU keeps it open at most once");
    host.banger(["rm", "-f", &vm]).run().assert_ok();
    host.finish();
}

/// "truncated, altered or foreign files are refused": the VM runs all the same.
#[test]
fn an_altered_template_is_not_used_and_made_anew() {
    let host = Host::new();
    let memory = own_copy(&host, "memory");
    let file = std::fs::File::options().write(true).open(&memory).expect("our own copy");
    std::os::unix::fs::FileExt::write_all_at(&file, b"altered", 64 << 20).expect("written");
    drop(file);
    let altered = std::fs::metadata(&memory).expect("it is there").ino();
    let vm = host.running_vm("first");
    assert_eq!(origin(&host, &vm), "template", "of a new one");
    assert_ne!(std::fs::metadata(&memory).expect("made anew").ino(), altered);
    host.banger(["daemon", "logs"]).run().assert_ok().assert_stdout_has("it has another digest");
    host.finish();
}

/// "a template that fails to restore falls back to a cold boot once, says so, and is rebuilt"
#[test]
fn a_template_that_does_not_work_is_a_boot_and_is_made_anew() {
    let host = Host::new();
    let devices = own_copy(&host, "devices");
    let bytes = std::fs::read(&devices).expect("our own copy");
    std::fs::remove_file(&devices).expect("our own copy");
    std::fs::write(&devices, &bytes[..bytes.len() / 2]).expect("cut short");
    host.account.own(&devices);
    // Its digest is right: it is the VMM that does not take it.
    let path = devices.with_file_name("template.json");
    manifest::rewrite(&path, &host.account, |manifest| {
        let sealed = &mut manifest["seal"]["files"]["devices"];
        sealed["sha256"] = disk_digest(&devices).expect("read").into();
        sealed["bytes"] = std::fs::metadata(&devices).expect("it is there").len().into();
    });

    let first = host.banger(["run", "-d", "--name", "first"]).run().assert_ok();
    assert!(
        first.stderr_text().contains("the template did not work, so the guest boots"),
        "{first}"
    );
    assert_eq!(origin(&host, "first"), "boot");
    assert_eq!(said(&host, "first", "echo works"), "works\n");
    host.running_vm("second");
    assert_eq!(origin(&host, "second"), "template");
    host.finish();
}

/// A work disk of any size appears in a guest that was saved without one.
#[test]
fn a_work_disk_is_there_in_a_guest_that_was_saved_without() {
    let host = Host::new();
    host.banger(["run", "-d", "-q", "--name", "work", "--work-disk", "300M"]).run().assert_ok();
    assert_eq!(origin(&host, "work"), "template");
    let mounted = said(&host, "work", "grep ' /root ' /proc/mounts; cat /sys/class/block/vdc/size");
    assert!(mounted.contains("ext4") && mounted.contains("614400"), "{mounted}");
    said(&host, "work", "echo kept > /root/kept");
    host.banger(["restart", "work"]).run().assert_ok();
    assert_eq!(said(&host, "work", "cat /root/kept"), "kept\n");
    host.finish();
}

/// "`template ls|show|rm|prune`"
#[test]
fn templates_are_listed_shown_made_and_removed() {
    let host = Host::new();
    let listed = host.banger(["template", "ls", "-q"]).run().assert_ok().stdout_text();
    let id = listed.trim().to_owned();
    assert_eq!(id.len(), 12, "{listed}");
    host.banger(["template", "show", &id[..4]])
        .run()
        .assert_ok()
        .assert_stdout_has("debian-bookworm");
    let again = host.banger(["template", "make", "-q"]).run().assert_ok();
    assert_eq!(again.stdout_text().trim(), id, "it is there already");
    let small = host.banger(["template", "make", "-q", "-m", "256M", "-c", "1"]).run().assert_ok();
    assert_ne!(small.stdout_text().trim(), id);
    assert_eq!(
        host.banger(["template", "ls", "-q"]).run().assert_ok().stdout_text().lines().count(),
        2
    );
    host.banger(["system", "df"]).run().assert_ok().assert_stdout_has("templates");
    host.banger(["template", "rm", &id]).run().assert_ok();
    let gone = host.banger(["template", "show", &id]).run().assert_code(125);
    assert!(gone.stderr_text().contains("hint: banger template ls"), "{gone}");
    host.banger(["template", "rm", "-f", &id]).run().assert_ok();
    host.banger(["template", "prune"]).run().assert_ok();
    let all = host.banger(["template", "prune", "--all", "--dry-run"]).run().assert_ok();
    assert!(all.stderr_text().contains("would free 1 template"), "{all}");
    host.banger(["template", "prune", "--all", "--yes"]).run().assert_ok();
    host.banger(["template", "ls", "-q"]).run().assert_ok().assert_stdout("");
    host.finish();
}
