//! "`image promote VM NAME` (a stopped VM's disk becomes a new image)"; "`image push NAME REF` (a
//! normal OCI image any tool can pull)"

use std::path::Path;

use banger_e2e::{LocalImage, file};
use banger_testkit::Host;
use banger_testkit::fixtures::{Entry, LayerTar, TestRegistry};
use banger_testkit::registry::{RegistryOptions, noise};
use serde_json::Value;

/// What was written in the machine is in the image; what makes the machine this one is not.
#[test]
fn a_stopped_machine_becomes_an_image() {
    let host = Host::new();
    let script = "echo treasure > /root/box; chown 1234:4321 /root/box; \
                  dd if=/dev/zero of=/root/large bs=1M count=8 2>/dev/null; rm /etc/motd; \
                  rm -f /root/large; echo secret > /root/gone; sync; rm /root/gone; \
                  ssh-keygen -A >/dev/null; cat /etc/machine-id; cat /etc/ssh/ssh_host_ed25519_key.pub";
    host.banger(["run", "-d", "-q", "--name", "made"]).run().assert_ok();
    let identity = host.banger(["exec", "made", "--", "sh", "-c", script]).run().assert_ok();
    let promote = ["image", "promote", "made", "team/made:1", "--format", "json"];
    host.banger(promote).run().assert_code(125).assert_stderr_has("vm_wrong_state");
    host.banger(["stop", "made"]).run().assert_ok();
    host.banger(promote).run().assert_ok();
    let image = LocalImage::of(&host, "team/made:1");
    assert_eq!(image.read("/root/box"), "treasure\n");
    assert!(image.stat("/root/box").contains("User:  1234"));
    assert!(!image.has("/etc/motd") && !image.has("/root/gone"));
    assert!(!image.has("/etc/ssh/ssh_host_ed25519_key"), "the keys are the machine's own");
    let machine_id = identity.stdout_text().lines().next().unwrap_or_default().to_owned();
    assert_eq!(machine_id.len(), 32, "{identity}");
    assert!(!image.read("/etc/machine-id").contains(&machine_id));
    image.assert_clean();
    // The machine stays what it is, and the image outlives it.
    host.banger(["rm", "made"]).run().assert_ok();
    let script = "cat /root/box; cat /etc/machine-id";
    let run = ["run", "--rm", "team/made:1", "--", "sh", "-c", script];
    let output = host.banger(run).run().assert_ok();
    assert!(output.stdout_text().starts_with("treasure\n"), "{output}");
    assert!(!output.stdout_text().contains(&machine_id), "{output}");
    host.finish();
}

/// Others see in a pushed image what was in ours.
#[test]
fn a_pushed_image_is_one_that_any_tool_can_pull() {
    let host = Host::new();
    let me = (u64::from(host.account.uid), u64::from(host.account.gid));
    let tar = LayerTar::new()
        .dir("etc")
        .file("etc/greeting", "hello\n")
        .program("bin/tool", "#!/bin/sh\n")
        .with(&Entry::file("etc/noise", noise(300_000, 7)))
        .with(&Entry::file("owned", "x").owner(me.0, me.1).mode(0o4711))
        .with(&Entry::symlink("pointer", "etc/greeting"))
        .with(&Entry::hard_link("again", "etc/greeting"))
        .with(&Entry::file("marked", "y").xattr("user.note", b"a note"))
        .finish();
    let tar = file(&host, "tree.tar", tar);
    let tar = tar.to_string_lossy();
    host.banger(["image", "register", &tar, "--name", "tree"]).run().assert_ok();
    let registry = TestRegistry::empty();
    let reference = registry.reference("team/tree:1");
    let push = ["image", "push", "tree", &reference, "--format", "json"];
    let pushed = host.banger(push).run().assert_ok();
    let pushed: Value = serde_json::from_str(&pushed.stdout_text()).expect("one object");

    let source = format!("docker://{reference}");
    let inspect = ["inspect", "--tls-verify=false", &source];
    let inspected = host.program(Path::new("/usr/bin/skopeo"), inspect).run().assert_ok();
    let inspected: Value = serde_json::from_str(&inspected.stdout_text()).expect("one object");
    assert_eq!(inspected["Digest"], pushed["digest"]);
    assert_eq!(inspected["Architecture"], "amd64");
    compare_with_umoci(&host, &source);

    // And back again, on a machine that has nothing of it.
    let other = Host::new();
    other.banger(["image", "pull", &reference]).run().assert_ok();
    let image = LocalImage::of(&other, &reference);
    assert_eq!(image.shown["oci"]["manifest_digest"], pushed["digest"]);
    assert!(image.stat("/owned").contains("Mode:  04711"));
    assert!(image.stat("/again").contains("Links: 2"));
    assert!(image.stat("/marked").contains("user.note"));
    image.assert_clean();
    // What was pulled is pushed as it came.
    let copy = registry.reference("team/copy:1");
    let copied = other.banger(["image", "push", &reference, &copy, "--format", "json"]).run();
    let copied: Value = serde_json::from_str(&copied.assert_ok().stdout_text()).expect("JSON");
    assert_eq!(copied["digest"], pushed["digest"]);
    other.finish();
    host.finish();
}

