//! Guests and disks that are saved: directories that get their name when all of it is there.
//!
//! While one is made it lies beside the templates, where the next daemon removes what this one leaves.
//! The last file that is written into it says what it is, with the digests of the others: a directory
//! without that is nothing, for after a power cut nobody knows what is in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_host::seal::{Seal, SealError};
use banger_host::{files, random};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::daemon::{Daemon, blocking, failed};
use crate::vm::end_unknown;

/// What the directory of one that is being made is called, followed by its name and something random.
const UNFINISHED: &str = "tmp-";
/// How long what runs in a directory that is removed may take to be gone.
const LAST_BREATH: Duration = Duration::from_secs(30);
/// Raised when manifests can no longer be read by older releases.
const VERSION: u32 = 1;
/// Where a manifest has its own digest.
const DIGEST: &str = "digest";

/// What is saved, and the digests of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest<T> {
    version: u32,
    /// What it is.
    pub what: T,
    seal: Seal,
}

impl<T: Serialize + DeserializeOwned> Manifest<T> {
    /// Makes the files of a directory durable, with their digests, and writes the manifest `name`. It
    /// takes as long as the disk does.
    ///
    /// # Errors
    /// Of the file system.
    pub fn seal(dir: &Path, name: &str, files: &[&str], what: T) -> io::Result<Self> {
        let seal = Seal::of(dir, files)?;
        files::sync_dir(dir)?;
        let manifest = Self { version: VERSION, what, seal };
        manifest.write(dir, name)?;
        Ok(manifest)
    }

    /// The manifest of a directory, if there is one that this release can read, and that is as it was
    /// written.
    #[must_use]
    pub fn read(dir: &Path, name: &str) -> Option<Self> {
        let json = std::fs::read(dir.join(name)).ok()?;
        let mut value: Value = serde_json::from_slice(&json).ok()?;
        let digest = value.as_object_mut()?.remove(DIGEST)?;
        let manifest: Self = serde_json::from_value(value.clone()).ok()?;
        (manifest.version == VERSION && digest == digest_of(&value)).then_some(manifest)
    }

    /// Makes sure that the files are what they were. Takes as long as their disk does where one was
    /// touched.
    ///
    /// # Errors
    /// [`SealError`] names the file.
    pub fn check(&mut self, dir: &Path, name: &str) -> Result<(), SealError> {
        if let Some(renewed) = self.seal.verify(dir)? {
            self.seal = renewed;
            // One that cannot be written is looked at again the next time.
            let _ = self.write(dir, name);
        }
        Ok(())
    }

    /// Writes it, with its own digest.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write(&self, dir: &Path, name: &str) -> io::Result<()> {
        let mut value = serde_json::to_value(self).map_err(io::Error::other)?;
        value[DIGEST] = digest_of(&value).into();
        let json = serde_json::to_vec_pretty(&value).map_err(io::Error::other)?;
        files::write_atomic(&dir.join(name), &json)
    }
}

/// Of a manifest without the digest, whose keys are in order.
fn digest_of(manifest: &Value) -> String {
    hex::encode(Sha256::digest(manifest.to_string()))
}

/// Leaves of a directory only the files of those names, for nobody to write any more.
///
/// # Errors
/// Of the file system.
pub fn keep_only(dir: &Path, kept: &[&str]) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let is_kept = path.file_name().is_some_and(|name| kept.iter().any(|kept| name == *kept));
        if !is_kept {
            match path.is_dir() {
                true => std::fs::remove_dir_all(&path)?,
                false => std::fs::remove_file(&path)?,
            }
            continue;
        }
        // The VMM that wrote it may have been another user.
        files::take(&path)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444))?;
    }
    Ok(())
}

/// A new name for the directory of something that is being made. The next daemon removes what is there.
pub fn unfinished_dir(daemon: &Daemon, what: &str) -> PathBuf {
    daemon.dirs.templates().join(format!("{UNFINISHED}{what}-{}", random::hex::<4>()))
}

/// Gives a directory the name of one that is being made, unless it has one.
///
/// # Errors
/// Of the file system.
pub fn set_aside(dir: PathBuf) -> io::Result<PathBuf> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.starts_with(UNFINISHED) {
        return Ok(dir);
    }
    let aside = dir.with_file_name(format!("{UNFINISHED}{name}-{}", random::hex::<4>()));
    std::fs::rename(&dir, &aside)?;
    Ok(aside)
}

/// Ends what runs in a directory, and removes it. What does not end keeps it: it is left to the next daemon.
pub async fn discard(daemon: &Arc<Daemon>, dir: PathBuf) {
    if timeout(LAST_BREATH, end_unknown(daemon, &dir)).await.is_err() {
        return tracing::warn!("what is in {} does not end, and stays", dir.display());
    }
    let removed = blocking(move || {
        files::remove_tree(&dir)
            .map_err(|error| failed(format!("cannot remove {}", dir.display()), &error))
    });
    if let Err(problem) = removed.await {
        tracing::warn!("{problem}");
    }
}

/// Gives a directory that is complete its name, in a directory that there is.
///
/// # Errors
/// Of the file system; `DirectoryNotEmpty` or `AlreadyExists` if the name is taken.
pub fn publish(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    to.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}
