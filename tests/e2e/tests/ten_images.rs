//! "Ten different real-world-shaped images (shell-less, busybox, Debian slim, with USER, with
//! capabilities, 60 layers, zstd, systemd, docker-save archive, Dockerfile-built) run their command
//! from a registry on loopback as root and as a user".
//!
//! None of them was pulled before: `run` does that. The one with systemd is in `system_init`, the one
//! that is built in `build`.

use banger_e2e::{LocalImage, SOON};
use banger_testkit::fixtures::{Fixtures, TestRegistry};
use banger_testkit::{Host, Output, wait};

/// Runs an image of the fixtures once.
fn run(
    host: &Host,
    registry: &TestRegistry,
    options: &[&str],
    name: &str,
    words: &[&str],
) -> Output {
    let image = registry.reference(&format!("{name}:1"));
    host.banger([&["run", "--rm"], options, &[&image], words].concat()).run()
}

/// Shell-less: no directory, no `/etc/passwd`, no shell. ENTRYPOINT, with CMD or what replaces it.
#[test]
fn one_program_and_nothing_else() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let output = run(&host, &registry, &[], "shell-less", &[]).assert_ok();
    let text = output.stdout_text();
    assert!(text.starts_with("arguments: [by] [default]\nuser: 0 0 0\ndirectory: /\n"), "{output}");
    let output = run(&host, &registry, &[], "shell-less", &["one", "two words"]).assert_ok();
    assert!(output.stdout_text().starts_with("arguments: [one] [two words]\n"), "{output}");
    let output = run(&host, &registry, &["--entrypoint", ""], "shell-less", &["sh", "-c", "x"]);
    let output = output.assert_code(127);
    assert!(output.stderr_text().contains("sh"), "it is named: {output}");
    let output = run(&host, &registry, &["-u", "nobody"], "shell-less", &[]).assert_code(125);
    assert!(output.stderr_text().contains("/etc/passwd"), "{output}");
    host.finish();
}

/// Busybox: the shell is CMD, and reads a pipe.
#[test]
fn busybox() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let image = registry.reference("busybox:1");
    let script =
        "echo $((6 * 7)); id -un; ls -i /bin/sh /bin/busybox | cut -d/ -f1 | uniq | wc -l\n";
    let output = host.banger(["run", "--rm", &image]).stdin(script).run().assert_ok();
    output.assert_stdout("42\nroot\n1\n");
    host.finish();
}

/// Debian slim: programs with shared libraries, owners and modes as in the archive.
#[test]
fn debian_slim() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let script = ". /etc/os-release; echo $ID; stat -c '%a %U:%G' /usr/bin/passwd /etc/shadow; \
                  dpkg-query -W -f '${Status}\\n' bash; apt-get --version | head -c 4";
    let output = run(&host, &registry, &[], "slim", &["bash", "-c", script]).assert_ok();
    output.assert_stdout("debian\n4755 root:root\n640 root:shadow\ninstall ok installed\napt ");
    host.finish();
}

/// With USER: a number that `/etc/passwd` does not have, and a name that it has. "ENTRYPOINT, CMD,
/// ENV, WORKDIR, USER, exposed ports and stop signal of the image are honoured as Docker does."
#[test]
fn everything_that_a_dockerfile_says() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let command = "entry: sh -c id -u; id -g; pwd; echo \"$GREETING|$EMPTY|$HOME\"\n";
    let want =
        |who: &str, home: &str| format!("{command}{who}\n/srv/the app\nhello  world||{home}\n");
    let output = run(&host, &registry, &[], "numeric-user", &[]).assert_ok();
    output.assert_stdout(&want("4321\n8765", "/"));
    let output = run(&host, &registry, &[], "named-user", &[]).assert_ok();
    output.assert_stdout(&want("1500\n1600", "/home/app"));
    // What is said on the command line wins.
    let options = ["-e", "GREETING=bye", "-w", "/tmp", "-u", "root", "--entrypoint", "sh"];
    let words = ["-c", "id -u; pwd; echo $GREETING"];
    let output = run(&host, &registry, &options, "named-user", &words).assert_ok();
    output.assert_stdout("0\n/tmp\nbye\n");
    let image = LocalImage::of(&host, &registry.reference("named-user:1"));
    let config = &image.shown["config"];
    assert_eq!(config["exposed_ports"], serde_json::json!(["5353/udp", "8080/tcp"]));
    assert_eq!(config["labels"]["team"], "tests");
    host.finish();
}

/// The main process of a detached machine is asked to end by STOPSIGNAL, or by what
/// `--stop-signal` says.
#[test]
fn stop_signals() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let image = registry.reference("named-user:1");
    let script = "trap 'echo got usr1; exit' USR1; trap 'echo got int; exit' INT; \
                  echo ready; while :; do sleep 0.1; done";
    for (name, options, want) in
        [("image", &[][..], "got usr1"), ("option", &["--stop-signal", "INT"], "got int")]
    {
        let words = ["run", "-d", "--name", name];
        let words = [&words[..], options, &[&image, "--", "sh", "-c", script]].concat();
        host.banger(words).run().assert_ok();
        let logs = || host.banger(["logs", name]).run().assert_ok();
        wait::until("the trap is set", SOON, || {
            logs().stdout_text().contains("ready").then_some(())
        });
        host.banger(["stop", name]).run().assert_ok();
        logs().assert_stdout_has(want);
        let end = host.show(name)["status"]["end"].clone();
        assert_eq!(end["main"], serde_json::json!({ "exited": 0 }), "{end}");
    }
    host.finish();
}

/// With capabilities: a file's own, and setuid, for a user who has none.
#[test]
fn file_capabilities_and_setuid() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let output = run(&host, &registry, &[], "capabilities", &[]).assert_ok();
    let text = output.stdout_text();
    assert!(text.contains("user: 4321 4321 4321\n"), "{output}");
    assert!(text.contains("CapEff:\t0000000000000400\n"), "{output}");
    let script = ["--entrypoint", "/setuid"];
    let output = run(&host, &registry, &script, "capabilities", &[]).assert_ok();
    assert!(output.stdout_text().contains("user: 4321 4321 0\n"), "{output}");
    let script = ["--entrypoint", "/plain"];
    let output = run(&host, &registry, &script, "capabilities", &[]).assert_ok();
    assert!(output.stdout_text().contains("CapEff:\t0000000000000000\n"), "{output}");
    host.finish();
}

/// 60 layers that add, replace, hide and link.
#[test]
fn sixty_layers() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let output = run(&host, &registry, &[], "many-layers", &[]).assert_ok();
    output.assert_stdout(Fixtures::many_layers_report());
    let image = LocalImage::of(&host, &registry.reference("many-layers:1"));
    assert_eq!(image.shown["oci"]["layers"].as_array().map(Vec::len), Some(60));
    image.assert_clean();
    host.finish();
}

/// Layers compressed with zstd.
#[test]
fn zstd_layers() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let output = run(&host, &registry, &[], "zstd", &["echo", "unpacked"]).assert_ok();
    output.assert_stdout("unpacked\n");
    host.finish();
}

/// What came out of a docker-save archive; it has Docker's media types.
#[test]
fn a_saved_image() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let output = run(&host, &registry, &[], "saved", &["cat", "/etc/saved"]).assert_ok();
    output.assert_stdout("yes\n");
    // The second time nothing is fetched and nobody is asked: the registry may be gone.
    let image = registry.reference("saved:1");
    drop(registry);
    let again = ["run", "--rm", "--pull", "never", &image, "cat", "/etc/saved"];
    host.banger(again).run().assert_ok().assert_stdout("yes\n");
    host.finish();
}
