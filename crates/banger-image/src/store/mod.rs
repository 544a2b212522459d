//! Directories that are either whole or not there.
//!
//! A [`Store`] holds things of one kind, each in a directory named by its digest that never changes
//! once it is there, and names, which are links to digests:
//!
//! ```text
//! sha256-<hex>/…      a published thing
//! by-name/<name>      link to the version in use; a `/` of the name is written `%2F`
//! tmp-<random>/…      work under way, or what a killed process left of it
//! tmp-<random>.lock   locked while the work is under way
//! .lock               locked while work begins and while leftovers are removed
//! pull-<name>.lock    locked while that name is being made
//! ```
//!
//! Everything becomes visible by rename, after it was written to the disk. So any process may be
//! killed at any time: a reader sees the old state or the new one, and [`Store::open`] removes what
//! nobody works on any more.

#[cfg(test)]
pub(crate) mod tests;
mod work;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_api::step;
use banger_host::command::Cancel;
use banger_host::files::{create_private_dir, sync_dir};
use banger_host::lock::OfdLock;
use banger_host::random;

use crate::error::{LibraryError, PullError};
use crate::stage::pass;
pub(crate) use work::{WorkDir, remove_any_tree};

/// What stands for a `/` in the file of a name. No name has a `%`.
const SLASH: &str = "%2F";
/// Longest file name; what is put around a name of a lock fits too.
const MAX_FILE_NAME: usize = 240;
/// How often a pull that waits for another one looks whether it is done.
const LOOK: Duration = Duration::from_millis(100);

/// Things of one kind on disk.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: PathBuf,
    /// Work of others that was under way when this was opened.
    others: Arc<[PathBuf]>,
}

impl Store {
    /// Open the store in `dir`, making it if it is not there, and remove what killed processes left.
    pub(crate) fn open(dir: &Path) -> Result<Self, LibraryError> {
        let mut store = Self { dir: dir.to_owned(), others: Arc::default() };
        create_private_dir(&store.names_dir()).map_err(LibraryError::io("create", dir))?;
        work::remove_leftovers(&store.dir)?;
        store.others = work::works(&store.dir)?.into_iter().collect();
        Ok(store)
    }

    /// Wait until whoever worked here when this was opened is done, or dead, and remove what is still there.
    pub(crate) fn outlast_others(&self) -> Result<(), LibraryError> {
        work::outlast(&self.dir, &self.others)
    }

    fn names_dir(&self) -> PathBuf {
        self.dir.join("by-name")
    }

    /// The directory that holds it all.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of a digest, `sha256:<64 hex>`; None if that is no digest.
    pub(crate) fn path_of(&self, digest: &str) -> Option<PathBuf> {
        let hex = digest.strip_prefix("sha256:")?;
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        (hex.len() == 64 && hex.chars().all(is_hex)).then(|| self.dir.join(format!("sha256-{hex}")))
    }

    /// The digests of all published things, sorted.
    pub(crate) fn digests(&self) -> Result<Vec<String>, LibraryError> {
        let entries = fs::read_dir(&self.dir).map_err(LibraryError::io("list", &self.dir))?;
        let mut digests = Vec::new();
        for entry in entries {
            let entry = entry.map_err(LibraryError::io("list", &self.dir))?;
            let name = entry.file_name().to_string_lossy().replacen('-', ":", 1);
            if self.path_of(&name).is_some() {
                digests.push(name);
            }
        }
        digests.sort();
        Ok(digests)
    }

    /// The digest that a name stands for; None if that cannot be told either.
    pub(crate) fn digest_of(&self, name: &str) -> Option<String> {
        self.lookup(name).ok().flatten()
    }

