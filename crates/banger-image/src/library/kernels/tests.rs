//! Tests of importing kernels, with files that look like kernels to whoever reads them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use banger_api::Problem;
use banger_api::error::ErrorCode;
use banger_api::kernel::{ImportKernel, Kernel};
use banger_host::command::{Cancel, Tool};

use super::Library;
use crate::bzimage::tests::packed_bzimage;
use crate::debian::deb::tests::package;
use crate::kernel::tests::{carried_config, good_config, good_words, vmlinux};
use crate::modules::tests::module_file;
use crate::packing::tests::packed;

const RELEASE: &str = "6.1.0-test";

/// A library, and a directory with files to import.
struct Bench {
    dir: tempfile::TempDir,
    library: Library,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let library = Library::open(&dir.path().join("data"), dir.path()).expect("it opens");
        Self { dir, library }
    }

    /// Write a file, and answer its path.
    fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().expect("not the root")).expect("ours");
        fs::write(&path, contents).expect("ours");
        path
    }

    fn import(&self, request: &ImportKernel) -> Result<Kernel, Problem> {
        let made = self.library.import_kernel(request, &mut |_| {}, &Cancel::new());
        made.map_err(Problem::from)
    }

    /// What is in the directory of kernels, but for locks.
    fn kernels_dir(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("data/kernels")).expect("readable");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().expect("text")).collect();
        names.retain(|name| !name.ends_with(".lock"));
        names.sort();
        names
    }
}

fn request(name: &str, kernel: &Path) -> ImportKernel {
    let kernel = kernel.display().to_string();
    ImportKernel { name: name.to_owned(), kernel, modules: None, config: None }
}

/// A kernel that has everything built in, and says so only by its words.
fn whole_kernel() -> Vec<u8> {
    vmlinux(RELEASE, &good_words(), true)
}

/// The modules of a kernel that has the rest built in: path and contents of each.
fn modules() -> Vec<(&'static str, Vec<u8>)> {
    let module = |info: &str| {
        module_file(format!("{info}\0vermagic={RELEASE} SMP mod_unload \0").as_bytes())
    };
    vec![
        ("kernel/drivers/virtio/virtio_mmio.ko.xz", packed("xz", &module("depends=virtio"))),
        ("kernel/drivers/virtio/virtio.ko.gz", packed("gzip", &module("depends="))),
        ("kernel/drivers/block/virtio_blk.ko.zst", packed("zstd", &module("depends=virtio"))),
        ("kernel/drivers/net/virtio_net.ko", module("depends=virtio")),
        ("modules.builtin", BUILT_IN.to_vec()),
    ]
}

const BUILT_IN: &[u8] =
    b"kernel/a/virtio_console.ko\nkernel/a/dm-snapshot.ko\nkernel/a/dm-zero.ko\n\
                          kernel/fs/ext4/ext4.ko\n";

#[test]
fn a_kernel_with_everything_built_in_is_only_itself() {
    let bench = Bench::new();
    let vmlinux = bench.file("vmlinux", &whole_kernel());
    let kernel = bench.import(&request("mine", &vmlinux)).expect("it is suitable");
    assert_eq!((kernel.name.as_str(), kernel.release.as_str()), ("mine", RELEASE));
    assert!(kernel.boot_modules.is_empty());
    let local = bench.library.find_kernel("mine").expect("readable").expect("there");
    bench.library.verify_kernel(&local).expect("whole");
    assert_eq!((local.vmlinuz, local.modules_image), (None, None));
    assert_eq!(fs::read(&local.boot_file).expect("there"), whole_kernel());
    assert_eq!(bench.kernels_dir().len(), 2, "the kernel and the names");
}

#[test]
fn every_way_of_packing_gives_the_same_kernel_file() {
    let bench = Bench::new();
    for packer in ["gzip", "xz --x86", "zstd", "lz4"] {
        let image = packed_bzimage(packer, &whole_kernel());
        let path = bench.file("bzImage", &image);
        bench.import(&request("mine", &path)).expect("it is suitable");
        let local = bench.library.find_kernel("mine").expect("readable").expect("there");
        assert_eq!(fs::read(&local.boot_file).expect("there"), whole_kernel(), "{packer}");
        assert_eq!(fs::read(local.vmlinuz.expect("kept")).expect("there"), image);
    }
}

