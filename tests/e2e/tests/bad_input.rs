//! "Bad input: … each gets a clear error with a hint, nothing half-made stays visible, nothing is
//! lost."

use std::os::unix::fs::FileExt;

use banger_e2e::{BOOT, configure, lib_dir_with_agent, static_program};
use banger_testkit::{Host, Seed};

/// What is typed, and what the error must have in it.
const CASES: &[(&[&str], &[&str])] = &[
    (&["run", "debian-bokworm", "--", "true"], &["debian-bokworm", "debian-bookworm", "hint: "]),
    (&["run", "--image", "debian-bokworm", "--", "true"], &["debian-bookworm", "hint: "]),
    (&["run", "--kernel", "debian-clout", "--", "true"], &["debian-cloud", "hint: "]),
    (&["create", "--name", "taken"], &["taken", "hint: "]),
    (&["exec", "taken", "--", "true"], &["taken", "hint: banger start taken"]),
    (&["exec", "takem", "--", "true"], &["takem", "taken"]),
    (&["show", "takem"], &["taken"]),
    (&["start", "nothing-like-it"], &["nothing-like-it", "hint: "]),
    (&["create", "--name", "Not_A_Name"], &["Not_A_Name"]),
    (&["create", "--memory", "3"], &["memory"]),
    (&["create", "--memory", "900T"], &["memory"]),
    (&["create", "--cpus", "0"], &["cpu"]),
    (&["create", "--cpus", "100000"], &["cpu"]),
    (&["create", "--disk", "1M"], &["disk"]),
    (&["image", "show", "debian"], &["debian-bookworm"]),
    (&["kernel", "show", "debian"], &["debian-cloud"]),
    (&["create", "-e", "=x"], &["=x"]),
];

