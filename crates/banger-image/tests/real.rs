//! The real thing: a Debian root filesystem and kernel from the archive, as root and as an ordinary
//! user. Needs the host's package sources and a minute or two.
//!
//! Each test here runs as whoever runs the tests. If that is root, [`as_an_ordinary_user`] runs the
//! others once more as `banger-test`, a user with subordinate ids that `script/test` creates.
//! Some tests start this program again, to have a process that can be killed: what such a child does
//! is a test that does nothing unless [`CHILD_DIR`] is set.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test starts itself again, passes it variables and says what it skips"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use banger_api::Problem;
use banger_api::error::ErrorCode;
use banger_api::image::PullRequest;
use banger_api::kernel::ImportKernel;
use banger_api::operation::Progress;
use banger_host::command::{Cancel, Tool, find_program};
use banger_image::{Library, LocalImage, LocalKernel, ProgressSink};
use tempfile::TempDir;

/// The ordinary user.
const USER: &str = "banger-test";
/// Where a child works.
const CHILD_DIR: &str = "BANGER_IMAGE_CHILD_DIR";
const IMAGE: &str = "debian-bookworm";
const KERNEL: &str = "debian-cloud";

/// A directory on a real disk; `/tmp` may be memory.
fn data_dir() -> TempDir {
    tempfile::Builder::new().prefix("banger-image-").tempdir_in("/var/tmp").expect("a directory")
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

fn run(program: &str, args: &[&str], file: &Path) -> String {
    let tool = Tool::new(program).args(args).arg(file);
    tool.run(&Cancel::new()).unwrap_or_else(|e| panic!("{e}: {:?}", e.stderr())).text()
}

/// What debugfs says about a disk.
fn debugfs(disk: &Path, request: &str) -> String {
    run("debugfs", &["-R", request], disk)
}

/// Names in the library's directory of images or kernels.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("it can be listed");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn image_request() -> PullRequest {
    PullRequest { name: IMAGE.to_owned(), ..PullRequest::default() }
}

#[test]
fn a_kernel_is_fetched_and_complete() {
    let dir = data_dir();
    let library = Library::open(dir.path(), dir.path()).expect("it opens");
    let mut stages = Vec::new();
    let kernel = library
        .pull_kernel(
            KERNEL,
            false,
            &mut |progress| note_stage(&mut stages, &progress),
            &Cancel::new(),
        )
        .map_err(Problem::from)
        .expect("the kernel is fetched");
    assert_eq!(stages, ["kernel.download", "kernel.extract", "kernel.modules"]);
    let local = library.find_kernel(KERNEL).expect("readable").expect("it is here");
    assert_eq!(local.kernel, kernel);
    library.verify_kernel(&local).expect("it is whole");
    check_kernel(&local);
    check_imports(&library, &local, dir.path());
    // The newest is here: nothing but the lists is fetched.
    let again = library.pull_kernel(KERNEL, true, &mut |_| {}, &Cancel::new());
    assert_eq!(again.expect("it is the same").digest, kernel.digest);
    library.remove_kernel(KERNEL).expect("it goes");
    let mut left = names(&dir.path().join("kernels"));
    left.retain(|name| !name.ends_with(".lock"));
    assert_eq!(left, ["by-name"]);
}

fn check_kernel(local: &LocalKernel) {
    let LocalKernel { kernel, boot_file, modules_image, boot_modules, .. } = local;
    assert!(kernel.release.ends_with("-cloud-amd64"), "{}", kernel.release);
    assert!(boot_file.ends_with("vmlinux"), "Debian's kernel can be unpacked");
    assert!(fs::metadata(boot_file).expect("it is there").len() > 30 << 20);
    let position = |name: &str| kernel.boot_modules.iter().position(|module| module == name);
    for (first, then) in [
        ("virtio_ring", "virtio"),
        ("virtio", "virtio_mmio"),
        ("dm_mod", "dm_snapshot"),
        ("dm_mod", "dm_zero"),
        ("virtio", "virtio_net"),
    ] {
        assert!(position(first).is_some(), "{first} is missing");
        assert!(position(first) < position(then), "{first} before {then}");
    }
    assert_eq!(boot_modules.len(), kernel.boot_modules.len());
    let modules = modules_image.as_deref().expect("there is a disk of modules");
    run("e2fsck", &["-f", "-n"], modules);
    assert!(debugfs(modules, "cat /modules.dep").contains("kernel/fs/overlayfs/overlay.ko:"));
    assert!(debugfs(modules, "stat /kernel").contains("User:     0   Group:     0"));
    if find_program("modprobe").is_some() {
        check_with_modprobe(modules, &kernel.release);
    } else {
        eprintln!("skipped: no modprobe here to look modules up with");
    }
}