#[test]
fn the_same_again_is_nothing_new_and_another_name_is_another_name() {
    let bench = Bench::new();
    let image = bench.file("bzImage", &packed_bzimage("gzip", &whole_kernel()));
    let first = bench.import(&request("mine", &image)).expect("it is suitable");
    let before = bench.kernels_dir();
    let again = bench.import(&request("mine", &image)).expect("it is here");
    assert_eq!((&again, bench.kernels_dir()), (&first, before.clone()));
    let other = bench.import(&request("yours", &image)).expect("it is here");
    assert_eq!((other.name.as_str(), other.digest), ("yours", first.digest.clone()));
    assert_eq!(bench.kernels_dir(), before);
    let names = || {
        let kernels = bench.library.kernels().expect("readable");
        kernels.into_iter().map(|kernel| kernel.name).collect::<Vec<_>>()
    };
    assert_eq!(names(), ["mine", "yours"]);
    bench.library.remove_kernel("mine").expect("it is there");
    assert_eq!(names(), ["yours"], "one name of two is only a name");
    bench.library.remove_kernel("yours").expect("it is there");
    assert_eq!(names(), [""; 0]);
    assert_eq!(bench.kernels_dir(), ["by-name"]);
}

#[test]
fn another_version_takes_the_name_over() {
    let bench = Bench::new();
    let one = bench.file("one", &vmlinux("6.1.0", &good_words(), true));
    let two = bench.file("two", &vmlinux("6.2.0", &good_words(), true));
    bench.import(&request("mine", &one)).expect("it is suitable");
    bench.import(&request("mine", &two)).expect("it is suitable");
    let local = bench.library.find_kernel("mine").expect("readable").expect("there");
    assert_eq!(local.kernel.release, "6.2.0");
    assert_eq!(bench.library.kernels().expect("readable").len(), 2);
}

#[test]
fn modules_are_taken_from_a_directory_and_unpacked() {
    let bench = Bench::new();
    // Where it is, seen from the directory that is given.
    for below in ["", "lib/modules/6.1.0-test/", "usr/lib/modules/6.1.0-test/", "6.1.0-test/"] {
        let base = format!("given{}/", below.len());
        for (path, contents) in modules() {
            bench.file(&format!("{base}{below}{path}"), &contents);
        }
        let words = good_words();
        let kernel = bench.file("vmlinux", &vmlinux(RELEASE, &words, true));
        let modules = Some(bench.dir.path().join(&base).display().to_string());
        let request = ImportKernel { modules, ..request("mine", &kernel) };
        let kernel = bench.import(&request).expect("it is suitable");
        assert_eq!(kernel.boot_modules, ["virtio", "virtio_mmio", "virtio_blk", "virtio_net"]);
        let local = bench.library.find_kernel("mine").expect("readable").expect("there");
        bench.library.verify_kernel(&local).expect("whole");
        for module in &local.boot_modules {
            assert!(fs::read(module).expect("there").starts_with(b"\x7fELF"), "{module:?}");
        }
        let image = local.modules_image.expect("there are modules");
        let list = |dir: &str| {
            let tool = Tool::new("debugfs").args(["-R", &format!("ls -p {dir}")]).arg(&image);
            tool.run(&Cancel::new()).expect("e2fsprogs is there").text()
        };
        assert!(list("/kernel/drivers/virtio").contains("/virtio_mmio.ko/"));
        assert!(list("/").contains("/100644/0/0/modules.dep.bin/"), "{}", list("/"));
    }
    // The same modules, so the same kernel each time.
    assert_eq!(bench.library.kernels().expect("readable").len(), 1);
}

#[test]
fn a_package_has_it_all() {
    let bench = Bench::new();
    let image = packed_bzimage("zstd", &vmlinux(RELEASE, &[], true));
    let config = good_config().replace("CONFIG_VIRTIO_BLK=y", "CONFIG_VIRTIO_BLK=m");
    for modules_dir in ["lib/modules", "usr/lib/modules"] {
        let all: Vec<(String, Vec<u8>)> = modules()
            .into_iter()
            .map(|(path, contents)| (format!("{modules_dir}/{RELEASE}/{path}"), contents))
            .chain([(format!("boot/config-{RELEASE}"), config.clone().into_bytes())])
            .chain([(format!("boot/vmlinuz-{RELEASE}"), image.clone())])
            .chain([("usr/share/doc/readme".to_owned(), b"hello".to_vec())])
            .collect();
        let files: Vec<(&str, &[u8])> =
            all.iter().map(|(path, contents)| (path.as_str(), contents.as_slice())).collect();
        let package = bench.file("linux.deb", &package(&files));
        let kernel = bench.import(&request("mine", &package)).expect("it is suitable");
        assert_eq!(kernel.release, RELEASE);
        assert_eq!(kernel.boot_modules, ["virtio", "virtio_mmio", "virtio_blk", "virtio_net"]);
        let again = bench.import(&request("mine", &package)).expect("it is here");
        assert_eq!(again, kernel);
    }
}

