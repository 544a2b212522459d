//! Where buildah keeps its layers between builds, and what one build needs meanwhile.
//!
//! A build's own directory is locked while the build lives. Whoever begins one removes those of the
//! dead, under a lock of its own, so that nothing is taken for dead that is just being made.

use std::io;
use std::path::{Path, PathBuf};

use banger_host::command::{Cancel, Isolation, Tool};
use banger_host::files;
use banger_host::lock::OfdLock;
use banger_host::random;

const WORK: &str = "work-";
const LOCK: &str = "lock";

/// The directories of a build.
#[derive(Debug)]
pub struct Place {
    /// What stays for the next build.
    pub cache: PathBuf,
    /// What goes with this one.
    pub work: PathBuf,
    _alive: OfdLock,
}

/// The right to begin, and what was found then. While it is held no other build begins.
#[derive(Debug)]
pub struct Beginning {
    /// The new build's place.
    pub place: Place,
    /// Builds were killed, and none is under way now: what buildah has of them can go.
    pub has_remains: bool,
    _turn: OfdLock,
}

impl Place {
    /// Makes the place of a new build, and removes those of killed ones. Waits while another build
    /// does the same.
    ///
    /// # Errors
    /// Of the file system.
    pub fn begin(data_dir: &Path) -> io::Result<Beginning> {
        let cache = data_dir.join("cache").join("build");
        files::create_private_dir(&cache)?;
        let turn = OfdLock::acquire(&cache.join(LOCK))?;
        let (mut dead, mut living) = (0, 0);
        for entry in std::fs::read_dir(&cache)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(WORK) {
                continue;
            }
            match OfdLock::try_acquire(&entry.path().join(LOCK))? {
                Some(_dead) => {
                    remove(&entry.path());
                    dead += 1;
                }
                None => living += 1,
            }
        }
        let work = cache.join(format!("{WORK}{}", random::hex::<8>()));
        files::create_private_dir(&work)?;
        let alive = OfdLock::acquire(&work.join(LOCK))?;
        for dir in ["run", "tmp"] {
            files::create_private_dir(&work.join(dir))?;
        }
        let place = Self { cache, work, _alive: alive };
        Ok(Beginning { place, has_remains: dead > 0 && living == 0, _turn: turn })
    }

    /// Removes what the next build does not need.
    pub fn end(&self) {
        remove(&self.work);
    }
}

/// Removes a build's directory. What a step has made as another user only the root of the build's
/// namespace can remove. What stays is tried again by the next build.
fn remove(work: &Path) {
    if files::remove_tree(work).is_err() {
        let tool = Tool::new("rm").arg("-rf").arg("--").arg(work).isolation(Isolation::Root);
        let _ = tool.run(&Cancel::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work_dirs(cache: &Path) -> usize {
        let entries = std::fs::read_dir(cache).expect("readable");
        let names = entries.map(|entry| entry.expect("readable").file_name());
        names.filter(|name| name.to_string_lossy().starts_with(WORK)).count()
    }

    #[test]
    fn a_build_leaves_only_the_cache() {
        let data = tempfile::tempdir().expect("a temporary directory");
        let Beginning { place, has_remains, .. } = Place::begin(data.path()).expect("writable");
        assert!(!has_remains);
        assert!(place.work.join("tmp").is_dir());
        place.end();
        assert_eq!(work_dirs(&place.cache), 0);
    }

    #[test]
    fn the_next_build_tidies_up_after_a_killed_one() {
        let data = tempfile::tempdir().expect("a temporary directory");
        let living = Place::begin(data.path()).expect("writable").place;
        drop(Place::begin(data.path()).expect("writable").place);
        // One lives, so what buildah has may be its.
        let third = Place::begin(data.path()).expect("writable");
        assert!(!third.has_remains);
        assert_eq!(work_dirs(&living.cache), 2);
        drop((third, living));
        let last = Place::begin(data.path()).expect("writable");
        assert!(last.has_remains);
        assert_eq!(work_dirs(&last.place.cache), 1);
    }
}
