//! Changing what a machine is, and the disk that outlives its root.

use banger_testkit::Host;

/// What a command in the guest prints, without the line feed.
fn guest(host: &Host, vm: &str, script: &str) -> String {
    let done = host.banger(["exec", vm, "--", "sh", "-c", script]).run().assert_ok();
    done.stdout_text().trim().to_owned()
}

/// MiB that a file system of the guest has.
fn mib(host: &Host, vm: &str, path: &str) -> u64 {
    let size = guest(host, vm, &format!("df -m --output=size {path} | tail -n 1"));
    size.trim().parse().expect("a number")
}

/// "`vm set` (cpus, memory, disk grow, … labels …; applied at next start or at once where possible,
/// saying which)"
#[test]
fn what_is_set_is_so_at_once_or_at_the_next_start() {
    let host = Host::new();
    let vm = host.running_vm("grower");
    let sum = guest(&host, &vm, "head -c 3000000 /dev/urandom > /root/data; sha256sum /root/data");
    let set = ["set", &vm, "-c", "1", "-m", "768M", "--disk", "12G", "--label", "team=a"];
    host.banger(set).run().assert_ok().assert_stdout(
        "grower: cpus 2 → 1 (at the next start)\n\
         grower: memory 1 GiB → 768 MiB (at the next start)\n\
         grower: disk 8 GiB → 12 GiB (at the next start)\n\
         grower: label team none → a (at once)\n",
    );
    assert_eq!(host.show(&vm)["pending"].as_array().map(Vec::len), Some(3));
    host.banger(["show", &vm]).run().assert_ok().assert_stdout_has("cpus 2 → 1");
    host.banger(["ls", "-q", "--filter", "label=team=a"])
        .run()
        .assert_ok()
        .assert_stdout("grower\n");
    assert_eq!(guest(&host, &vm, "nproc"), "2", "it runs as it was");
    host.banger(["restart", &vm]).run().assert_ok();
    assert_eq!(guest(&host, &vm, "nproc"), "1");
    let memory = guest(&host, &vm, "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo");
    let memory_mib = memory.parse::<u64>().expect("a number") / 1024;
    assert!((600..=768).contains(&memory_mib), "{memory_mib} MiB");
    assert!((11_000..12_400).contains(&mib(&host, &vm, "/")), "{}", mib(&host, &vm, "/"));
    assert!(host.show(&vm)["pending"].is_null());
    // A file system that has grown once grows again, also while its VM does not run.
    host.banger(["stop", &vm]).run().assert_ok();
    host.banger(["set", &vm, "--disk", "40G"]).run().assert_ok();
    host.banger(["start", &vm]).run().assert_ok();
    assert!((37_000..41_000).contains(&mib(&host, &vm, "/")), "{}", mib(&host, &vm, "/"));
    assert_eq!(guest(&host, &vm, "sha256sum /root/data"), sum);
    assert_eq!(guest(&host, &vm, "grep -c ' / ext4 rw' /proc/mounts"), "1");
    host.finish();
}