/// What was pulled can be imported as well: whole it is the same kernel, and without its modules it is
/// none for guests.
fn check_imports(library: &Library, local: &LocalKernel, dir: &Path) {
    let import = |name: &str, kernel: &Path| {
        let (name, kernel) = (name.to_owned(), kernel.display().to_string());
        let request = ImportKernel { name, kernel, modules: None, config: None };
        library.import_kernel(&request, &mut |_| {}, &Cancel::new()).map_err(Problem::from)
    };
    let bare = local.vmlinuz.as_deref().expect("Debian's kernel is a bzImage");
    let problem = import("bare", bare).expect_err("its drivers are modules");
    assert_eq!(problem.code, ErrorCode::KernelUnsuitable);
    let hint = problem.hint.expect("a hint");
    let wanted = "CONFIG_VIRTIO_MMIO=y CONFIG_VIRTIO_BLK=y CONFIG_VIRTIO_CONSOLE=y \
                  CONFIG_DM_SNAPSHOT=y CONFIG_DM_ZERO=y CONFIG_VIRTIO_NET=y";
    assert!(hint.ends_with(wanted), "{hint}");

    let package = local.kernel.source.split(' ').next().expect("it names the package");
    let version = local.kernel.source.split(' ').nth(1).expect("and its version");
    let downloads = dir.join("downloads");
    fs::create_dir(&downloads).expect("ours");
    let download = Tool::new("apt-get")
        .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
        .arg(format!("{package}={version}"))
        .dir(&downloads);
    if download.run(&Cancel::new()).is_err() {
        eprintln!("skipped: this host's own apt has no {package} {version} to import");
        return;
    }
    let file = downloads.join(names(&downloads).first().expect("a package"));
    let imported = import("imported", &file).expect("it is a kernel for guests");
    assert_eq!(imported.digest, local.kernel.digest, "the same package is the same kernel");
    library.remove_kernel("imported").expect("one name of two");
    // Made anew from the package alone it is the same too.
    library.remove_kernel(KERNEL).expect("the other name");
    import(KERNEL, &file).expect("it is a kernel for guests");
    let again = library.find_kernel(KERNEL).expect("readable").expect("there");
    assert_eq!(again.boot_modules.len(), local.boot_modules.len());
    check_kernel(&again);
}

/// The real modprobe finds modules by name and by alias, with what they need.
fn check_with_modprobe(modules: &Path, release: &str) {
    let dir = data_dir();
    let target = dir.path().join("lib/modules").join(release);
    fs::create_dir_all(&target).expect("a directory");
    debugfs(modules, &format!("rdump / {}", target.display()));
    for (name, needs) in
        [("overlay", "overlay.ko"), ("fs-fuse", "fuse.ko"), ("br_netfilter", "llc.ko")]
    {
        let tool = Tool::new("modprobe").args(["--show-depends", "--set-version", release]);
        let shown = tool.arg("--dirname").arg(dir.path()).arg(name).run(&Cancel::new());
        let shown = shown.unwrap_or_else(|e| panic!("{e}: {:?}", e.stderr())).text();
        assert!(shown.contains(needs), "{name}: {shown}");
    }
}

#[test]
fn an_image_is_built_and_clean() {
    let dir = data_dir();
    let library = Library::open(dir.path(), dir.path()).expect("it opens");
    let heard = Arc::new(Mutex::new((Vec::new(), Vec::new())));
    let sink: ProgressSink = {
        let heard = Arc::clone(&heard);
        Arc::new(move |progress| {
            let (stages, percents) = &mut *heard.lock().expect("no panic");
            note_stage(stages, &progress);
            percents.extend(progress.done);
        })
    };
    let image = library
        .pull_image(&image_request(), &sink, &Cancel::new())
        .map_err(Problem::from)
        .expect("the image is built");
    let (stages, percents) = heard.lock().expect("no panic").clone();
    assert_eq!(stages, ["image.bootstrap", "image.unpack", "image.disk"]);
    assert!(percents.is_sorted(), "{percents:?}");
    assert!(percents.len() > 50, "{percents:?}");
    let local = library.find_image(IMAGE).expect("readable").expect("it is here");
    assert_eq!(local.image, image);
    library.verify_image(&local).expect("it is whole");
    check_image(&local);
    let images = dir.path().join("images");
    let directory = image.digest.replace(':', "-");
    let rest = [".lock", "by-name", "pull-debian-bookworm.lock"];
    assert_eq!(names(&images), [rest[0], rest[1], rest[2], &directory]);
    library.remove_image(IMAGE).expect("it goes");
    assert_eq!(names(&images), rest);
}

