//! Directories for work under way.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use banger_api::step;
use banger_host::command::{Cancel, Isolation, Tool};
use banger_host::files::{create_private_dir, remove_tree};
use banger_host::lock::{OfdLock, is_locked};
use banger_host::random;

use crate::error::LibraryError;
use crate::stage::pass;

/// A directory to work in. It is locked for as long as this value lives; what is still in it
/// afterwards is removed by [`WorkDir::remove`] or, if that never came, by whoever removes what was left.
#[derive(Debug)]
pub(crate) struct WorkDir {
    path: PathBuf,
    _lock: OfdLock,
}

impl WorkDir {
    pub(super) fn create(store: &Path) -> Result<Self, LibraryError> {
        // No directory without its lock is ever seen by somebody who removes leftovers.
        let beginning = store.join(".lock");
        let _beginning =
            OfdLock::acquire(&beginning).map_err(LibraryError::io("lock", &beginning))?;
        let path = store.join(format!("tmp-{}", random::hex::<8>()));
        let lock_path = lock_of(&path);
        let lock = OfdLock::try_acquire(&lock_path)
            .map_err(LibraryError::io("lock", &lock_path))?
            .expect("nobody else knows this name");
        create_private_dir(&path).map_err(LibraryError::io("create", &path))?;
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A new directory in it.
    pub(crate) fn subdir(&self, name: &str) -> Result<PathBuf, LibraryError> {
        let path = self.path.join(name);
        create_private_dir(&path).map_err(LibraryError::io("create", &path))?;
        Ok(path)
    }

    /// Remove it and what is in it.
    pub(crate) fn remove(self) -> Result<(), LibraryError> {
        pass(step::STORE_CLEAR)?;
        remove_work(&self.path)
    }
}

/// Remove the work of processes that are no more.
pub(super) fn remove_leftovers(store: &Path) -> Result<(), LibraryError> {
    let beginning = store.join(".lock");
    // Somebody begins work or cleans up at this moment: then the next opening will do.
    let Some(_beginning) =
        OfdLock::try_acquire(&beginning).map_err(LibraryError::io("lock", &beginning))?
    else {
        return Ok(());
    };
    for work in works(store)? {
        let lock = lock_of(&work);
        if !is_locked(&lock).map_err(LibraryError::io("read", &lock))? {
            remove_work(&work)?;
        }
    }
    Ok(())
}

/// Wait until others have let go of their work, and remove what is still there: a process that was killed
/// holds its locks until the kernel has taken them from it.
pub(super) fn outlast(store: &Path, others: &[PathBuf]) -> Result<(), LibraryError> {
    let beginning = store.join(".lock");
    // Whoever was seen between making a lock and taking it has taken it by now.
    drop(OfdLock::acquire(&beginning).map_err(LibraryError::io("lock", &beginning))?);
    others.iter().try_for_each(|work| {
        let lock = lock_of(work);
        let _lock = OfdLock::acquire(&lock).map_err(LibraryError::io("lock", &lock))?;
        remove_work(work)
    })
}

/// The directories of work under way, and of what was left of it.
pub(super) fn works(store: &Path) -> Result<BTreeSet<PathBuf>, LibraryError> {
    let mut works = BTreeSet::new();
    for entry in fs::read_dir(store).map_err(LibraryError::io("list", store))? {
        let path = entry.map_err(LibraryError::io("list", store))?.path();
        if path.file_name().unwrap_or_default().to_string_lossy().starts_with("tmp-") {
            works.insert(path.with_extension(""));
        }
    }
    Ok(works)
}

/// Remove a work directory, its lock last, so that it is never seen unlocked while it is in use.
fn remove_work(work: &Path) -> Result<(), LibraryError> {
    remove_any_tree(work)?;
    let lock = lock_of(work);
    match fs::remove_file(&lock) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LibraryError::io("remove", &lock)(error))
        }
        _ => Ok(()),
    }
}

fn lock_of(work: &Path) -> PathBuf {
    let mut name = work.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    work.with_file_name(name)
}

/// Remove a tree even if parts of it belong to subordinate ids, as root filesystems do that an
/// ordinary user built: those can only be removed by the root of a user namespace. A missing tree is
/// fine.
pub(crate) fn remove_any_tree(path: &Path) -> Result<(), LibraryError> {
    match remove_tree(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // Removing cannot be called off: half a tree is worth nothing.
            let tool = Tool::new("rm").arg("-rf").arg("--one-file-system").arg("--").arg(path);
            tool.isolation(Isolation::Root)
                .run(&Cancel::new())
                .map_err(|source| LibraryError::Remove { path: path.to_owned(), source })?;
            Ok(())
        }
        other => other.map_err(LibraryError::io("remove", path)),
    }
}
