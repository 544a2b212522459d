//! Files where something of ours could be forgotten.

use std::fs;
use std::path::Path;

use super::{Observation, Scope, Thing};

/// What the kernel appends to the path of a file that is no more.
pub(super) const DELETED: &str = " (deleted)";
/// Places where other things are too; only what bears our names counts.
const SHARED_PLACES: [&str; 7] =
    ["/tmp", "/var/tmp", "/run", "/run/netns", "/dev/shm", "/var/lib", "/run/lock"];
/// What names of ours contain.
const OUR_NAMES: [&str; 2] = ["banger", "mmdebstrap"];
/// How deep the state directories are listed: `vms/ID/run/shim.sock` is four.
const DEPTH: u32 = 4;

pub(super) fn observe(scope: &Scope, observation: &mut Observation) {
    for place in SHARED_PLACES {
        for name in names_in(Path::new(place)) {
            let is_ours = OUR_NAMES.iter().any(|ours| name.contains(ours));
            // Whatever is there was put there by somebody like us.
            if is_ours || place == "/run/netns" {
                observation.add(Thing::File { path: format!("{place}/{name}") }, None);
            }
        }
    }
    for dir in &scope.dirs {
        walk(dir, DEPTH, observation);
    }
}

fn walk(dir: &Path, depth: u32, observation: &mut Observation) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path().to_string_lossy().into_owned();
        observation.add(Thing::File { path }, None);
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), depth - 1, observation);
        }
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