fn check_image(local: &LocalImage) {
    let disk = local.root.as_path();
    run("e2fsck", &["-f", "-n"], disk);
    assert_eq!(fs::metadata(disk).expect("it is there").len(), 8 << 30);
    assert!(local.image.allocated_bytes < 400 << 20, "{}", local.image.allocated_bytes);
    // Nothing of the host, nothing that must be each VM's own.
    for gone in ["/etc/resolv.conf", "/etc/hostname", "/etc/apt/sources.list"] {
        assert!(!debugfs(disk, &format!("stat {gone}")).contains("Inode:"), "{gone} is there");
    }
    assert!(debugfs(disk, "stat /etc/machine-id").contains("Size: 0"));
    let listed = |dir: &str| debugfs(disk, &format!("ls -p {dir}"));
    assert!(!listed("/etc/ssh").contains("ssh_host_"));
    assert!(!listed("/etc/apt/apt.conf.d").contains("mmdebstrap"));
    assert!(!listed("/var/lib/apt/lists").contains("Packages"));
    let entries = |text: &str| text.lines().filter(|line| line.starts_with('/')).count();
    assert_eq!(entries(&listed("/dev")), 2, "only . and ..: {}", listed("/dev"));
    // Owners, modes and capabilities as the packages have them.
    let sudo = debugfs(disk, "stat /usr/bin/sudo");
    assert!(sudo.contains("Mode:  04755") && sudo.contains("User:     0   Group:     0"), "{sudo}");
    assert!(debugfs(disk, "stat /usr/bin/chage").contains("Group:    42"), "it belongs to shadow");
    assert!(debugfs(disk, "ea_list /usr/bin/ping").contains("security.capability"));
    // Sources that work in the guest, without passwords.
    let sources = debugfs(disk, "cat /etc/apt/sources.list.d/debian.sources");
    assert!(sources.contains("Suites: bookworm\n"), "{sources}");
    assert!(!sources.contains('@'), "{sources}");
    for program in ["git", "curl", "python3", "sudo", "ip", "ps", "less", "modprobe", "sshd"] {
        let found = ["/usr/bin", "/usr/sbin"]
            .iter()
            .any(|dir| debugfs(disk, &format!("stat {dir}/{program}")).contains("Inode:"));
        assert!(found, "{program} is missing");
    }
}

fn note_stage(stages: &mut Vec<String>, progress: &Progress) {
    if stages.last() != Some(&progress.stage) {
        stages.push(progress.stage.clone());
    }
}

#[test]
fn a_cancelled_build_leaves_nothing() {
    let dir = data_dir();
    let library = Library::open(dir.path(), dir.path()).expect("it opens");
    let cancel = Cancel::new();
    let in_build: ProgressSink = {
        let cancel = cancel.clone();
        Arc::new(move |progress: Progress| {
            if progress.done >= Some(20) {
                cancel.cancel();
            }
        })
    };
    let error = library.pull_image(&image_request(), &in_build, &cancel).expect_err("cancelled");
    assert_eq!(error.code(), ErrorCode::Cancelled);
    let images = dir.path().join("images");
    assert_eq!(names(&images), [".lock", "by-name", "pull-debian-bookworm.lock"]);
    assert_eq!(processes_about(dir.path()), Vec::<String>::new());
}