#[test]
fn bad_input_gets_an_error_with_a_hint() {
    let host = Host::new();
    host.banger(["create", "--name", "taken"]).run().assert_ok();
    let mut wrong = Vec::new();
    for (args, words) in CASES {
        let output = host.banger(*args).run();
        let text = output.stderr_text();
        let missing: Vec<_> = words
            .iter()
            .filter(|word| !text.to_lowercase().contains(&word.to_lowercase()))
            .collect();
        if ![125, 2].contains(&output.code) || !text.contains("error: ") || !missing.is_empty() {
            wrong.push(format!("missing {missing:?}: {output}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(host.vm_names(), ["taken"], "nothing half-made stays visible");
    host.finish();
}

/// "banger's own failures exit 125, with a stable code named in `--format json`"
#[test]
fn errors_have_codes_for_scripts() {
    let host = Host::new();
    let output = host.banger(["show", "nobody", "--format", "json"]).run().assert_code(125);
    output.assert_stderr_has("vm_not_found");
    host.finish();
}

/// "a corrupt database": said, with nothing lost.
#[test]
fn a_corrupt_database_is_said_and_kept() {
    let host = Host::new();
    host.banger(["create", "--name", "precious"]).run().assert_ok();
    host.banger(["daemon", "stop"]).run().assert_ok();
    let database = host.data.join("banger.db");
    let good = std::fs::read(&database).expect("it is there");
    let mut bad = good.clone();
    bad[..100].fill(b'x');
    std::fs::write(&database, &bad).expect("ours");
    let output = host.banger(["ls"]).run().assert_code(125);
    assert!(output.stderr_text().contains("database"), "{output}");
    assert!(output.stderr_text().contains("hint: "), "{output}");
    assert_eq!(std::fs::read(&database).expect("still there"), bad, "nobody made a new one");
    std::fs::write(&database, good).expect("ours");
    host.banger(["daemon", "stop"]).run().assert_ok();
    assert_eq!(host.vm_names(), ["precious"]);
    host.finish();
}

/// "or one of a newer version"
#[test]
fn a_newer_database_is_refused() {
    let host = Host::new();
    host.banger(["create", "--name", "future"]).run().assert_ok();
    host.banger(["daemon", "stop"]).run().assert_ok();
    let database =
        std::fs::File::options().read(true).write(true).open(host.data.join("banger.db"));
    let database = database.expect("it is there");
    // The schema's version, big-endian, at offset 60 of SQLite's header.
    let mut version = [0; 4];
    database.read_exact_at(&mut version, 60).expect("a header");
    database.write_all_at(&9999u32.to_be_bytes(), 60).expect("ours");
    let output = host.banger(["ls"]).run().assert_code(125);
    assert!(output.stderr_text().contains("newer"), "{output}");
    database.write_all_at(&version, 60).expect("ours");
    host.banger(["daemon", "stop"]).run().assert_ok();
    assert_eq!(host.vm_names(), ["future"]);
    host.finish();
}

/// "socket path too long": sockets are reached by short names, however deep the directory.
#[test]
fn a_deep_data_directory_is_no_obstacle() {
    let account = banger_testkit::Account::under_test();
    let deep = account.test_dir().join("d".repeat(120)).join("e".repeat(120));
    let owner = deep.parent().expect("two levels").to_owned();
    std::fs::create_dir_all(&deep).expect("the test directory is ours");
    for dir in [&owner, &deep] {
        std::os::unix::fs::lchown(dir, Some(account.uid), Some(account.gid)).expect("ours");
    }
    let host = Host::builder().data_dir(deep.join("data")).build();
    host.banger(["run", "--rm", "--", "echo", "deep"]).run().assert_ok().assert_stdout("deep\n");
    host.finish();
    std::fs::remove_dir_all(owner).expect("ours");
}

/// "guest kernel panic at boot"
#[test]
fn a_panic_at_boot_is_said() {
    let builder = Host::builder().seed(Seed::Pulled);
    let host = builder.build();
    // A text that no kernel can execute as its first process.
    let agent = host.scratch.join("no-program");
    std::fs::write(&agent, "this is no program").expect("ours");
    let lib = lib_dir_with_agent(&host, &agent);
    let output = host
        .banger(["run", "--rm", "--", "true"])
        .env("BANGER_LIB_DIR", &lib)
        .timeout(2 * BOOT)
        .run()
        .assert_code(125);
    assert!(output.stderr_text().contains("panic"), "{output}");
    // The VM is gone, and its console with it: what it said is told, and no hint leads there.
    output.clone().assert_stderr_has("its console ended with:");
    assert!(!output.stderr_text().contains("banger logs"), "{output}");
    assert!(host.vm_names().is_empty());
    host.finish();
}

/// "a guest that never says hello"
#[test]
fn a_guest_that_never_answers_is_a_failure() {
    let host = Host::new();
    configure(&host, "config.toml", "boot_timeout_s = 20\n");
    let agent = static_program(&host, "silent_agent");
    let lib = lib_dir_with_agent(&host, &agent);
    let output = host
        .banger(["run", "--rm", "--", "true"])
        .env("BANGER_LIB_DIR", &lib)
        .timeout(4 * BOOT)
        .run()
        .assert_code(125);
    assert!(output.stderr_text().contains("answer"), "{output}");
    assert!(host.vm_names().is_empty());
    host.finish();
}

/// "nothing half-made stays visible": a run that fails leaves neither row nor directory.
#[test]
fn a_failed_run_leaves_nothing_visible() {
    let host = Host::new();
    let agent = host.scratch.join("no-program");
    std::fs::write(&agent, "this is no program").expect("ours");
    let lib = lib_dir_with_agent(&host, &agent);
    host.banger(["run", "-d", "--name", "stillborn"])
        .env("BANGER_LIB_DIR", &lib)
        .timeout(2 * BOOT)
        .run()
        .assert_code(125);
    assert!(host.vm_names().is_empty());
    let left = std::fs::read_dir(host.data.join("vms")).into_iter().flatten().flatten();
    assert_eq!(left.count(), 0, "no directory either");
    host.finish();
}