fn compare_with_umoci(host: &Host, source: &str) {
    let layout = format!("oci:{}:x", host.scratch.join("layout").display());
    let copy = ["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", source, &layout];
    host.program(Path::new("/usr/bin/skopeo"), copy).run().assert_ok();
    let bundle = host.scratch.join("bundle");
    let bundle_text = bundle.to_string_lossy();
    let layout = layout.trim_start_matches("oci:");
    let mut unpack = vec!["unpack", "--image", layout];
    if !host.account.is_root() {
        unpack.push("--rootless");
    }
    unpack.push(&bundle_text);
    host.program(Path::new("/usr/bin/umoci"), unpack).run().assert_ok();
    let script = "cd \"$1\"/rootfs && find . -mindepth 1 -printf '%P %y %m %n %s %l\\n' | sort";
    let words = ["-c", script, "sh", &bundle_text];
    let found = host.program(Path::new("/bin/sh"), words).run().assert_ok().stdout_text();
    // The size of a directory is the file system's.
    let found: Vec<&str> = found.lines().filter(|line| !line.contains(" d ")).collect();
    assert_eq!(
        found,
        [
            "again f 644 2 6 ",
            "bin/tool f 755 1 10 ",
            "etc/greeting f 644 2 6 ",
            "etc/noise f 644 1 300000 ",
            "marked f 644 1 1 ",
            "owned f 4711 1 1 ",
            "pointer l 777 1 12 etc/greeting",
        ]
    );
    let copied = std::fs::read(bundle.join("rootfs/etc/noise")).expect("it is there");
    assert!(copied == noise(300_000, 7));
}

/// A registry that does not let one in says so, and one that is none as well.
#[test]
fn what_cannot_be_pushed_is_said() {
    let host = Host::new();
    let registry =
        TestRegistry::with(|_| RegistryOptions { password: true, ..RegistryOptions::default() });
    let tar = file(&host, "tiny.tar", LayerTar::new().file("x", "y").finish());
    host.banger(["image", "register", &tar.to_string_lossy()]).run().assert_ok();
    let push = |to: &str| host.banger(["image", "push", "tiny", to, "--format", "json"]).run();
    push(&registry.reference("x:1")).assert_code(125).assert_stderr_has("registry_denied");
    // Nobody listens on a port that was just free.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let nobody = format!("{}/x:1", port.expect("a free port"));
    push(&nobody).assert_code(125).assert_stderr_has("registry_unavailable");
    let unknown = ["image", "push", "tinny", &nobody, "--format", "json"];
    let output = host.banger(unknown).run().assert_code(125);
    assert!(output.stderr_text().contains("image_not_found"), "{output}");
    assert!(output.stderr_text().contains("tiny"), "{output}");
    host.finish();
}
