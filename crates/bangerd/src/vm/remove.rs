//! Removing what a VM left: four steps, each of which can be repeated after a crash.
//!
//! 1. mark the row, so that the name is free and the removal is resumed whatever happens;
//! 2. rename the directory, so that it is no VM's any more;
//! 3. delete the row;
//! 4. delete the tree.
//!
//! Called only when nothing of the VM is alive.

use std::io;
use std::path::{Path, PathBuf};

use banger_api::Problem;
use banger_api::step;
use banger_core::id::Id;
use banger_host::files;

use crate::daemon::{Daemon, blocking, failed};

/// What the directory of a VM is renamed to, followed by its id.
const DELETING: &str = ".deleting-";

/// Removes a VM's row and files.
///
/// # Errors
/// Of the first step that fails; repeating goes on from there.
pub async fn remove_traces(daemon: &Daemon, id: &Id) -> Result<(), Problem> {
    let gate = &daemon.gate;
    let row = id.clone();
    gate.pass(step::REMOVE_MARK).await?;
    daemon.store(move |store| store.mark_deleting(&row)).await?;

    gate.pass(step::REMOVE_RENAME).await?;
    let (from, to) = (daemon.vm_dir(id), deleting_path(daemon, id));
    blocking({
        let to = to.clone();
        move || {
            set_aside(&from, &to).map_err(|error| failed("cannot set the VM's files aside", &error))
        }
    })
    .await?;

    gate.pass(step::REMOVE_ROW).await?;
    let row = id.clone();
    daemon.store(move |store| store.delete(&row)).await?;

    gate.pass(step::REMOVE_TREE).await?;
    blocking(move || {
        files::remove_tree(&to).map_err(|error| failed("cannot delete the VM's files", &error))
    })
    .await
}

fn deleting_path(daemon: &Daemon, id: &Id) -> PathBuf {
    daemon.dirs.vms().join(format!("{DELETING}{id}"))
}

/// Renames a directory. One that is missing was renamed by a former try.
fn set_aside(from: &Path, to: &Path) -> io::Result<()> {
    if !from.exists() {
        return Ok(());
    }
    files::remove_tree(to)?;
    std::fs::rename(from, to)?;
    to.parent().map_or(Ok(()), files::sync_dir)
}

/// Deletes the trees of VMs whose rows are gone, left by a daemon that ended in between. Returns
/// the directories that belong to no row and to no removal; those are left alone.
///
/// # Errors
/// If the directory cannot be read.
pub fn clear_leftovers(vms: &Path, known: &[Id]) -> io::Result<Vec<PathBuf>> {
    let mut strangers = Vec::new();
    let entries = match std::fs::read_dir(vms) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(strangers),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_known = |text: &str| known.iter().any(|id| id.as_str() == text);
        match name.strip_prefix(DELETING) {
            // Its row is still there: the removal is resumed with it.
            Some(id) if is_known(id) => {}
            Some(_) => clear(&entry.path()),
            None if is_known(&name) => {}
            None => strangers.push(entry.path()),
        }
    }
    Ok(strangers)
}

/// Deletes a tree that is no VM's any more. One that cannot be deleted is tried again by the next
/// daemon, and keeps nobody from anything.
fn clear(tree: &Path) {
    if let Err(error) = files::remove_tree(tree) {
        tracing::warn!(path = %tree.display(), "what is left of a VM cannot be deleted: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_go_and_strangers_stay() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let make = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.join("run")).expect("create");
            path
        };
        let known =
            [Id::parse("aaaaaaaaaaaa").expect("id"), Id::parse("bbbbbbbbbbbb").expect("id")];
        let kept = [make("aaaaaaaaaaaa"), make(".deleting-bbbbbbbbbbbb"), make("cccccccccccc")];
        let gone = make(".deleting-dddddddddddd");
        let strangers = clear_leftovers(dir.path(), &known).expect("clear");
        assert_eq!(strangers, [kept[2].clone()]);
        assert!(kept.iter().all(|path| path.exists()));
        assert!(!gone.exists());
        assert!(clear_leftovers(&dir.path().join("missing"), &known).expect("clear").is_empty());
    }
}