    /// The digest that a name stands for. That it cannot be read is not the same as that there is
    /// none.
    pub(crate) fn lookup(&self, name: &str) -> Result<Option<String>, LibraryError> {
        let Some(file) = file_name(name) else { return Ok(None) };
        let link = self.names_dir().join(file);
        let target = match fs::read_link(&link) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LibraryError::io("read", &link)(error)),
        };
        let digest = target.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let digest = digest.replacen('-', ":", 1);
        let Some(path) = self.path_of(&digest) else { return Ok(None) };
        match fs::metadata(&path) {
            Ok(meta) => Ok(meta.is_dir().then_some(digest)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LibraryError::io("read", &path)(error)),
        }
    }

    /// Begin work that will be published.
    pub(crate) fn begin(&self) -> Result<WorkDir, LibraryError> {
        pass(step::STORE_BEGIN)?;
        WorkDir::create(&self.dir)
    }

    /// Wait until no other process makes `name`, and keep others from making it.
    pub(crate) fn lock_name(
        &self,
        name: &str,
        cancel: &Cancel,
        on_wait: &mut dyn FnMut(),
    ) -> Result<OfdLock, PullError> {
        let path = self.dir.join(format!("pull-{}.lock", name.replace('/', SLASH)));
        let mut told = false;
        loop {
            match OfdLock::try_acquire(&path).map_err(PullError::io("lock", &path))? {
                Some(lock) => return Ok(lock),
                None if cancel.is_cancelled() => return Err(PullError::Cancelled),
                None => {}
            }
            if !told {
                on_wait();
                told = true;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Make the finished directory `made` visible as `digest`, read-only. If that exists, it is as good.
    pub(crate) fn publish(&self, made: &Path, digest: &str) -> Result<(), LibraryError> {
        let target = self.path_of(digest).expect("digests are made by this crate");
        pass(step::STORE_SEAL)?;
        seal_tree(made).map_err(LibraryError::io("write", made))?;
        pass(step::STORE_PUBLISH)?;
        match fs::rename(made, &target) {
            Err(error) if is_taken(&error) => Ok(()),
            Err(error) => Err(LibraryError::io("publish", &target)(error)),
            Ok(()) => sync_dir(&self.dir).map_err(LibraryError::io("write", &self.dir)),
        }
    }

    /// Make `name` stand for `digest`.
    pub(crate) fn set_name(&self, name: &str, digest: &str) -> Result<(), LibraryError> {
        pass(step::STORE_NAME)?;
        let names = self.names_dir();
        let file =
            file_name(name).ok_or_else(|| LibraryError::BadName { name: name.to_owned() })?;
        let link = names.join(file);
        // Nobody else has this name for it, so that two processes cannot spoil each other's link.
        let temporary = names.join(format!(".{}", random::hex::<12>()));
        let target = format!("../{}", digest.replacen(':', "-", 1));
        symlink(target, &temporary)
            .and_then(|()| fs::rename(&temporary, &link))
            .and_then(|()| sync_dir(&names))
            .map_err(LibraryError::io("write", &link))
    }

    /// Forget a published thing: its names first, then, at once, the whole of it.
    pub(crate) fn remove(&self, digest: &str) -> Result<(), LibraryError> {
        self.remove_names_of(digest)?;
        // Without a lock whoever opens the store now may help removing. And a full disk, the best
        // of reasons to remove something, has no room for a new file.
        let gone = self.dir.join(format!("tmp-{}", random::hex::<8>()));
        pass(step::STORE_SET_ASIDE)?;
        self.move_away(digest, &gone)?;
        pass(step::STORE_DELETE)?;
        remove_any_tree(&gone)
    }

    /// Move a published thing out of sight, to `target` in a work directory.
    pub(crate) fn move_away(&self, digest: &str, target: &Path) -> Result<(), LibraryError> {
        let Some(path) = self.path_of(digest) else { return Ok(()) };
        match fs::rename(&path, target) {
            Ok(()) => sync_dir(&self.dir).map_err(LibraryError::io("write", &self.dir)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(LibraryError::io("remove", &path)(error)),
        }
    }

    /// All names and what they stand for, in the order of the names.
    pub(crate) fn names(&self) -> Result<BTreeMap<String, String>, LibraryError> {
        let dir = self.names_dir();
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(LibraryError::io("list", &dir))? {
            let entry = entry.map_err(LibraryError::io("list", &dir))?;
            let name = entry.file_name().to_string_lossy().replace(SLASH, "/");
            if let Some(digest) = self.digest_of(&name) {
                names.insert(name, digest);
            }
        }
        Ok(names)
    }

    /// Forget a name; what it stood for stays.
    pub(crate) fn remove_name(&self, name: &str) -> Result<(), LibraryError> {
        pass(step::STORE_UNNAME)?;
        let dir = self.names_dir();
        let Some(file) = file_name(name) else { return Ok(()) };
        let link = dir.join(file);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LibraryError::io("remove", &link)(error))
            }
            _ => sync_dir(&dir).map_err(LibraryError::io("write", &dir)),
        }
    }

    fn remove_names_of(&self, digest: &str) -> Result<(), LibraryError> {
        for (name, stands_for) in self.names()? {
            if stands_for == digest {
                self.remove_name(&name)?;
            }
        }
        Ok(())
    }
}

/// The file of a name; None if it would leave its directory, or has no room in it.
fn file_name(name: &str) -> Option<String> {
    let file = name.replace('/', SLASH);
    let fits = !file.is_empty() && file.len() <= MAX_FILE_NAME;
    (fits && !file.starts_with('.') && !file.contains('\0')).then_some(file)
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

/// Make all files below a directory read-only, and write it all to the disk.
fn seal_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            seal_tree(&path)?;
        } else {
            // For everybody: the directories above are private, and the VMM is another user when
            // banger is root.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o444))?;
            fs::File::open(&path)?.sync_all()?;
        }
    }
    sync_dir(dir)
}
