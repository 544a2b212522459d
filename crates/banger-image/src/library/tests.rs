//! Tests of the library with things that look like images and kernels.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::Problem;
use banger_api::error::ErrorCode;
use banger_api::image::PullRequest;
use banger_host::command::{Cancel, Tool};
use serde_json::json;

use super::Library;
use crate::error::{LibraryError, PullError};
use crate::registry::ProgressSink;

const UUID: &str = "01234567-89ab-8def-8123-456789abcdef";
const DISK_BYTES: u64 = 300 << 20;

fn digest(digit: char) -> String {
    format!("sha256:{}", String::from(digit).repeat(64))
}

fn library() -> (tempfile::TempDir, Library) {
    let dir = tempfile::tempdir().expect("a directory");
    let library = Library::open(dir.path(), &dir.path().join("config")).expect("it opens");
    (dir, library)
}

fn silent() -> ProgressSink {
    Arc::new(|_| {})
}

fn bookworm() -> PullRequest {
    PullRequest { name: "debian-bookworm".to_owned(), ..PullRequest::default() }
}

/// Make a disk.
fn disk(path: &Path) {
    Tool::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-U", UUID])
        .arg(path)
        .arg("300M")
        .run(&Cancel::new())
        .expect("e2fsprogs is there");
}

/// Put an image into the library.
fn add_image(library: &Library, digest: &str, created_at_ms: u64) -> PathBuf {
    let work = library.images.begin().expect("work begins");
    let made = work.subdir("made").expect("a directory");
    disk(&made.join("root.ext4"));
    let manifest = json!({
        "name": "debian-bookworm", "digest": digest, "disk_sha256": "", "disk_bytes": DISK_BYTES,
        "allocated_bytes": 1, "source": "a test", "created_at_ms": created_at_ms, "config": {},
        "made_of": "", "disk_uuid": UUID,
    });
    fs::write(made.join("image.json"), manifest.to_string()).expect("a file");
    library.images.publish(&made, digest).expect("published");
    library.images.set_name("debian-bookworm", digest).expect("named");
    library.images.path_of(digest).expect("a digest")
}

/// Put a kernel into the library.
fn add_kernel(library: &Library) -> PathBuf {
    let digest = digest('c');
    let work = library.kernels.begin().expect("work begins");
    let made = work.subdir("made").expect("a directory");
    let mut vmlinuz = vec![0; 2048];
    vmlinuz[0x202..0x206].copy_from_slice(b"HdrS");
    fs::write(made.join("vmlinuz"), vmlinuz).expect("a file");
    fs::create_dir(made.join("boot")).expect("a directory");
    fs::write(made.join("boot/00-virtio.ko"), b"\x7fELF module").expect("a file");
    let manifest = json!({
        "name": "debian-cloud", "digest": digest, "release": "6.1.0-test", "allocated_bytes": 1,
        "source": "a test", "created_at_ms": 1, "boot_modules": ["virtio"],
        "files": {
            "vmlinuz": { "name": "vmlinuz", "bytes": 2048 },
            "boot_modules": [{ "name": "boot/00-virtio.ko", "bytes": 11 }],
        },
    });
    fs::write(made.join("kernel.json"), manifest.to_string()).expect("a file");
    library.kernels.publish(&made, &digest).expect("published");
    library.kernels.set_name("debian-cloud", &digest).expect("named");
    library.kernels.path_of(&digest).expect("a digest")
}

/// Replace the contents of a published file.
fn damage(path: &Path, change: impl FnOnce(&fs::File)) {
    let mut permissions = path.metadata().expect("it is there").permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "it is in a private directory")]
    permissions.set_readonly(false);
    fs::set_permissions(path, permissions).expect("ours");
    change(&fs::File::options().write(true).open(path).expect("ours"));
}

#[test]
fn images_are_found_by_name_and_digest() {
    let (_dir, library) = library();
    assert_eq!(library.find_image("debian-bookworm").expect("readable"), None);
    add_image(&library, &digest('a'), 1);
    let long = digest('a');
    for wanted in ["debian-bookworm", &long, "aaaaaaaaaaaa", "sha256:aaaaaaaaaaaaaaa"] {
        let local = library.find_image(wanted).expect("readable").expect("it is there");
        assert_eq!(local.image.digest, digest('a'), "{wanted}");
        library.verify_image(&local).expect("it is whole");
    }
    for wanted in ["debian", "aaaa", "", "bbbbbbbbbbbbbbb", "../images"] {
        assert_eq!(library.find_image(wanted).expect("readable"), None, "{wanted}");
    }
}

