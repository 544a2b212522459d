//! Where buildah keeps its layers between builds, and what one build needs meanwhile.
//!
//! A build's own directory is locked while the build lives. Whoever begins one removes those of the
//! dead, under a lock of its own, so that nothing is taken for dead that is just being made.

use std::io;
use std::os::unix::fs::MetadataExt;
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
    /// Who builds.
    pub uid: u32,
    _alive: OfdLock,
}

/// The right to begin, and what was found then. While it is held no other build begins.
#[derive(Debug)]
pub struct Beginning {
    /// The new build's place.
    pub place: Place,
    /// No other build is under way, so what buildah has of builds that were given up can go.
    pub is_alone: bool,
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
        let mut is_alone = true;
        for entry in std::fs::read_dir(&cache)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(WORK) {
                continue;
            }
            match OfdLock::try_acquire(&entry.path().join(LOCK))? {
                Some(_dead) => remove(&entry.path()),
                None => is_alone = false,
            }
        }
        let work = cache.join(format!("{WORK}{}", random::hex::<8>()));
        files::create_private_dir(&work)?;
        let alive = OfdLock::acquire(&work.join(LOCK))?;
        for dir in ["data", "run", "tmp"] {
            files::create_private_dir(&work.join(dir))?;
        }
        let uid = std::fs::metadata(&work)?.uid();
        let place = Self { cache, work, uid, _alive: alive };
        Ok(Beginning { place, is_alone, _turn: turn })
    }

    /// Removes what the next build does not need.
    pub fn end(&self) {
        remove(&self.work);
        if self.uid != 0 {
            remove_litter(self.uid);
        }
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

/// Removes the empty directories that buildah makes for every step that runs something, before it
/// reads where it should. If others use them they are not empty.
fn remove_litter(uid: u32) {
    for (dir, below) in [("podman-run", "libpod"), ("containers-user", "containers")] {
        let dir = PathBuf::from(format!("/tmp/{dir}-{uid}"));
        let _ = std::fs::remove_dir(dir.join(below)).and_then(|()| std::fs::remove_dir(&dir));
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
        let Beginning { place, is_alone, .. } = Place::begin(data.path()).expect("writable");
        assert!(is_alone);
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
        assert!(!third.is_alone);
        assert_eq!(work_dirs(&living.cache), 2);
        drop((third, living));
        let last = Place::begin(data.path()).expect("writable");
        assert!(last.is_alone);
        assert_eq!(work_dirs(&last.place.cache), 1);
    }
}