/// "work disk create/resize/keep across re-imaging"
#[test]
fn a_work_disk_is_the_users_home_and_survives() {
    let host = Host::new();
    let create =
        ["run", "-d", "-q", "--name", "worker", "--user", "www-data", "--work-disk", "256M"];
    host.banger(create).run().assert_ok();
    let vm = "worker";
    // www-data is an ordinary user whose home the image does not have.
    assert_eq!(
        guest(&host, vm, "cd; pwd; stat -c %U .; findmnt -no FSTYPE -T . || true"),
        "/var/www\nwww-data\next4"
    );
    guest(&host, vm, "echo mine > ~/file; mkdir ~/dir; ln -s file ~/dir/link");
    let before = mib(&host, vm, "/var/www");
    assert!((180..256).contains(&before), "{before}");
    let refused = host.banger(["set", vm, "--work-disk", "none", "--yes"]).run();
    assert_eq!(refused.code, 125, "{refused}");
    assert!(refused.stderr_text().contains("hint: banger stop worker"), "{refused}");
    // What was synced is there after any end, and the guest's kernel replays the journal.
    guest(&host, vm, "sync ~/file ~");
    host.banger(["kill", vm]).run().assert_ok();
    host.banger(["set", vm, "--work-disk", "1G"]).run().assert_ok();
    host.banger(["start", vm]).run().assert_ok();
    assert_eq!(guest(&host, vm, "cat ~/file"), "mine");
    let after = mib(&host, vm, "/var/www");
    assert!((900..1024).contains(&after), "{after}");
    // "keep across re-imaging": a fresh root disk, the same work disk.
    host.banger(["exec", "-u", "root", vm, "--", "touch", "/etc/old"]).run().assert_ok();
    host.banger(["stop", vm]).run().assert_ok();
    let reimage = ["set", vm, "--image", "debian-bookworm"];
    assert_eq!(host.banger(reimage).run().code, 125, "nobody is asked, so nothing is replaced");
    host.banger(reimage.iter().chain(&["--yes"]))
        .run()
        .assert_ok()
        .assert_stdout_has("worker: image");
    host.banger(["start", vm]).run().assert_ok();
    assert_eq!(guest(&host, vm, "cat ~/file; test -e /etc/old || echo fresh"), "mine\nfresh");
    host.banger(["stop", vm]).run().assert_ok();
    let asked = host.banger(["set", vm, "--work-disk", "none"]).run();
    assert_eq!(asked.code, 125, "nobody is asked, so nothing is removed: {asked}");
    assert!(host.vm_dir(vm).join("work.ext4").exists());
    host.banger(["set", vm, "--work-disk", "none", "--yes"]).run().assert_ok();
    assert!(!host.vm_dir(vm).join("work.ext4").exists());
    host.banger(["start", vm]).run().assert_ok();
    assert_eq!(guest(&host, vm, "ls -A ~ 2>/dev/null"), "");
    host.finish();
}

/// "work disk create/resize/keep": like a volume, it begins with what the image has in that place.
#[test]
fn a_new_work_disk_has_what_the_image_has_there() {
    let host = Host::new();
    host.banger(["run", "-d", "-q", "--name", "rooted", "--work-disk", "1G"]).run().assert_ok();
    let vm = "rooted";
    let seen = guest(&host, vm, "stat -c '%a %U' /root; ls -A /root | grep -c bashrc");
    assert_eq!(seen, "700 root\n1");
    guest(&host, vm, "rm /root/.bashrc");
    host.banger(["restart", vm]).run().assert_ok();
    assert_eq!(guest(&host, vm, "ls -A /root | grep -c bashrc || true"), "0", "it is copied once");
    host.finish();
}

/// "Errors say what failed, because of what, and what to type next."
#[test]
fn what_cannot_be_set_is_refused_with_a_reason() {
    let host = Host::new();
    host.banger(["create", "--name", "fixed"]).run().assert_ok();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["set", "fixed", "--disk", "4G"], 125, "the root disk cannot shrink from 8 GiB to 4 GiB"),
        (&["set", "fixed", "--disk", "900T"], 125, "larger than the limit of 8 TiB"),
        (&["set", "fixed", "-c", "999"], 125, "hint: banger set fixed --cpus"),
        (&["set", "fixed", "-m", "1M"], 125, "hint: banger set fixed --memory 128M"),
        (&["set", "fixde", "-c", "1"], 125, "did you mean fixed?"),
        (&["set", "fixed"], 2, "required"),
    ];
    for (words, code, text) in cases {
        let refused = host.banger(words).run();
        assert_eq!(refused.code, code, "{refused}");
        assert!(refused.stderr_text().contains(text), "{refused}");
    }
    let small = host.banger(["create", "--work-disk", "1M"]).run();
    assert_eq!(small.code, 125, "{small}");
    assert!(small.stderr_text().contains("at least 128 MiB"), "{small}");
    host.finish();
}