#[test]
fn the_newest_version_comes_first_and_has_the_name() {
    let (_dir, library) = library();
    add_image(&library, &digest('b'), 1);
    add_image(&library, &digest('a'), 2);
    let images = library.images().expect("readable");
    let digests: Vec<_> = images.iter().map(|image| image.digest.clone()).collect();
    assert_eq!(digests, [digest('a'), digest('b')]);
    let named = library.find_image("debian-bookworm").expect("readable").expect("there");
    assert_eq!(named.image.digest, digest('a'));
}

#[test]
fn damaged_images_are_found_out() {
    let (_dir, library) = library();
    let dir = add_image(&library, &digest('a'), 1);
    let local = library.find_image("debian-bookworm").expect("readable").expect("there");
    damage(&dir.join("root.ext4"), |file| {
        file.write_all_at(&[0; 4096], 0).expect("ours");
    });
    let error = library.verify_image(&local).expect_err("it is damaged");
    assert_eq!(
        error.to_string(),
        "image debian-bookworm is damaged: root.ext4 is no ext4 file system"
    );
    let problem = Problem::from(error);
    assert_eq!(problem.code, ErrorCode::ImageCorrupt);
    assert_eq!(problem.hint.as_deref(), Some("banger image pull --refresh debian-bookworm"));
    fs::remove_file(dir.join("root.ext4")).expect("ours");
    let error = library.verify_image(&local).expect_err("it is gone");
    assert!(matches!(error, LibraryError::Corrupt { .. }), "{error}");
}

#[test]
fn a_damaged_manifest_is_an_error_for_its_image_and_for_no_other() {
    let (_dir, library) = library();
    add_image(&library, &digest('b'), 1);
    let dir = add_image(&library, &digest('a'), 2);
    damage(&dir.join("image.json"), |file| file.set_len(10).expect("ours"));
    assert_eq!(library.images().expect("readable").len(), 1);
    let error = library.find_image("debian-bookworm").expect_err("it is damaged");
    assert_eq!(Problem::from(error).code, ErrorCode::ImageCorrupt);
    library.remove_image("debian-bookworm").expect("damaged things can be removed");
    assert_eq!(library.images().expect("readable").len(), 1);
}

#[test]
fn what_is_not_here_cannot_be_removed_and_the_nearest_is_named() {
    let (_dir, library) = library();
    add_image(&library, &digest('a'), 1);
    let error = library.remove_image("debian-bokworm").expect_err("a typing error");
    let problem = Problem::from(error);
    assert_eq!(problem.code, ErrorCode::ImageNotFound);
    assert!(problem.hint.expect("a hint").contains("debian-bookworm"));
    library.remove_image("debian-bookworm").expect("it is there");
    assert!(library.images().expect("readable").is_empty());
}

#[test]
fn unknown_names_are_not_pulled() {
    let (_dir, library) = library();
    let request = PullRequest { name: "debian-bookwrm".to_owned(), ..PullRequest::default() };
    let image = library.pull_image(&request, &silent(), &Cancel::new());
    let problem = Problem::from(image.expect_err("unknown"));
    assert_eq!(problem.code, ErrorCode::ImageNotFound);
    assert!(problem.hint.expect("a hint").contains("debian-bookworm"));
    let kernel = library.pull_kernel("../../etc", false, &mut |_| {}, &Cancel::new());
    assert!(matches!(kernel, Err(PullError::Unknown { .. })));
}

#[test]
fn what_is_here_is_not_pulled_again() {
    let (_dir, library) = library();
    add_image(&library, &digest('a'), 1);
    add_kernel(&library);
    let sink: ProgressSink = Arc::new(|_| panic!("there is nothing to do"));
    let mut progress = |progress| sink(progress);
    let image = library.pull_image(&bookworm(), &sink, &Cancel::new());
    assert_eq!(image.expect("it is here").digest, digest('a'));
    let kernel = library.pull_kernel("debian-cloud", false, &mut progress, &Cancel::new());
    assert_eq!(kernel.expect("it is here").digest, digest('c'));
}

