//! Whether the kernel killed something for want of memory: a counter of the control group says so.
//!
//! The counter is of a whole group, which may hold more than one VM, so it is evidence only together
//! with a process of that group that was killed meanwhile.

use std::path::{Path, PathBuf};

/// Where the unified hierarchy is mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// The counters of a process's group and of the group above, as they were.
///
/// The group above is asked when the process's own is gone, which may happen with its last process;
/// its counter includes those below.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OomWatch {
    before: Vec<(PathBuf, u64)>,
}

impl OomWatch {
    /// Begins to watch the group of a process. Where there are no such groups nothing will show.
    #[must_use]
    pub fn of(pid: i32) -> Self {
        Self::from_table(&PathBuf::from(format!("/proc/{pid}/cgroup")))
    }

    /// Begins to watch the group of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self::from_table(Path::new("/proc/self/cgroup"))
    }

    fn from_table(table: &Path) -> Self {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        group(&text).map(|group| Self::at(Path::new(ROOT), group)).unwrap_or_default()
    }

    fn at(root: &Path, group: &str) -> Self {
        let own = root.join(group.trim_start_matches('/'));
        let before = own
            .ancestors()
            .take(2)
            .filter(|dir| dir.starts_with(root))
            // A group that does not count yet does so from nothing, once somebody limits it.
            .map(|dir| (dir.to_owned(), kills(dir).unwrap_or(0)))
            .collect();
        Self { before }
    }

    /// Whether the kernel has killed something there since.
    #[must_use]
    pub fn has_killed(&self) -> bool {
        let nearest = self.before.iter().find_map(|(dir, then)| Some((kills(dir)?, *then)));
        nearest.is_some_and(|(now, then)| now > then)
    }
}

/// The group in the unified hierarchy, of the text of `/proc/PID/cgroup`.
fn group(table: &str) -> Option<&str> {
    table.lines().find_map(|line| line.strip_prefix("0::"))
}

fn kills(dir: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(dir.join("memory.events")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, kills: u64) {
        std::fs::create_dir_all(dir).expect("create");
        let text = format!("low 0\nhigh 3\nmax 9\noom 2\noom_kill {kills}\noom_group_kill 0\n");
        std::fs::write(dir.join("memory.events"), text).expect("write");
    }

    #[test]
    fn the_group_is_the_unified_one() {
        assert_eq!(group("12:cpu:/x\n0::/user.slice/a.scope\n"), Some("/user.slice/a.scope"));
        assert_eq!(group("12:cpu:/x\n"), None);
    }

    #[test]
    fn a_kill_in_the_group_shows_and_one_beside_it_does_not() {
        let root = tempfile::tempdir().expect("temporary directory");
        let (above, own) = (root.path().join("above"), root.path().join("above/own"));
        write(&above, 5);
        write(&own, 1);
        let watch = OomWatch::at(root.path(), "/above/own");
        assert!(!watch.has_killed());
        write(&above, 6);
        assert!(!watch.has_killed(), "in a group beside ours");
        write(&own, 2);
        assert!(watch.has_killed());
        std::fs::remove_dir_all(&own).expect("remove");
        assert!(watch.has_killed(), "the group above knows when ours is gone");
    }

    #[test]
    fn a_group_that_counts_only_later_shows_its_first_kill() {
        let root = tempfile::tempdir().expect("temporary directory");
        let (above, own) = (root.path().join("above"), root.path().join("above/own"));
        std::fs::create_dir_all(&own).expect("create");
        let watch = OomWatch::at(root.path(), "/above/own");
        assert!(!watch.has_killed());
        write(&above, 1);
        assert!(watch.has_killed(), "only the group above counts");
        write(&own, 0);
        assert!(!watch.has_killed(), "it was another in the group above");
        write(&own, 1);
        assert!(watch.has_killed());
    }

    #[test]
    fn without_groups_nothing_shows() {
        let root = tempfile::tempdir().expect("temporary directory");
        assert!(!OomWatch::at(root.path(), "/nowhere/at/all").has_killed());
        assert!(!OomWatch::default().has_killed());
    }
}
