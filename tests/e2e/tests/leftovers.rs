//! "`doctor --fix` shows and removes what is left from older versions or foreign kills, touching
//! only what is provably ours."

use std::path::Path;

use banger_testkit::Host;
use serde_json::Value;

const STRANGER: &str = "00000000aaaa";

fn sh(host: &Host, script: &str) {
    host.program(Path::new("/bin/sh"), ["-ec", script]).run().assert_ok();
}

/// What `doctor --fix` did, by the kind of thing.
fn fixed(host: &Host, more: &[&str]) -> Vec<Value> {
    let words = ["doctor", "--fix", "--format", "json"].iter().chain(more);
    let done = host.banger(words).run().assert_ok();
    let lines = done.stdout_text();
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn outcome(fixed: &[Value], kind: &str) -> String {
    let found = fixed.iter().find(|one| one["kind"] == kind);
    let found = found.unwrap_or_else(|| panic!("no {kind} in {fixed:#?}"));
    assert!(found["why"].as_str().is_some_and(|why| !why.is_empty()), "says why: {found}");
    found["outcome"].as_str().unwrap_or_default().to_owned()
}

/// "Dry and idempotent."
#[test]
fn doctor_fix_removes_what_is_left_and_keeps_what_may_be_data() {
    let host = Host::new();
    host.banger(["create", "--name", "kept"]).run().assert_ok();
    let kept = host.vm_dir("kept");
    host.banger(["daemon", "stop"]).run().assert_ok();
    host.wait_until_gone("bangerd");
    let plant = format!(
        "cd {data}
         mkdir -p vms/{STRANGER}/run vms/00000000bbbb vms/.deleting-00000000cccc vms/notes
         echo precious > vms/{STRANGER}/root.cow
         touch vms/{STRANGER}/lock vms/00000000bbbb/launch.json cache/agents.json.tmp
         touch -d '1 day ago' cache/agents.json.tmp
         perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un($ARGV[0]))' \
             {runtime}/api.sock",
        data = host.data.display(),
        runtime = host.runtime.display(),
    );
    sh(&host, &plant);

    let dry = host.banger(["doctor"]).run().assert_ok();
    for word in ["leftovers", "cache/agents.json.tmp", "api.sock", "banger doctor --fix"] {
        assert!(dry.stdout_text().contains(word), "{word} is not told: {dry}");
    }
    assert!(host.data.join("cache/agents.json.tmp").exists(), "a look changes nothing");
    assert_eq!(host.daemon_pid(), None, "and starts nothing");

    let done = fixed(&host, &[]);
    assert!(outcome(&done, "directory").starts_with("set aside as "), "{done:#?}");
    assert_eq!(outcome(&done, "temporary"), "removed");
    assert_eq!(outcome(&done, "socket"), "replaced by the daemon");
    assert_eq!(outcome(&done, "interrupted"), "removed by the daemon");
    let aside = host.data.join("set-aside").join(STRANGER);
    let disk = std::fs::read_to_string(aside.join("root.cow")).expect("it was set aside");
    assert_eq!(disk, "precious\n");
    assert!(!host.data.join("vms/00000000bbbb").exists(), "no disk, no data");
    assert!(host.data.join("vms/notes").exists(), "banger gives no such names");
    assert!(kept.join("root.cow").exists(), "a VM of the database is not left over");

    let again = fixed(&host, &[]);
    assert!(again.iter().all(|one| one["remedy"] == "keep"), "once is enough: {again:#?}");
    assert_eq!(outcome(&fixed(&host, &["--discard"]), "set-aside"), "removed");
    assert!(!aside.exists());
    sh(&host, &format!("rmdir {}/vms/notes", host.data.display()));
    host.banger(["doctor", "--fix"]).run().assert_ok().assert_stderr_has("nothing is left over");
    host.finish();
}

/// "orphan shim/VMM/pasta processes whose VM directory/row is gone"
#[test]
fn doctor_fix_ends_machines_that_no_database_knows() {
    let host = Host::new();
    let polite = host.running_vm("polite");
    let write = ["exec", &polite, "--", "sh", "-c", "echo unsynced > /root/note"];
    host.banger(write).run().assert_ok();
    let polite = host.vm_dir(&polite);
    let bare = host.running_vm("bare");
    let bare = host.vm_dir(&bare);
    host.banger(["daemon", "stop"]).run().assert_ok();
    // A foreign hand: the database goes, and the directory of one of them.
    sh(&host, &format!("cd {} && rm banger.db* && rm -rf {}", host.data.display(), bare.display()));
    assert!(host.processes_named("banger-shim").len() >= 2, "both run on");

    let done = fixed(&host, &[]);
    let of = |dir: &Path| {
        let lock = dir.join("lock").display().to_string();
        let of_it = done.iter().filter(|one| one["path"] == lock.as_str());
        of_it.map(|one| one["outcome"].as_str().unwrap_or_default()).collect::<Vec<_>>()
    };
    assert!(of(&polite).contains(&"stopped"), "its guest's data is saved: {done:#?}");
    assert!(of(&bare).contains(&"killed"), "nobody can ask it any more: {done:#?}");
    for program in ["banger-shim", "qemu-system-x86_64", "pasta", "pasta.avx2"] {
        host.wait_until_gone(program);
    }
    let id = polite.file_name().expect("an id");
    assert!(host.data.join("set-aside").join(id).join("root.cow").exists());
    assert_eq!(outcome(&fixed(&host, &["--discard"]), "set-aside"), "removed");
    host.finish();
}
