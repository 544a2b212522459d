//! Images and kernels: what there is, what is used, what a damaged one does.

use banger_testkit::{Host, Seed};
use serde_json::Value;

/// "`image {ls show rm pull}` and `kernel {ls show rm pull}`"
#[test]
fn images_and_kernels_can_be_listed_and_shown() {
    let host = Host::new();
    for (noun, name) in [("image", "debian-bookworm"), ("kernel", "debian-cloud")] {
        host.banger([noun, "ls", "-q"]).run().assert_ok().assert_stdout(&format!("{name}\n"));
        host.banger([noun, "ls"]).run().assert_ok().assert_stdout_has(name);
        host.banger([noun, "catalog"]).run().assert_ok().assert_stdout_has(name);
        let shown = host.banger([noun, "show", name, "--format", "json"]).run().assert_ok();
        let shown: Value = serde_json::from_str(&shown.stdout_text()).expect("one object");
        assert_eq!(shown["name"], name);
        assert!(shown["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")));
        host.banger([noun, "pull", name]).run().assert_ok();
    }
    host.finish();
}

/// What a machine uses cannot be removed; what nobody uses can, twice.
#[test]
fn what_is_in_use_stays() {
    let host = Host::new();
    host.banger(["create", "--name", "user"]).run().assert_ok();
    host.banger(["image", "rm", "debian-bookworm"])
        .run()
        .assert_code(125)
        .assert_stderr_has("user");
    host.banger(["kernel", "rm", "debian-cloud"]).run().assert_code(125).assert_stderr_has("user");
    host.banger(["rm", "user"]).run().assert_ok();
    for (noun, name) in [("image", "debian-bookworm"), ("kernel", "debian-cloud")] {
        host.banger([noun, "rm", name]).run().assert_ok();
        host.banger([noun, "ls", "-q"]).run().assert_ok().assert_stdout("");
    }
    host.finish();
}

/// "corrupt image file … a clear error with a hint"
#[test]
fn a_corrupt_image_is_named_and_mended_by_the_hint() {
    let host = Host::new();
    let image = std::fs::read_dir(host.data.join("images"))
        .expect("images are there")
        .flatten()
        .map(|entry| entry.path().join("root.ext4"))
        .find(|path| path.is_file() && !path.starts_with(host.data.join("images/by-name")))
        .expect("the default image is there");
    // By another file: the present one is shared with all tests.
    std::fs::remove_file(&image).expect("ours");
    std::fs::write(&image, "this is no file system").expect("ours");
    std::os::unix::fs::lchown(&image, Some(host.account.uid), Some(host.account.gid))
        .expect("ours");
    let output = host.banger(["run", "--rm", "--", "true"]).run().assert_code(125);
    assert!(output.stderr_text().contains("hint: "), "{output}");
    assert!(output.stderr_text().contains("debian-bookworm"), "{output}");
    assert!(host.vm_names().is_empty());
    host.finish();
}

/// "disk full while building an image": nothing half-made stays visible, and it says so.
#[test]
fn a_full_disk_while_building_an_image() {
    if !nix::unistd::Uid::effective().is_root() {
        return banger_testkit::skip("mounting a small file system needs root");
    }
    let small = SmallDisk::mount();
    let host = Host::builder().seed(Seed::Nothing).data_dir(small.0.join("data")).build();
    let output = host
        .banger(["image", "pull", "debian-bookworm"])
        .timeout(std::time::Duration::from_secs(400))
        .run()
        .assert_code(125);
    let text = output.stderr_text().to_lowercase();
    assert!(text.contains("space") || text.contains("full"), "{output}");
    host.banger(["image", "ls", "-q"]).run().assert_ok().assert_stdout("");
    host.finish();
}

/// A file system of 96 MiB.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount() -> Self {
        let account = banger_testkit::Account::under_test();
        let dir = account.test_dir().join(format!("small-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the test directory is ours");
        let options = Some("size=96m,mode=0755");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("small"), &dir, Some("tmpfs"), flags, options).expect("we are root");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&self.0);
    }
}
