//! Tests of all kinds of local sources.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use banger_api::ErrorCode;
use banger_host::command::{Tool, find_program};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::layer::Layer;
use crate::layer::testing::{Member, blob, gzip, sha256, short, tar, write_layout};

/// A directory for the tests of one source, with an empty one to work in.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("work")).expect("create");
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("create");
        fs::write(&path, bytes).expect("write");
        path
    }

    /// A layout with one image of two layers.
    fn layout(&self) -> PathBuf {
        write_layout(&self.path("layout"), &layers());
        self.path("layout")
    }

    fn open(&self, path: &Path) -> Result<Source, PullError> {
        open(path, &self.path("work"), &Cancel::new())
    }

    fn image(&self, path: &Path) -> ArchivedImage {
        match self.open(path).expect("it is an image") {
            Source::Image(image) => *image,
            other => panic!("{other:?}"),
        }
    }

    /// Why it is refused.
    fn reason(&self, path: &Path) -> String {
        let error = self.open(path).expect_err("it is refused");
        assert_eq!(error.code(), ErrorCode::ImageInvalid, "{error}");
        error.to_string()
    }
}

fn layers() -> Vec<Vec<u8>> {
    let first = tar(&[short("etc/"), short("etc/hosts=127.0.0.1")]);
    vec![first, tar(&[Member::file("large", vec![7; 300_000])])]
}

/// What comes of the layers, without their compression.
fn contents(image: &ArchivedImage) -> Vec<Vec<u8>> {
    let read = |layer: Result<Layer<'static>, PullError>| {
        let stream = layer.expect("it is there").stream;
        let (_, mut stream) =
            crate::layer::compression::decompress(stream).expect("it can be read");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("it can be read");
        bytes
    };
    image.layers().map(read).collect()
}

/// A tar of a directory.
fn tar_of(dir: &Path, file: &Path) {
    let tool = Tool::new("tar").args(["--create", "--sort=name", "--file"]).arg(file);
    tool.arg("--directory").arg(dir).arg(".").run(&Cancel::new()).expect("tar runs");
}

#[test]
fn a_layout_is_an_image_however_it_is_packed() {
    let bench = Bench::new();
    let layout = bench.layout();
    tar_of(&layout, &bench.path("layout.tar"));
    let plain = fs::read(bench.path("layout.tar")).expect("read");
    let sources = [
        layout,
        bench.path("layout.tar"),
        bench.file("layout.tgz", &gzip(&plain)),
        bench.file("no-name", &zstd::encode_all(&plain[..], 1).expect("into memory")),
    ];
    for path in sources {
        let image = bench.image(&path);
        assert_eq!(image.name, None, "a tag is no name");
        assert_eq!(image.config.cmd, ["/bin/true"]);
        assert_eq!(contents(&image), layers());
        let origin = image.origin.as_ref().expect("it has a manifest");
        assert_eq!(origin.manifest_digest, image.digest.to_string());
        assert_eq!(origin.layers.iter().map(|layer| layer.bytes).sum::<u64>(), image.bytes());
        // The work directory is the next one's.
        let _ = fs::remove_file(bench.path("work/archive.tar"));
    }
}

#[test]
fn what_skopeo_saves_is_read() {
    if find_program("skopeo").is_none() {
        println!("skipped: it needs skopeo");
        return;
    }
    let bench = Bench::new();
    let layout = format!("oci:{}:test", bench.layout().display());
    for (kind, name) in [("docker-archive", "example.com/team/app:1"), ("oci-archive", "app:2")] {
        let file = bench.path(kind);
        let to = format!("{kind}:{}:{name}", file.display());
        let tool = Tool::new("skopeo").args(["--insecure-policy", "copy", "--quiet", &layout, &to]);
        tool.run(&Cancel::new()).expect("skopeo copies it");
        let image = bench.image(&file);
        assert_eq!(image.name.as_deref(), Some(name));
        assert_eq!(contents(&image), layers());
        assert_eq!(image.config.env["PATH"], "/bin");
    }
}

