//! "The VMM is jailed … A test runs a probe in the VMM's place and shows that it reaches neither
//! `$HOME`, nor `api.sock`, ssh-agent or any other unix socket of the user, nor the shim's `/proc`,
//! nor nft, nor the image for writing; as root it is not root."

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use banger_e2e::{SOON, static_program};
use banger_testkit::{Host, wait};

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
         for word in \"$@\" .; do [ -f \"$word/launch.json\" ] && dir=$word; done\n\
         sed -i 's#\"binary\":\"[^\"]*\"#\"binary\":\"{}\"#' \"$dir/launch.json\"\n\
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
    let _listening = UnixListener::bind(&agent).expect("ours");
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

    let failed = host
        .banger(["run", "--name", "probed", "--", "true"])
        .env("BANGER_LIBEXEC_DIR", &libexec)
        .timeout(4 * SOON)
        .run();
    assert_eq!(failed.code, 125, "a probe is no virtual machine: {failed}");
    let _ = bait;
    let report =
        wait::until("the probe's report", SOON, || report_of(&host, &failed.stderr_text()));
    assert!(!report.contains("REACHED"), "{report}");
    for what in ["home", "proc", "sockets", "image", "nft", "root"] {
        assert!(report.contains(&format!("kept out: {what}")), "nothing about {what} in {report}");
    }
    host.finish();
}

/// The probe's words: in the shim's log while the machine is there, else in what the CLI printed.
fn report_of(host: &Host, printed: &str) -> Option<String> {
    let mut texts = vec![printed.to_owned()];
    for vm in std::fs::read_dir(host.data.join("vms")).into_iter().flatten().flatten() {
        for log in ["shim.log", "console.log"] {
            texts.push(std::fs::read_to_string(vm.path().join(log)).unwrap_or_default());
        }
    }
    texts.into_iter().find(|text| text.contains("probe done"))
}