#[test]
fn all_that_is_missing_is_said_at_once_with_what_to_do() {
    let bench = Bench::new();
    let config = good_config()
        .replace("CONFIG_VIRTIO_MMIO=y\n", "")
        .replace("CONFIG_DM_SNAPSHOT=y", "CONFIG_DM_SNAPSHOT=m");
    let kernel = bench.file("vmlinux", &vmlinux(RELEASE, &[&carried_config(&config)], false));
    let problem = bench.import(&request("mine", &kernel)).expect_err("it is not suitable");
    assert_eq!(problem.code, ErrorCode::KernelUnsuitable);
    assert_eq!(problem.title, "the kernel 6.1.0-test lacks what guests need");
    assert_eq!(
        problem.causes,
        [
            "virtio devices over MMIO (CONFIG_VIRTIO_MMIO)",
            "copy-on-write disks (CONFIG_DM_SNAPSHOT), which is a module that is not here",
            "being started without a boot loader (CONFIG_PVH)",
        ]
    );
    assert_eq!(
        problem.hint.as_deref(),
        Some(
            "give its --modules DIR, or build the kernel with \
             CONFIG_VIRTIO_MMIO=y CONFIG_DM_SNAPSHOT=y CONFIG_PVH=y"
        )
    );
    assert_eq!(bench.kernels_dir(), ["by-name"], "nothing is left");
}

#[test]
fn a_configuration_may_be_given_and_the_kernels_own_goes_first() {
    let bench = Bench::new();
    let config = Some(bench.file("config", good_config().as_bytes()).display().to_string());
    let silent = bench.file("silent", &vmlinux(RELEASE, &[], true));
    bench.import(&request("silent", &silent)).expect_err("nothing says that it is suitable");
    let with_config =
        |kernel: &Path| ImportKernel { config: config.clone(), ..request("k", kernel) };
    bench.import(&with_config(&silent)).expect("its configuration says so");
    let own = carried_config("CONFIG_SMP=y\n");
    let honest = bench.file("honest", &vmlinux(RELEASE, &[&own], true));
    let problem = bench.import(&with_config(&honest)).expect_err("it says itself that it is not");
    assert_eq!(problem.code, ErrorCode::KernelUnsuitable);
}

#[test]
fn what_is_wrong_with_the_files_is_said() {
    let bench = Bench::new();
    let good = bench.file("vmlinux", &whole_kernel());
    let text = bench.file("text", b"hello");
    let other = vmlinux("6.9.0", &[], true);
    let of_another = bench.file("of-another/kernel/x.ko", &module_file(b"depends=\0"));
    let of_another = of_another.parent().and_then(Path::parent).expect("above").to_owned();
    let several = package(&[("boot/vmlinuz-1", &other), ("boot/vmlinuz-2", &other)]);
    let mismatch = package(&[
        ("boot/vmlinuz-6.9.0", &other),
        ("lib/modules/6.1.0/a.ko", &module_file(b"depends=\0")),
    ]);
    let lzma = packed_bzimage("lzma", &whole_kernel());
    let damaged = packed_bzimage("gzip", &whole_kernel());
    let dir = bench.dir.path().to_owned();
    let missing = dir.join("missing");
    let cases: Vec<(PathBuf, Option<PathBuf>, &str)> = vec![
        (text.clone(), None, "text: it is neither a bzImage nor an ELF file"),
        (dir.clone(), None, "it is not a file"),
        (missing.clone(), None, "cannot read"),
        (bench.file("lzma", &lzma), None, "packed with lzma, which is not supported"),
        (bench.file("cut", &damaged[..damaged.len() - 9]), None, "it is damaged: it is cut off"),
        (bench.file("empty.deb", &package(&[])), None, "empty.deb: it has no kernel in it"),
        (bench.file("several.deb", &several), None, "it has several kernels"),
        (bench.file("mismatch.deb", &mismatch), None, "its modules are of the kernel 6.1.0"),
        (bench.file("odd.deb", b"!<arch>\nodd"), None, "odd.deb: it is no Debian package"),
        (good.clone(), Some(missing), "cannot read"),
        (good.clone(), Some(text), "text: it is no Debian package"),
        (good.clone(), Some(dir.join("of-another/kernel")), "it has no kernel modules in it"),
        (good, Some(of_another), "virtio"),
    ];
    for (kernel, modules, want) in cases {
        let modules = modules.map(|path| path.display().to_string());
        let request = ImportKernel { modules, ..request("mine", &kernel) };
        // The last one is fine: a kernel may have modules that a boot does not need.
        if want == "virtio" {
            bench.import(&request).expect("it is suitable");
            continue;
        }
        let problem = bench.import(&request).expect_err(want);
        assert!(problem.to_string().contains(want), "{problem}");
        assert_eq!(bench.kernels_dir(), ["by-name"], "{want}");
    }
}