#[test]
fn a_build_killed_with_kill_9_leaves_no_process_and_no_file_after_the_next_start() {
    let dir = data_dir();
    let images = dir.path().join("images");
    let mut child =
        child("child_pulls", dir.path()).stdout(Stdio::piped()).spawn().expect("it starts");
    // The test harness prints its own lines first.
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let begun = stdout.lines().any(|line| line.expect("readable").contains("unpacking"));
    assert!(begun, "the child ended before it unpacked anything");
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    let since = Instant::now();
    while !processes_about(dir.path()).is_empty() && since.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(processes_about(dir.path()), Vec::<String>::new());
    assert!(names(&images).iter().any(|name| name.starts_with("tmp-")), "there was work to lose");
    let library = Library::open(dir.path(), dir.path()).expect("it opens");
    assert_eq!(names(&images), [".lock", "by-name", "pull-debian-bookworm.lock"]);
    assert!(library.images().expect("readable").is_empty());
}

#[test]
fn a_disk_that_fills_up_is_told_and_leaves_nothing() {
    if !is_root() {
        return eprintln!("skipped: only root can mount a small disk");
    }
    let dir = data_dir();
    // Enough room, as far as a look at the beginning shows, and too few inodes.
    let script = "mount -t tmpfs -o size=2g,nr_inodes=4000 small \"$0\" && exec \"$@\"";
    let child = child("child_pulls_and_fails", dir.path());
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(dir.path())
        .arg(child.get_program())
        .args(child.get_args())
        .env(CHILD_DIR, dir.path())
        .output()
        .expect("unshare is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("code: host_disk_full"), "{text}");
    assert!(
        text.contains("left: [\".lock\", \"by-name\", \"pull-debian-bookworm.lock\"]"),
        "{text}"
    );
}

/// This program again, to run one test in `dir`.
fn child(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("it runs"));
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD_DIR, dir);
    command
}

fn child_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD_DIR).map(PathBuf::from)
}

/// A child's work: pull, and say how far it is, until it is killed.
#[test]
fn child_pulls() {
    let Some(dir) = child_dir() else { return };
    let library = Library::open(&dir, &dir).expect("it opens");
    let say: ProgressSink = Arc::new(|progress: Progress| {
        let unpacks = progress.done >= Some(25);
        println!("{}", if unpacks { "unpacking" } else { "fetching" });
    });
    library.pull_image(&image_request(), &say, &Cancel::new()).expect("nobody kills it");
}

/// A child's work: pull, fail, and say how, and what is left.
#[test]
fn child_pulls_and_fails() {
    let Some(dir) = child_dir() else { return };
    let library = Library::open(&dir, &dir).expect("it opens");
    let silent: ProgressSink = Arc::new(|_| {});
    let error = library.pull_image(&image_request(), &silent, &Cancel::new()).expect_err("no room");
    let problem = Problem::from(error);
    println!("code: {}", problem.code.as_str());
    println!("problem: {problem}");
    println!("left: {:?}", names(&dir.join("images")));
}

/// Command lines of the processes that have `dir` in them or work in it.
fn processes_about(dir: &Path) -> Vec<String> {
    let me = std::process::id().to_string();
    let about = |process: &Path| {
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let in_dir = ["cwd", "root"]
            .iter()
            .any(|link| fs::read_link(process.join(link)).is_ok_and(|path| path.starts_with(dir)));
        let named = arguments.contains(&*dir.to_string_lossy());
        (in_dir || named).then_some(arguments)
    };
    let entries = fs::read_dir("/proc").expect("proc is mounted");
    let processes = entries.filter_map(|entry| Some(entry.ok()?.path()));
    processes
        .filter(|process| !process.ends_with(&me))
        .filter_map(|process| about(&process))
        .collect()
}

#[test]
fn as_an_ordinary_user() {
    if !is_root() {
        return eprintln!("skipped: the tests run as an ordinary user already");
    }
    let users = fs::read_to_string("/etc/passwd").expect("there are users");
    if !users.lines().any(|line| line.starts_with(&format!("{USER}:"))) {
        return eprintln!("skipped: there is no user {USER}; script/test creates it");
    }
    // Where the build is the user may not look.
    let dir = data_dir();
    let program = dir.path().join("real");
    let bytes = fs::read(std::env::current_exe().expect("it runs")).expect("readable");
    fs::write(&program, bytes).expect("ours");
    for path in [dir.path(), &program] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, mode).expect("ours");
    }
    let status = Command::new("runuser")
        .args(["-u", USER, "--"])
        .arg(&program)
        .args(["--skip", "as_an_ordinary_user", "--test-threads=2"])
        .current_dir("/")
        .env_remove("XDG_RUNTIME_DIR")
        .status()
        .expect("util-linux is there");
    assert!(status.success(), "the tests failed as {USER}");
}
