//! The directory of a template, and what says whether it can be used.
//!
//! `template.json` is written last, when everything else is durable and has its digest. A directory
//! without it is used by the daemon that made it and by no other: after a power cut nobody knows what is
//! in it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use banger_api::shim::{COW_FILE, DEVICES_FILE, MEMORY_FILE};
use banger_api::template::Template;
use banger_host::seal::SealError;
use banger_host::{clock, files};

use super::Key;
use crate::saved::Manifest;

/// What a template is, beside its files.
pub(super) const MANIFEST: &str = "template.json";
/// The files that are sealed.
const SEALED: [&str; 3] = [MEMORY_FILE, DEVICES_FILE, COW_FILE];
/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// It is not sealed, or by another release.
    #[error("it was not finished")]
    Unfinished,
    /// It is damaged.
    #[error(transparent)]
    Damaged(#[from] SealError),
}

/// Makes sure that the sealed template in `dir` is what it was, and notes that it is used.
pub(super) fn check(dir: &Path, key: &Key) -> Result<(), Unusable> {
    let mut manifest = read(dir).filter(|it| it.what.id == key.as_str());
    manifest.as_mut().ok_or(Unusable::Unfinished)?.check(dir, MANIFEST)?;
    let _ = note_use(dir);
    Ok(())
}

fn note_use(dir: &Path) -> io::Result<()> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(clock::now_ms());
    File::open(dir.join(MANIFEST))?.set_modified(now)
}

/// Makes a template durable, with digests of what is in it. It takes as long as the disk does.
pub(super) fn seal(dir: &Path, mut template: Template) -> io::Result<()> {
    template.allocated_bytes = files::allocated_bytes(dir)?;
    Manifest::seal(dir, MANIFEST, &SEALED, template).map(drop)
}

fn read(dir: &Path) -> Option<Manifest<Template>> {
    Manifest::read(dir, MANIFEST)
}

/// A template on the shelf.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Its directory.
    pub(super) dir: PathBuf,
    /// What it is; None if it is not sealed.
    pub(super) template: Option<Template>,
}

/// Everything on the shelf, whatever it is, the one used longest ago first.
pub(super) fn entries(shelf: &Path) -> io::Result<Vec<Entry>> {
    let found = match std::fs::read_dir(shelf) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut entries = Vec::new();
    for entry in found {
        let dir = entry?.path();
        let template = read(&dir).map(|manifest| Template {
            used_at_ms: used_at_ms(&dir).unwrap_or(manifest.what.created_at_ms),
            ..manifest.what
        });
        entries.push(Entry { dir, template });
    }
    entries.sort_by_key(|entry| entry.template.as_ref().map_or(0, |it| it.used_at_ms));
    Ok(entries)
}

fn used_at_ms(dir: &Path) -> Option<u64> {
    let modified = std::fs::metadata(dir.join(MANIFEST)).ok()?.modified().ok()?;
    let since = modified.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}
