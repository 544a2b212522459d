//! Layers of strangers: "a layer with `../` or absolute paths, symlink escapes, device nodes, a
//! decompression bomb, 200,000 entries". Either the image is refused with a clear error, or it is
//! safe; the host is untouched in any case.

use std::io::Write;
use std::path::{Path, PathBuf};

use banger_e2e::{LocalImage, file, stored};
use banger_testkit::Host;
use banger_testkit::fixtures::{Entry, Fixtures, LayerTar, TestRegistry, gzipped};
use banger_testkit::registry::{Layer, TestImage};

/// A name that nothing else on this machine has.
fn mark() -> String {
    format!("escaped-{}", std::process::id())
}

/// Where something that got out would be.
fn outside(host: &Host) -> Vec<PathBuf> {
    let above = host.data.ancestors().take(4).map(Path::to_owned);
    let known = ["/", "/tmp", "/etc", "/var/tmp", "/root", "/dev"].map(PathBuf::from);
    let mut places: Vec<PathBuf> = above.chain(known).collect();
    places.extend(stored(host, "images", ""));
    places.push(host.scratch.clone());
    places
}

fn assert_untouched(host: &Host) {
    for place in outside(host) {
        let path = place.join(mark());
        assert!(path.symlink_metadata().is_err(), "{} was written", path.display());
    }
}

/// Paths and links that lead out of the image.
#[test]
fn what_leads_out_of_an_image_stays_in_it() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let mark = mark();
    let up = "../".repeat(20);
    let cases = [
        ("climbing", LayerTar::new().file(&format!("{up}tmp/{mark}"), "x")),
        ("hidden", LayerTar::new().dir("a").file(&format!("a/../../{up}{mark}"), "x")),
        ("absolute", LayerTar::new().file(&format!("/tmp/{mark}"), "x")),
        (
            "symlink",
            LayerTar::new()
                .with(&Entry::symlink("out", "/tmp"))
                .with(&Entry::symlink("up", format!("{up}tmp")))
                .file(&format!("out/{mark}"), "x")
                .file(&format!("up/{mark}"), "x"),
        ),
        (
            "own-scratch",
            LayerTar::new()
                .with(&Entry::symlink("out", host.scratch.to_string_lossy().as_bytes()))
                .file(&format!("out/{mark}"), "x"),
        ),
        (
            "hard-link",
            LayerTar::new()
                .with(&Entry::symlink("out", "/etc"))
                .with(&Entry::hard_link("stolen", "out/passwd"))
                .with(&Entry::hard_link("stolen-too", format!("{up}etc/passwd"))),
        ),
        (
            "whiteout",
            LayerTar::new().with(&Entry::whiteout("../../image.json")).with(&Entry::opaque("..")),
        ),
        ("dots", LayerTar::new().file(".", "x").file("..", "x").file("", "x")),
    ];
    for (name, tar) in cases {
        let reference = registry.reference(&format!("{name}:1"));
        registry.push(&TestImage::new().layer(Layer::gzip(tar.finish())), &format!("{name}:1"));
        let output = host.banger(["image", "pull", &reference, "--format", "json"]).run();
        assert_untouched(&host);
        if output.code == 0 {
            let image = LocalImage::of(&host, &reference);
            image.assert_clean();
            for stolen in ["/stolen", "/stolen-too"] {
                assert!(!image.read(stolen).contains("root:"), "{name}");
            }
        } else {
            assert!(output.code == 125, "{output}");
            assert!(output.stderr_text().contains("image_invalid"), "{output}");
        }
    }
    assert!(Path::new("/etc/passwd").is_file());
    host.finish();
}