#[test]
fn modules_of_another_kernel_are_refused() {
    let bench = Bench::new();
    let kernel = bench.file("vmlinux", &vmlinux("6.1.1-other", &good_words(), true));
    for (path, contents) in modules() {
        bench.file(&format!("modules/{path}"), &contents);
    }
    let modules = Some(bench.dir.path().join("modules").display().to_string());
    let request = ImportKernel { modules, ..request("mine", &kernel) };
    let problem = bench.import(&request).expect_err("they do not fit");
    assert!(
        problem.to_string().contains("virtio is of 6.1.0-test, and the kernel is 6.1.1-other"),
        "{problem}"
    );
}

#[test]
fn links_out_of_what_is_given_are_not_followed() {
    let bench = Bench::new();
    let kernel = bench.file("vmlinux", &whole_kernel());
    bench.file("secret/6.1.0-test/kernel/secret.ko", b"secret");
    fs::create_dir_all(bench.dir.path().join("given/lib")).expect("ours");
    symlink("../../secret", bench.dir.path().join("given/lib/modules")).expect("ours");
    let modules = Some(bench.dir.path().join("given").display().to_string());
    let request = ImportKernel { modules, ..request("mine", &kernel) };
    let problem = bench.import(&request).expect_err("there is nothing inside");
    assert!(problem.to_string().contains("it has no kernel modules in it"), "{problem}");
}

#[test]
fn names_and_paths_are_checked() {
    let bench = Bench::new();
    let kernel = bench.file("vmlinux", &whole_kernel());
    for name in ["", "../x", "Mine", "a/b", "-a"] {
        let problem = bench.import(&request(name, &kernel)).expect_err(name);
        assert_eq!(problem.code, ErrorCode::InvalidArgument, "{name}");
    }
    let problem = bench.import(&request("mine", Path::new("vmlinux"))).expect_err("not absolute");
    assert_eq!(problem.code, ErrorCode::InvalidArgument);
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let bench = Bench::new();
    let kernel = bench.file("vmlinux", &whole_kernel());
    let cancel = Cancel::new();
    cancel.cancel();
    let made = bench.library.import_kernel(&request("mine", &kernel), &mut |_| {}, &cancel);
    assert_eq!(made.expect_err("cancelled").code(), ErrorCode::Cancelled);
    assert_eq!(bench.kernels_dir(), ["by-name"]);
}

#[test]
fn a_damaged_kernel_is_imported_anew() {
    let bench = Bench::new();
    let image = bench.file("vmlinux", &whole_kernel());
    bench.import(&request("mine", &image)).expect("it is suitable");
    let local = bench.library.find_kernel("mine").expect("readable").expect("there");
    fs::remove_file(&local.boot_file).expect("ours");
    bench.library.verify_kernel(&local).expect_err("it is damaged");
    bench.import(&request("mine", &image)).expect("it is suitable");
    bench.library.verify_kernel(&local).expect("it is whole again");
}

/// Whatever keeps a local kernel from being read is told, and never that it is not known.
#[test]
fn a_kernel_that_cannot_be_read_is_not_one_that_is_unknown() {
    let bench = Bench::new();
    let image = bench.file("vmlinux", &whole_kernel());
    let kernel = bench.import(&request("mine", &image)).expect("it is suitable");
    let dir = bench.dir.path().join("data/kernels").join(kernel.digest.replace(':', "-"));
    let manifest = dir.join("kernel.json");
    let whole = fs::read(&manifest).expect("there");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    };
    let problems = || {
        let found = bench.library.find_kernel("mine").map_err(Problem::from);
        let pulled = bench.library.pull_kernel("mine", false, &mut |_| {}, &Cancel::new());
        [found.expect_err("unreadable"), Problem::from(pulled.expect_err("unreadable"))]
    };
    for contents in [&b"{"[..], b"", &whole[..whole.len() / 2], b"{\"name\":\"x\"}"] {
        fs::remove_file(&manifest).expect("ours");
        fs::write(&manifest, contents).expect("ours");
        for problem in problems() {
            assert_eq!(problem.code, ErrorCode::KernelCorrupt, "{problem}");
            assert_eq!(
                problem.hint.as_deref(),
                Some("import the kernel again: banger kernel import --name mine")
            );
        }
    }
    fs::remove_file(&manifest).expect("ours");
    for problem in problems() {
        assert_eq!(problem.code, ErrorCode::KernelCorrupt, "{problem}");
    }
    fs::write(&manifest, &whole).expect("ours");
    if nix::unistd::geteuid().is_root() {
        // Root may read everything.
        return;
    }
    for path in [manifest, dir, bench.dir.path().join("data/kernels/by-name")] {
        let before = fs::metadata(&path).expect("there").permissions().mode();
        mode(&path, 0);
        let problems = problems();
        mode(&path, before);
        for problem in problems {
            assert_eq!(problem.code, ErrorCode::HostNotPermitted, "{problem}");
        }
    }
}
