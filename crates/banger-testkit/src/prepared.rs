//! What all tests of one user share: a copy of the programs that the user can reach, and a data
//! directory with an image and a kernel that were really pulled.
//!
//! Made by the first test that needs it, under a lock; the others wait. `script/test` removes it
//! before and after, so that every run of it pulls for real.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::account::Account;
use crate::host::{Host, Seed};

/// A pull builds a Debian root file system; on a slow machine from a slow mirror.
const PULL_BOUND: Duration = Duration::from_secs(480);
const PROGRAMS: [&str; 4] =
    ["bin/banger", "libexec/bangerd", "libexec/banger-shim", "lib/banger-agent"];

/// The programs under test, where `account` can reach them.
pub(crate) fn programs(account: &Account, fail_points: bool) -> PathBuf {
    let (variable, dist) = match fail_points {
        false => ("BANGER_E2E_DIST", "dist"),
        true => ("BANGER_E2E_FAULTS_DIST", "dist-faults"),
    };
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let built = std::env::var_os(variable).map_or_else(|| target.join(dist), PathBuf::from);
    let _lock = lock(account, "programs.lock");
    let ours = account.test_dir().join(dist);
    for program in PROGRAMS {
        let from = built.join(program);
        let to = ours.join(program);
        assert!(
            from.exists(),
            "{} is missing: run `cargo xtask {}` first",
            from.display(),
            if fail_points { "dist --faults" } else { "dist" }
        );
        if same_file(&from, &to) {
            continue;
        }
        let dir = to.parent().expect("programs are in directories");
        std::fs::create_dir_all(dir).expect("the test directory is ours");
        // By rename: a daemon of another test may run the present one.
        let fresh = to.with_extension("new");
        std::fs::copy(&from, &fresh).expect("the programs can be read");
        std::fs::rename(&fresh, &to).expect("the test directory is ours");
        let time = std::fs::metadata(&from).and_then(|m| m.modified()).expect("just read");
        let file = File::open(&to).expect("just written");
        file.set_modified(time).expect("our own file");
    }
    ours
}

fn same_file(from: &Path, to: &Path) -> bool {
    match (std::fs::metadata(from), std::fs::metadata(to)) {
        (Ok(from), Ok(to)) => from.len() == to.len() && from.modified().ok() == to.modified().ok(),
        _ => false,
    }
}

/// A data directory with the default image and kernel, and their template.
pub(crate) fn data(account: &Account) -> PathBuf {
    let data = account.test_dir().join("prepared");
    let _lock = lock(account, "prepared.lock");
    let done = account.test_dir().join("prepared.done");
    if !done.exists() {
        let _ = std::fs::remove_dir_all(&data);
        let host = Host::builder().seed(Seed::Nothing).data_dir(data.clone()).build();
        host.banger(["image", "pull", "debian-bookworm"]).timeout(PULL_BOUND).run().assert_ok();
        host.banger(["kernel", "pull", "debian-cloud"]).timeout(PULL_BOUND).run().assert_ok();
        host.banger(["template", "make"]).run().assert_ok();
        host.finish();
        File::create(done).expect("the test directory is ours");
    }
    data
}

/// Copies image, kernel, template and cache into a test's own data directory, by hard links: nobody writes
/// these files after they are published. A test that damages one must replace it.
///
/// They are always those of the user under test; root reads them, too.
pub(crate) fn seed(account: &Account, into: &Path) {
    let from = data(&Account::under_test());
    for part in ["images", "kernels", "cache", "templates"] {
        if from.join(part).exists() {
            link_tree(account, &from.join(part), &into.join(part));
        }
    }
}

fn link_tree(account: &Account, from: &Path, to: &Path) {
    let metadata = std::fs::symlink_metadata(from).expect("the prepared directory stays");
    if metadata.is_dir() {
        std::fs::create_dir(to).unwrap_or_else(|e| panic!("mkdir {}: {e}", to.display()));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(metadata.mode());
        std::fs::set_permissions(to, mode).expect("our own directory");
        account.own(to);
        for entry in std::fs::read_dir(from).expect("readable").flatten() {
            link_tree(account, &entry.path(), &to.join(entry.file_name()));
        }
    } else if metadata.is_symlink() {
        let target = std::fs::read_link(from).expect("a link");
        std::os::unix::fs::symlink(target, to).expect("a new name");
        account.own(to);
    } else {
        std::fs::hard_link(from, to).unwrap_or_else(|e| panic!("link {}: {e}", to.display()));
    }
}

fn lock(account: &Account, name: &str) -> Flock<File> {
    let dir = account.test_dir();
    account.make_dir(&dir);
    let file = File::create(dir.join(name)).expect("the test directory is ours");
    Flock::lock(file, FlockArg::LockExclusive).expect("a lock on our own file")
}
