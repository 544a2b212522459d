//! The images that tests share are what they say, as others than banger see them.
#![allow(clippy::disallowed_methods, reason = "the programs of others are started here")]

use std::path::Path;
use std::process::Command;

use banger_testkit::fixtures::{Fixtures, skopeo};

const NAMES: [&str; 10] = [
    "shell-less",
    "busybox",
    "slim",
    "numeric-user",
    "named-user",
    "capabilities",
    "many-layers",
    "zstd",
    "system",
    "saved",
];

#[test]
fn all_images_are_there_and_of_their_kinds() {
    let registry = Fixtures::prepared().registry();
    let inspect = |name: &str| {
        let reference = format!("docker://{}", registry.reference(&format!("{name}:1")));
        let output = Command::new("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false", &reference])
            .output()
            .expect("skopeo is installed");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("JSON")
    };
    for name in NAMES {
        let manifest = inspect(name);
        let (docker, zstd) = (manifest.contains("vnd.docker"), manifest.contains("+zstd"));
        assert_eq!((docker, zstd), (name == "saved", name == "zstd"), "{name}: {manifest}");
        if name == "many-layers" {
            assert_eq!(manifest.matches("image.layer").count(), 60);
        }
    }
}

#[test]
fn many_layers_are_unpacked_as_they_say() {
    let registry = Fixtures::prepared().registry();
    let dir = tempfile::tempdir().expect("a directory");
    let layout = dir.path().join("layout").display().to_string();
    let from = format!("docker://{}", registry.reference("many-layers:1"));
    skopeo(&["--src-tls-verify=false", &from, &format!("oci:{layout}:x")]);
    let bundle = dir.path().join("bundle");
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--image", &format!("{layout}:x")]);
    if !nix::unistd::Uid::effective().is_root() {
        umoci.arg("--rootless");
    }
    let status = umoci.arg(&bundle).status().expect("umoci is installed");
    assert!(status.success());
    let root = bundle.join("rootfs");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let names = |path: &str| {
        let entries = std::fs::read_dir(root.join(path)).expect("a directory").flatten();
        entries.map(|entry| entry.file_name().into_string().expect("text")).collect::<Vec<_>>()
    };
    let gone = |path: &str| if root.join(path).exists() { "there" } else { "gone" };
    assert!(!Path::new(&root).join("etc/planted").exists());
    let found = format!(
        "last {}\nfiles {}\nlink {}\nthree {}\ndir {}\ngone {}\nswapped {}\nplanted {}\n",
        read("work/last"),
        names("work/numbers").len(),
        read("work/link"),
        gone("work/numbers/3"),
        names("work/dir").join(" "),
        gone("work/gone"),
        read("work/swap"),
        read("work/away/planted"),
    );
    assert_eq!(found, Fixtures::many_layers_report());
}
