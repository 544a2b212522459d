//! "The VMM is jailed … A test runs a probe in the VMM's place and shows that it reaches neither
//! `$HOME`, nor `api.sock`, ssh-agent or any other unix socket of the user, nor the shim's `/proc`,
//! nor nft, nor the image for writing; as root it is not root."

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use banger_e2e::static_program;
use banger_testkit::Host;

/// A `libexec` directory whose shim starts the real one with another program in the VMM's place.
fn libexec_with_vmm(host: &Host, vmm: &Path) -> PathBuf {
    let dir = host.scratch.join("libexec");
    host.program(Path::new("/bin/mkdir"), [&dir]).run().assert_ok();
    let real = host.programs().join("libexec");
    host.program(Path::new("/bin/cp"), [real.join("bangerd"), dir.join("bangerd")])
        .run()
        .assert_ok();
    let script = format!(
        "#!/bin/sh\n\
         sed -i 's#\"binary\": *\"[^\"]*\"#\"binary\": \"{}\"#' launch.json\n\
         exec {} \"$@\"\n",
        vmm.display(),
        real.join("banger-shim").display()
    );
    let shim = dir.join("banger-shim");
    std::fs::write(&shim, script).expect("the scratch directory is there");
    std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755)).expect("ours");
    dir
}

/// The probe says one line for everything it tried: `kept out: …` or `REACHED: …`.
#[test]
fn the_vmm_is_in_a_jail() {
    let host = Host::new();
    let probe = static_program(&host, "vmm_probe");
    let libexec = libexec_with_vmm(&host, &probe);
    let secret = host.scratch.join("secret");
    std::fs::write(&secret, "the user's own file").expect("ours");
    let agent = host.scratch.join("ssh-agent.sock");
    let listening = UnixListener::bind(&agent).expect("ours");
    for path in [&secret, &agent] {
        std::os::unix::fs::lchown(path, Some(host.account.uid), Some(host.account.gid))
            .expect("ours");
    }
    let bait = [
        secret.display().to_string(),
        agent.display().to_string(),
        host.runtime.join("api.sock").display().to_string(),
        host.data.display().to_string(),
    ];
    std::fs::write(host.scratch.join("bait"), bait.join("\n")).expect("ours");

    // A machine that was created first stays after its start failed, with its logs.
    host.banger(["create", "--name", "probed"]).run().assert_ok();
    host.banger(["daemon", "stop"]).run().assert_ok();
    host.banger(["start", "probed"])
        .env("BANGER_LIBEXEC_DIR", &libexec)
        .env("BANGER_LIB_DIR", host.programs().join("lib"))
        .run()
        .assert_code(125);
    let report = report_in(&host.vm_dir("probed"));
    assert!(!report.contains("REACHED"), "{report}");
    for what in ["home", "proc", "sockets", "image", "nft", "root"] {
        assert!(report.contains(&format!("kept out: {what}")), "nothing about {what} in {report}");
    }
    drop(listening);
    host.finish();
}

/// The probe's words, in whichever log they are.
fn report_in(vm_dir: &Path) -> String {
    let files = std::fs::read_dir(vm_dir).expect("it is there").flatten().map(|entry| entry.path());
    let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    let texts = logs.map(|log| std::fs::read_to_string(log).unwrap_or_default());
    texts.filter(|text| text.contains("probe done")).collect()
}

/// "as root it is not root": the real VMM, seen from the host.
#[test]
fn the_vmm_is_never_root() {
    let host = Host::new();
    let vm = host.running_vm("humble");
    let vmms = host.processes_named("qemu-system-x86_64");
    assert!(!vmms.is_empty(), "{vm} has a VMM");
    for pid in vmms {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let of = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            line.expect("every process has it").split_whitespace().collect::<Vec<_>>()
        };
        assert!(!of("Uid:").contains(&"0"), "{:?}", of("Uid:"));
        assert!(!of("Gid:").contains(&"0"), "{:?}", of("Gid:"));
        assert_eq!(of("CapEff:"), ["0000000000000000"]);
        assert_eq!(of("NoNewPrivs:"), ["1"]);
        assert_eq!(of("Seccomp:"), ["2"], "QEMU's sandbox is on");
    }
    host.finish();
}