/// What Docker saved for its first ten years: a layer that is there twice is a symbolic link.
fn docker_save(tags: &Value, platform: &str) -> Vec<Member> {
    let layers = layers();
    let diff_ids: Vec<String> = [&layers[0], &layers[1], &layers[0]]
        .map(|layer| format!("sha256:{}", sha256(layer)))
        .to_vec();
    let config = json!({
        "architecture": platform, "os": "linux", "config": {"User": "nobody"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes()));
    let names = ["a/layer.tar", "b/layer.tar", "c/layer.tar"];
    let list = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
    vec![
        Member::directory("a/"),
        Member::file("a/VERSION", "1.0"),
        Member::file("a/layer.tar", &layers[0]),
        Member::directory("b/"),
        Member::file("b/layer.tar", &layers[1]),
        Member::directory("c/"),
        Member::symlink("c/layer.tar", "../a/layer.tar"),
        Member::file(config_name, config),
        Member::file("manifest.json", list.to_string()),
        Member::file("repositories", "{}"),
    ]
}

#[test]
fn what_docker_saved_is_read() {
    let bench = Bench::new();
    let members = docker_save(&json!(["app:latest", "other:1"]), "amd64");
    for bytes in [tar(&members), gzip(&tar(&members))] {
        let image = bench.image(&bench.file("saved", &bytes));
        assert_eq!(image.name.as_deref(), Some("app:latest"));
        assert_eq!(image.config.user.as_deref(), Some("nobody"));
        assert_eq!(image.origin, None);
        let [one, two] = &layers()[..] else { panic!("two") };
        assert_eq!(contents(&image), [one.clone(), two.clone(), one.clone()]);
    }
    // Unpacked it is the same.
    let dir = bench.path("dir");
    fs::create_dir(&dir).expect("create");
    let tool = Tool::new("tar").args(["--extract", "--file=-", "--directory"]).arg(&dir);
    tool.stdin(tar(&members)).run(&Cancel::new()).expect("tar runs");
    assert_eq!(contents(&bench.image(&dir)).len(), 3);
    let untagged = docker_save(&json!(null), "amd64");
    assert_eq!(bench.image(&bench.file("untagged", &tar(&untagged))).name, None);
}

#[test]
fn of_an_archive_that_is_both_the_layout_counts_and_the_list_names() {
    let bench = Bench::new();
    let layout = bench.layout();
    let list = json!([{"Config": "blobs/sha256/x", "RepoTags": ["registry.example/app:3"]}]);
    fs::write(layout.join("manifest.json"), list.to_string()).expect("write");
    let image = bench.image(&layout);
    assert_eq!(image.name.as_deref(), Some("registry.example/app:3"));
    assert!(image.origin.is_some());
}

#[test]
fn root_filesystems_are_told_from_images() {
    let bench = Bench::new();
    let root = tar(&["./", "./etc/", "./etc/x=1", "./manifest.json=[]"].map(short));
    let scratch = tar(&["hello=binary"].map(short));
    for (name, bytes) in [("tar", root.clone()), ("gz", gzip(&root)), ("scratch", scratch)] {
        let source = bench.open(&bench.file(name, &bytes)).expect("it is a tar");
        assert!(matches!(source, Source::Tar), "{name}: {source:?}");
    }
    fs::create_dir_all(bench.path("root/usr")).expect("create");
    bench.file("root/manifest.json", b"{}");
    assert!(matches!(bench.open(&bench.path("root")), Ok(Source::Directory)));
    let mut disk = vec![0; 4096];
    disk[1080..1082].copy_from_slice(&[0x53, 0xef]);
    assert!(matches!(bench.open(&bench.file("disk", &disk)), Ok(Source::Ext4)));
}

#[test]
fn what_is_something_else_is_named() {
    let bench = Bench::new();
    let mut partitions = vec![0; 4096];
    partitions[510..520].copy_from_slice(b"\x55\xaaEFI PART");
    let cases: [(&[u8], &str); 8] = [
        (b"QFI\xfb\0\0\0\x03", "qemu-img convert"),
        (&partitions, "partitions"),
        (b"hsqs\x07", "unsquashfs"),
        (b"PK\x03\x04zip", "zip"),
        (b"\xfd7zXZ\0\0", "compressed with xz"),
        (b"", "nothing in it"),
        (&[0; 10240], "nothing in it"),
        (&[b'x'; 10240], "not a tar archive"),
    ];
    for (bytes, want) in cases {
        let reason = bench.reason(&bench.file("it", bytes));
        assert!(reason.contains(want), "{reason}");
    }
    let missing = bench.open(&bench.path("missing")).expect_err("it is not there");
    assert!(missing.to_string().contains("cannot read"), "{missing}");
    assert!(bench.reason(Path::new("/dev/null")).contains("no regular file"));
}

#[test]
fn incomplete_and_damaged_archives_are_refused() {
    let bench = Bench::new();
    let whole = docker_save(&json!(["app:1"]), "amd64");
    let without = |name: &str| {
        let members: Vec<Member> =
            whole.iter().filter(|m| !m.name.ends_with(name.as_bytes())).cloned().collect();
        bench.reason(&bench.file("it", &tar(&members)))
    };
    assert!(without("b/layer.tar").contains("b/layer.tar is missing"));
    assert!(without("a/layer.tar").contains("a/layer.tar is missing"));
    let mut other = whole.clone();
    other[7].data = docker_save(&json!([]), "amd64")[7].data.to_ascii_uppercase();
    assert!(bench.reason(&bench.file("it", &tar(&other))).contains("configuration"));
    for blob in fs::read_dir(bench.layout().join("blobs/sha256")).expect("list") {
        let blob = blob.expect("it is there").path();
        let bytes = fs::read(&blob).expect("read");
        fs::write(&blob, &bytes[1..]).expect("write");
        assert!(bench.reason(&bench.path("layout")).contains("it is damaged, sha256:"));
        fs::remove_file(&blob).expect("remove");
        let reason = bench.reason(&bench.path("layout"));
        assert!(reason.contains("it is incomplete, sha256:"), "{reason}");
        fs::write(&blob, &bytes).expect("write");
    }
    // What has the right size shows when it is read, at the latest.
    let arm = docker_save(&json!(["app:1"]), "arm64");
    let reason = bench.reason(&bench.file("it", &tar(&arm)));
    assert!(reason.contains("it is for linux/arm64, and this is linux/amd64"), "{reason}");
}

#[test]
fn names_lead_nowhere_else() {
    let bench = Bench::new();
    bench.file("secret", b"secret");
    for name in ["../secret", "/../secret", "a/../../secret", "outside", "/etc/passwd"] {
        let list = json!([{"Config": name, "Layers": []}]).to_string();
        bench.file("dir/manifest.json", list.as_bytes());
        let _ = symlink("../secret", bench.path("dir/outside"));
        let reason = bench.reason(&bench.path("dir"));
        assert!(reason.contains("is not in it"), "{name}: {reason}");
        let members = [
            Member::file("manifest.json", &list),
            Member::symlink("outside", "../secret"),
            Member::symlink("loop", "loop"),
        ];
        let reason = bench.reason(&bench.file("it", &tar(&members)));
        assert!(reason.contains("is not in it"), "{name}: {reason}");
    }
}

/// Rewrite `index.json`.
fn change_index(layout: &Path, change: impl FnOnce(&mut Vec<Value>)) {
    let path = layout.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    change(index["manifests"].as_array_mut().expect("a list"));
    fs::write(&path, index.to_string()).expect("write");
}

#[test]
fn the_image_for_this_machine_is_chosen() {
    let bench = Bench::new();
    let layout = bench.layout();
    let on = |entry: &Value, architecture: &str| {
        let mut entry = entry.clone();
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let missing = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{}", "0".repeat(64)), "size": 7,
    });
    // Of others nothing has to be there.
    change_index(&layout, |all| all.insert(0, on(&missing, "arm64")));
    assert_eq!(bench.image(&layout).config.cmd, ["/bin/true"]);
    // As Docker saves: an index in the index, with the name noted.
    change_index(&layout, |all| {
        let image = on(&all[1], "amd64");
        let index = json!({"schemaVersion": 2, "manifests": [on(&missing, "arm64"), image]});
        let kind = "application/vnd.oci.image.index.v1+json";
        let mut index = blob(&layout, kind, index.to_string().as_bytes());
        index["annotations"] = json!({"io.containerd.image.name": "docker.io/library/app:7"});
        *all = vec![index];
    });
    let image = bench.image(&layout);
    assert_eq!(image.name.as_deref(), Some("app:7"));
    let origin = image.origin.as_ref().expect("it has a manifest");
    assert_ne!(origin.digest, origin.manifest_digest);
    // Two that are meant are one too many.
    change_index(&layout, |all| {
        let mut other = missing.clone();
        other["annotations"] = json!({"org.opencontainers.image.ref.name": "other:1"});
        all.push(other);
    });
    let reason = bench.reason(&layout);
    let want = "there are 2 images in it, and one is wanted: docker.io/library/app:7, other:1";
    assert!(reason.contains(want), "{reason}");
    change_index(&layout, |all| *all = vec![on(&missing, "riscv64")]);
    assert!(bench.reason(&layout).contains("no image for linux/amd64"));
    change_index(&layout, Vec::clear);
    assert!(bench.reason(&layout).contains("there is no image in it"));
}

#[test]
fn a_blob_that_was_changed_shows_when_it_is_read() {
    let bench = Bench::new();
    let layout = bench.layout();
    let image = bench.image(&layout);
    let layer = image.origin.as_ref().expect("it has one").layers[1].digest.clone();
    let path = layout.join("blobs/sha256").join(&layer[7..]);
    let mut bytes = fs::read(&path).expect("read");
    let at = bytes.len() - 5;
    bytes[at] ^= 1;
    fs::write(&path, bytes).expect("write");
    let image = bench.image(&layout);
    let plan = crate::rootfs::DiskPlan {
        label: "test",
        bytes: 16 << 20,
        journal: false,
        identity: image.digest.hex(),
    };
    let disk = bench.path("disk");
    let mut root = crate::layer::Root::create(&disk, &plan, &Cancel::new()).expect("mke2fs");
    let applied = image.layers().try_for_each(|layer| {
        root.apply(layer.expect("it is there"), &Cancel::new()).map_err(|error| error.to_string())
    });
    assert!(applied.expect_err("it is damaged").starts_with("layer 2 of 2 ("));
    assert!(File::open(&disk).is_ok());
}
