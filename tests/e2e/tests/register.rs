//! "`image register PATH|TAR` (an ext4 file, a rootfs directory or tar, an OCI layout or docker-save
//! archive; also on stdin)"

use std::path::{Path, PathBuf};

use banger_e2e::{LocalImage, file};
use banger_testkit::fixtures::{Entry, Fixtures, LayerTar};
use banger_testkit::{Host, Invocation};

fn register(host: &Host, path: &Path, more: &[&str]) -> Invocation {
    host.banger([&["image", "register", &path.to_string_lossy()], more].concat())
}

/// Unpacks busybox's tree, and gives the directory.
fn unpacked(host: &Host) -> PathBuf {
    let dir = host.scratch.join("rootfs");
    host.program(Path::new("/bin/mkdir"), [&dir]).run().assert_ok();
    let tar = Fixtures::prepared().rootfs_tar();
    let words = [Path::new("-xf"), &tar, Path::new("-C"), &dir];
    host.program(Path::new("/bin/tar"), words).run().assert_ok();
    dir
}

#[test]
fn a_tree_as_directory_or_tar_or_on_stdin() {
    let host = Host::new();
    let tar = Fixtures::prepared().rootfs_tar();
    register(&host, &tar, &["--name", "from-tar"]).run().assert_ok().assert_stdout("from-tar\n");
    let dir = unpacked(&host);
    register(&host, &dir, &[]).run().assert_ok().assert_stdout("rootfs\n");
    let bytes = std::fs::read(&tar).expect("a fixture");
    let stdin = ["image", "register", "--name", "team/from-stdin:1"];
    host.banger(stdin).stdin(bytes).run().assert_ok();
    let compressed =
        host.program(Path::new("/bin/gzip"), [Path::new("-c"), &tar]).run().assert_ok();
    let compressed = file(&host, "rootfs.tar.gz", compressed.stdout);
    register(&host, &compressed, &["--name", "from-gzip"]).run().assert_ok();
    for name in ["from-tar", "rootfs", "team/from-stdin:1", "from-gzip"] {
        let image = LocalImage::of(&host, name);
        assert!(image.stat("/bin/busybox").contains("Mode:  0755"), "{name}");
        assert!(image.read("/etc/passwd").starts_with("root:x:0:0:"), "{name}");
        image.assert_clean();
    }
    // The same contents are one image, by whatever way they came.
    let digest = |name: &str| LocalImage::of(&host, name).digest();
    assert_eq!(digest("from-tar"), digest("team/from-stdin:1"));
    let run = ["run", "--rm", "rootfs", "--", "/bin/sh", "-c", "echo booted; stat -c %u /bin"];
    host.banger(run).run().assert_ok().assert_stdout("booted\n0\n");
    host.finish();
}

#[test]
fn an_oci_layout_or_what_docker_saved() {
    let host = Host::new();
    let fixtures = Fixtures::prepared();
    register(&host, &fixtures.layout(), &["--name", "from-layout"]).run().assert_ok();
    let packed = host.scratch.join("layout.tar");
    let layout = fixtures.layout();
    let words = [Path::new("-cf"), &packed, Path::new("-C"), &layout, Path::new(".")];
    host.program(Path::new("/bin/tar"), words).run().assert_ok();
    register(&host, &packed, &["--name", "from-layout-tar"]).run().assert_ok();
    // An archive says itself what its image is called.
    register(&host, &fixtures.archive(), &[]).run().assert_ok().assert_stdout("saved:1\n");
    let archive = std::fs::read(fixtures.archive()).expect("a fixture");
    host.banger(["image", "register", "--name", "piped"]).stdin(archive).run().assert_ok();
    for name in ["from-layout", "from-layout-tar", "saved:1", "piped"] {
        let image = LocalImage::of(&host, name);
        assert_eq!(image.shown["config"]["cmd"], serde_json::json!(["sh"]), "{name}");
        assert!(image.has("/bin/busybox"), "{name}");
        image.assert_clean();
    }
    for name in ["saved:1", "piped"] {
        assert_eq!(LocalImage::of(&host, name).read("/etc/saved"), "yes\n", "{name}");
    }
    host.banger(["image", "rm", "piped", "saved:1"]).run().assert_ok();
    host.finish();
}

