//! "doctor checks, each with pass/warn/fail, reason and the command that mends it … Works without
//! the daemon. `--format json`." And the small verbs around it.

use std::path::Path;

use banger_testkit::{Host, Seed};
use serde_json::Value;

/// The checks that the issue names.
const CHECKS: [&str; 8] = ["kvm", "user", "subuid", "pasta", "qemu", "nft", "tun", "mmdebstrap"];

#[test]
fn doctor_works_without_the_daemon() {
    let host = Host::new();
    let table = host.banger(["doctor"]).run();
    assert_eq!(host.daemon_pid(), None, "it starts none");
    let json = host.banger(["doctor", "--format", "json"]).run().stdout_text();
    for check in CHECKS {
        assert!(table.stdout_text().contains(check), "{check} is missing: {table}");
        assert!(json.contains(check), "{check} is missing: {json}");
    }
    for line in json.lines() {
        let value: Value = serde_json::from_str(line).expect("JSON");
        let checks = value["checks"].as_array().cloned().unwrap_or_else(|| vec![value]);
        for check in checks {
            assert!(
                ["pass", "warn", "fail"].contains(&check["verdict"].as_str().unwrap_or("")),
                "{check}"
            );
            assert!(check["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{check}");
        }
    }
    assert_eq!(table.code, 0, "this machine can run machines: {table}");
    host.finish();
}

/// "default image and kernel present *or obtainable*"
#[test]
fn doctor_is_content_before_the_first_pull() {
    let host = Host::builder().seed(Seed::Nothing).build();
    let output = host.banger(["doctor"]).run();
    assert_eq!(output.code, 0, "{output}");
    host.finish();
}

/// "`daemon {status,start,stop,logs}`, … `completion`, `version`"
#[test]
fn small_verbs() {
    let host = Host::new();
    host.banger(["version"]).run().assert_ok().assert_stdout_has("0.");
    for shell in ["bash", "zsh", "fish"] {
        let script = host.banger(["completion", shell]).run().assert_ok();
        assert!(script.stdout.len() > 500, "{shell}");
    }
    assert_eq!(host.daemon_pid(), None, "none of these needs a daemon");
    host.banger(["daemon", "status"]).run();
    assert_eq!(host.daemon_pid(), None, "asking starts none");
    host.banger(["daemon", "start"]).run().assert_ok();
    host.banger(["daemon", "start"]).run().assert_ok();
    host.banger(["daemon", "status"]).run().assert_ok().assert_stdout_has("0.");
    host.banger(["daemon", "logs"]).run().assert_ok();
    host.banger(["daemon", "stop"]).run().assert_ok();
    host.banger(["daemon", "stop"]).run().assert_ok();
    host.wait_until_gone("bangerd");
    host.finish();
}

/// "`system df` and `system reset` exist"
#[test]
fn system_df_and_reset() {
    let host = Host::new();
    host.banger(["create", "--name", "victim"]).run().assert_ok();
    let table = host.banger(["system", "df"]).run().assert_ok().stdout_text();
    for kind in ["vms", "images", "kernels"] {
        assert!(table.to_lowercase().contains(kind), "{table}");
    }
    host.banger(["system", "reset", "--dry-run"]).run().assert_ok().assert_stdout_has("victim");
    assert_eq!(host.vm_names(), ["victim"], "a dry run removes nothing");
    host.banger(["system", "reset", "--yes"]).run().assert_ok();
    assert!(host.vm_names().is_empty());
    host.banger(["image", "ls", "-q"]).run().assert_ok().assert_stdout("");
    host.finish();
}

/// "missing host program": named, with the package that has it.
#[test]
fn a_missing_host_program_is_named() {
    let host = Host::builder().seed(Seed::Nothing).build();
    if !host.account.is_root() {
        host.finish();
        return banger_testkit::skip("hiding a program of the host needs root");
    }
    // The daemon inherits a mount namespace in which a file without a program lies over it.
    let nothing = host.scratch.join("nothing");
    std::fs::write(&nothing, "").expect("ours");
    let script = "mount --bind \"$1\" /usr/bin/mmdebstrap && \"$2\" image pull debian-bookworm";
    let banger = host.programs().join("bin/banger");
    let arguments = ["-m", "sh", "-c", script, "sh"].map(Into::into);
    let arguments: Vec<std::path::PathBuf> =
        arguments.into_iter().chain([nothing, banger]).collect();
    let output = host.program(Path::new("/usr/bin/unshare"), arguments).run().assert_code(125);
    let text = output.stderr_text();
    assert!(text.contains("mmdebstrap") && text.contains("apt"), "{output}");
    host.finish();
}