/// Device nodes are the guest's own; on the host they are nothing.
#[test]
fn device_nodes_are_the_guests() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let tar = LayerTar::new()
        .with(&Entry::character_device("null", (1, 3)))
        .with(&Entry::block_device(mark(), (254, 0)))
        .with(&Entry::block_device("dev/vda", (254, 0)))
        .with(&Entry::fifo("pipe"))
        .finish();
    let image = Fixtures::prepared().busybox().layer(Layer::gzip(tar));
    registry.push(&image, "devices:1");
    let reference = registry.reference("devices:1");
    let script = "echo x > /null && [ -b /escaped-* ] && [ -p /pipe ] && ls -l /null | cut -c1-10";
    let run = ["run", "--rm", &reference, "--", "sh", "-c", script];
    host.banger(run).run().assert_ok().assert_stdout("crw-rw-rw-\n");
    assert_untouched(&host);
    let found = ["/var/tmp/banger-e2e-root", "/var/tmp/banger-e2e-banger-test"].map(Path::new);
    let mut words = vec![host.data.clone()];
    words.extend(found.into_iter().filter(|dir| host.data.starts_with(dir)).map(Path::to_owned));
    words.extend(["(", "-type", "b", "-o", "-type", "c", ")"].map(PathBuf::from));
    let found = host.program(Path::new("/usr/bin/find"), words).run().assert_ok();
    found.assert_stdout("");
    host.finish();
}

/// A few kilobytes that claim to be, or become, more than any disk.
#[test]
fn bombs_do_not_go_off() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let claim = Entry::file("huge", "").claiming(70 << 30);
    let zeros = compressed(&vec![0; 64 << 20]);
    let mut bomb = compressed(&LayerTar::new().with(&claim).unfinished());
    (0..8).for_each(|_| bomb.extend(&zeros));
    let mut endless = compressed(&LayerTar::new().file("x", "y").finish());
    (0..8).for_each(|_| endless.extend(&zeros));
    let deep = "d/".repeat(5000) + "x";
    let cases = [
        ("claims", layer(bomb)),
        ("deep", Layer::gzip(LayerTar::new().file(&deep, "x").finish())),
        ("cut", layer(compressed(&LayerTar::new().with(&claim).unfinished())[..50].to_vec())),
        ("no-gzip", layer(vec![7; 5000])),
        ("endless", layer(endless)),
    ];
    for (name, layer) in cases {
        let reference = registry.reference(&format!("{name}:1"));
        registry.push(&TestImage::new().layer(layer), &format!("{name}:1"));
        let output = host.banger(["image", "pull", &reference, "--format", "json"]).run();
        let output = output.assert_code(125);
        assert!(output.stderr_text().contains("image_invalid"), "{output}");
    }
    host.banger(["image", "ls", "-q"]).run().assert_ok().assert_stdout("debian-bookworm\n");
    assert_eq!(stored(&host, "images", "tmp-"), [] as [PathBuf; 0], "nothing half-made is left");
    host.finish();
}

fn layer(bytes: Vec<u8>) -> Layer {
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".to_owned();
    Layer { media_type, tar: bytes.clone(), bytes }
}

/// By gzip, one member.
fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("it has room");
    gzipped(file.path()).bytes
}

/// "200,000 entries"; "Peak memory of a pull ≤ 100 MiB whatever the layer sizes"
#[test]
fn two_hundred_thousand_entries() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let mut tar = LayerTar::new();
    for dir in 0..200 {
        tar = tar.dir(&format!("many/{dir}"));
        for name in 0..1000 {
            tar = tar.file(&format!("many/{dir}/a-file-with-some-name-{name}"), "");
        }
    }
    let path = file(&host, "many.tar", tar.finish());
    registry.push(&TestImage::new().layer(gzipped(&path)), "many:1");
    std::fs::remove_file(path).expect("ours");
    let reference = registry.reference("many:1");
    host.banger(["image", "pull", &reference]).run().assert_ok();
    let peak = peak_memory_kib(host.daemon_pid().expect("it runs"));
    assert!(peak <= 100 << 10, "{peak} KiB");
    let image = LocalImage::of(&host, &reference);
    assert!(image.has("/many/199/a-file-with-some-name-999"));
    image.assert_clean();
    host.finish();
}

fn peak_memory_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