#[test]
fn a_cancelled_pull_leaves_nothing() {
    let (_dir, library) = library();
    let cancel = Cancel::new();
    cancel.cancel();
    let image = library.pull_image(&bookworm(), &silent(), &cancel);
    assert_eq!(image.expect_err("cancelled").code(), ErrorCode::Cancelled);
    let left: Vec<_> = fs::read_dir(library.images.dir())
        .expect("readable")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .filter(|name| name.starts_with("tmp-"))
        .collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn damaged_kernels_are_found_out() {
    // Which file, whether it is cut off or overwritten, and what is said.
    let cases = [
        ("vmlinuz", true, "instead of 2048"),
        ("vmlinuz", false, "is not a bzImage"),
        ("boot/00-virtio.ko", true, "instead of 11"),
        ("boot/00-virtio.ko", false, "is not a kernel module"),
    ];
    for (name, cut_off, want) in cases {
        let (_dir, library) = library();
        let dir = add_kernel(&library);
        let local = library.find_kernel("debian-cloud").expect("readable").expect("there");
        library.verify_kernel(&local).expect("it is whole");
        damage(&dir.join(name), |file| match cut_off {
            true => file.set_len(5).expect("ours"),
            false => {
                let length = file.metadata().expect("stat").len();
                let zeros = vec![0; usize::try_from(length).expect("small")];
                file.write_all_at(&zeros, 0).expect("ours");
            }
        });
        let error = library.verify_kernel(&local).expect_err("it is damaged");
        assert!(error.to_string().contains(want), "{error}");
        assert_eq!(Problem::from(error).code, ErrorCode::KernelCorrupt);
    }
}

#[test]
fn the_catalog_says_what_is_here() {
    let (_dir, library) = library();
    assert!(library.catalog_images().expect("readable").iter().all(|entry| !entry.local));
    assert!(library.catalog_kernels().expect("readable").iter().all(|entry| !entry.local));
    add_image(&library, &digest('a'), 1);
    add_kernel(&library);
    assert!(library.catalog_images().expect("readable").iter().any(|entry| entry.local));
    assert!(library.catalog_kernels().expect("readable").iter().any(|entry| entry.local));
}

#[test]
fn disk_use_counts_every_kind() {
    let (_dir, library) = library();
    add_image(&library, &digest('a'), 1);
    let rows = library.disk_use().expect("readable");
    let rows: Vec<_> = rows.iter().map(|row| (row.kind.as_str(), row.count)).collect();
    assert_eq!(rows, [("images", 1), ("kernels", 0), ("cache", 0)]);
}

#[test]
fn an_initramfs_is_made_once_for_an_agent_and_a_kernel() {
    let (dir, library) = library();
    add_kernel(&library);
    let kernel = library.find_kernel("debian-cloud").expect("readable").expect("there");
    let agent = dir.path().join("agent");
    fs::write(&agent, "agent one").expect("ours");
    let first = library.initramfs(&kernel, &agent).expect("it is made");
    let entries = crate::cpio::tests::read(&fs::read(&first).expect("it is there"));
    let paths: Vec<_> = entries.iter().map(|entry| entry.path.as_str()).collect();
    let want = [
        "dev",
        "newroot",
        "proc",
        "root",
        "run",
        "sys",
        "dev/console",
        "init",
        "modules",
        "modules/00-virtio.ko",
    ];
    assert_eq!(paths, want);
    assert_eq!(entries[7].contents, b"agent one");
    // The kernel's files are not even looked at the second time.
    fs::remove_dir_all(kernel.boot_file.parent().expect("a directory")).expect("ours");
    assert_eq!(library.initramfs(&kernel, &agent).expect("it is cached"), first);
    fs::write(&agent, "agent two, longer").expect("ours");
    let error = library.initramfs(&kernel, &agent).expect_err("another agent, and no kernel");
    assert!(matches!(error, LibraryError::Io { .. }), "{error}");
}

#[test]
fn old_initramfs_are_forgotten() {
    let (dir, library) = library();
    add_kernel(&library);
    let kernel = library.find_kernel("debian-cloud").expect("readable").expect("there");
    let agent = dir.path().join("agent");
    for number in 0..12_usize {
        fs::write(&agent, "x".repeat(number + 1)).expect("ours");
        library.initramfs(&kernel, &agent).expect("it is made");
    }
    let cached = fs::read_dir(dir.path().join("cache")).expect("readable").count();
    assert_eq!(cached, 9, "eight, and what is known about agents");
}
