//! What goes into the machine: the built tree, and an image and a kernel so that it pulls none.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::home;
use crate::failure::{ChoreFailure, on_file, run};
use crate::tree;

/// Parts of the repository that are copied in besides the programs.
const PARTS: [&str; 2] = ["script", "tests/host-vm"];
/// Size of the disks, in the form of truncate(1). They are sparse.
const TREE_SIZE: &str = "2G";
const SEED_SIZE: &str = "16G";

/// Where the machine finds the tree's disk, given its run's directory.
pub(super) fn tree_disk(dir: &Path) -> PathBuf {
    dir.join("tree.ext4")
}

/// Makes the disk with the tree.
pub(super) fn make_tree(dir: &Path, dev: bool) -> Result<(), ChoreFailure> {
    let dist = dist(dev);
    if !dist.join("bin/banger").exists() {
        let hint = if dev { " --dev" } else { "" };
        let text = format!("{} is missing: run cargo xtask dist{hint}", dist.display());
        return Err(ChoreFailure::Found(text));
    }
    let staging = dir.join("tree");
    for part in PARTS {
        copy(&tree::root().join(part), &staging.join(part))?;
    }
    copy(&dist, &staging.join("target/dist"))?;
    make_disk(&staging, &tree_disk(dir), TREE_SIZE)?;
    std::fs::remove_dir_all(&staging).map_err(on_file("remove", &staging))
}

fn dist(dev: bool) -> PathBuf {
    tree::root().join(if dev { "target/dist-dev" } else { "target/dist" })
}

/// The disk with the default image and kernel, pulled by this tree's own banger on this machine.
pub(super) fn ensure_seed(dev: bool) -> Result<PathBuf, ChoreFailure> {
    let disk = home().join("seed.ext4");
    if disk.exists() {
        return Ok(disk);
    }
    println!("pulling the default image and kernel for the machine");
    let store = home().join("store");
    let runtime = home().join("store.run");
    let banger = |words: &[&str]| {
        let mut command = Command::new(dist(dev).join("bin/banger"));
        command.args(words).env("BANGER_DATA_DIR", &store).env("BANGER_RUNTIME_DIR", &runtime);
        run(&mut command)
    };
    let pulled = banger(&["image", "pull", "debian-bookworm"])
        .and_then(|()| banger(&["kernel", "pull", "debian-cloud"]));
    banger(&["daemon", "stop"])?;
    pulled?;
    let staging = home().join("seed");
    let _ = std::fs::remove_dir_all(&staging);
    for part in ["images", "kernels"] {
        std::fs::create_dir_all(&staging).map_err(on_file("create", &staging))?;
        run(Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(store.join(part))
            .arg(&staging))?;
    }
    make_disk(&staging, &disk, SEED_SIZE)?;
    for dir in [&staging, &store, &runtime] {
        std::fs::remove_dir_all(dir).map_err(on_file("remove", dir))?;
    }
    Ok(disk)
}

fn copy(from: &Path, to: &Path) -> Result<(), ChoreFailure> {
    let parent = to.parent().expect("every part is in a directory");
    std::fs::create_dir_all(parent).map_err(on_file("create", parent))?;
    run(Command::new("cp").arg("-a").arg(from).arg(to))
}

/// An ext4 with these files. It gets its name when it is whole.
fn make_disk(files: &Path, disk: &Path, size: &str) -> Result<(), ChoreFailure> {
    let fresh = disk.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    run(Command::new("truncate").args(["-s", size]).arg(&fresh))?;
    let lazy = "lazy_itable_init=1,lazy_journal_init=1";
    let mut make = Command::new("mke2fs");
    make.env("PATH", search_path()).args(["-q", "-t", "ext4", "-E", lazy, "-d"]);
    run(make.arg(files).arg(&fresh))?;
    std::fs::rename(&fresh, disk).map_err(on_file("rename", &fresh))
}

/// An ordinary user's path often lacks the places of mke2fs.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