#[test]
fn an_ext4_file_system() {
    let host = Host::new();
    let dir = unpacked(&host);
    let disk = host.scratch.join("disk.ext4");
    let words = ["-q", "-t", "ext4", "-d"].map(Path::new);
    let words = [&words[..], &[&dir, &disk, Path::new("64M")]].concat();
    host.program(Path::new("/usr/sbin/mke2fs"), words).run().assert_ok();
    register(&host, &disk, &["--name", "from-ext4"]).run().assert_ok();
    let image = LocalImage::of(&host, "from-ext4");
    assert!(image.has("/bin/busybox"));
    image.assert_clean();
    let run =
        ["run", "--rm", "from-ext4", "--", "/bin/sh", "-c", "df -kP / | awk 'END {print $2}'"];
    let output = host.banger(run).run().assert_ok();
    let kib: u64 = output.stdout_text().trim().parse().expect("a number");
    assert!(kib > 4 << 20, "the disk of a machine is as large as asked for, not 64 MiB: {output}");
    host.finish();
}

/// What no image can be made of is refused by name, and nothing half-made stays visible.
#[test]
fn nonsense_is_refused() {
    let host = Host::new();
    let text = file(&host, "notes.txt", "these are notes\n".repeat(100));
    let short = Fixtures::prepared().rootfs_tar();
    let mut short = std::fs::read(short).expect("a fixture");
    short.truncate(1_000_000);
    let short = file(&host, "short.tar", short);
    let empty = file(&host, "empty", "");
    for (path, code) in [
        (&text, "image_invalid"),
        (&short, "image_invalid"),
        (&empty, "image_invalid"),
        (&host.scratch.join("nothing"), "invalid_argument"),
    ] {
        let words = ["--name", "bad", "--format", "json"];
        let output = register(&host, path, &words).run().assert_code(125);
        assert!(output.stderr_text().contains(code), "{output}");
    }
    let nothing = host.banger(["image", "register", "--name", "bad"]).run().assert_code(125);
    assert!(nothing.stderr_text().contains("hint: "), "{nothing}");
    let tar = Fixtures::prepared().rootfs_tar();
    register(&host, &tar, &["--name", "Not A Name"]).run().assert_code(125);
    host.banger(["image", "ls", "-q"]).run().assert_ok().assert_stdout("debian-bookworm\n");
    host.finish();
}

/// Names that are not UTF-8, long paths, xattrs, owners, links: all that a tar can say.
#[test]
fn whatever_a_tar_can_say() {
    let host = Host::new();
    let long = "long/".repeat(60) + "end";
    let tar = LayerTar::new()
        .with(&Entry::file(b"latin-\xe9", "one"))
        .with(&Entry::file(&long, "two"))
        .with(&Entry::file("owned", "three").owner(70_000, 80_000).mode(0o6751))
        .with(&Entry::file("marked", "four").xattr("user.note", b"a note"))
        .with(&Entry::symlink("pointer", "/owned"))
        .with(&Entry::hard_link("again", "owned"))
        .with(&Entry::fifo("pipe"))
        .finish();
    let tar = file(&host, "odd.tar", tar);
    register(&host, &tar, &[]).run().assert_ok().assert_stdout("odd\n");
    let image = LocalImage::of(&host, "odd");
    assert_eq!(image.read(&format!("/{long}")), "two");
    let owned = image.stat("/owned");
    for fact in ["User: 70000", "Group: 80000", "Mode:  06751", "Links: 2"] {
        assert!(owned.contains(fact), "{fact} in {owned}");
    }
    assert!(image.stat("/marked").contains("user.note"));
    assert!(image.stat("/pointer").contains("Fast link dest: \"/owned\""));
    assert!(image.stat("/pipe").contains("Type: FIFO"));
    image.assert_clean();
    host.finish();
}
