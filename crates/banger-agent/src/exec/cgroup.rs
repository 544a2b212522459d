//! What holds the processes of one command together, so that all of them can be killed at once,
//! whatever they did to their process groups and sessions.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::console;

/// Where the kernel shows cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Parent of all commands' cgroups.
const BASE: &str = "/sys/fs/cgroup/banger";
/// The agent's own, where it is not the first process.
const AGENT: &str = "agent";
/// How deep a command's own cgroups are removed after it.
const MAX_DEPTH: usize = 32;

/// Makes and removes the groups.
#[derive(Debug)]
pub struct Cgroups {
    /// None: groups hold a process and its descendants, for tests without cgroups.
    base: Option<PathBuf>,
    next: AtomicU64,
    /// An empty group for the next command.
    spare: Mutex<Option<Group>>,
    /// Groups whose command has ended and whose background processes may still run.
    retired: Mutex<Vec<PathBuf>>,
}

/// The group of one command.
#[derive(Debug)]
pub struct Group {
    cgroup: Option<(PathBuf, File)>,
}

impl Cgroups {
    /// Groups under the guest's cgroup file system.
    pub fn new() -> Self {
        Self::under(Some(PathBuf::from(BASE)))
    }

    /// Groups that are known by descent only, which a determined process escapes.
    #[cfg(test)]
    pub fn by_descent() -> Self {
        Self::under(None)
    }

    fn under(base: Option<PathBuf>) -> Self {
        Self { base, next: AtomicU64::new(1), spare: Mutex::default(), retired: Mutex::default() }
    }

    /// Puts the agent itself beside the groups of commands: an init that sorts the processes it finds
    /// leaves alone what is in a cgroup already.
    pub fn hold_agent(&self) -> io::Result<()> {
        let Some(base) = &self.base else { return Ok(()) };
        let dir = base.join(AGENT);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("cgroup.procs"), "0")
    }

    /// Makes an empty group ahead of the command that will need it. In an emulated guest that is a part of its
    /// start that can be saved with it.
    pub fn prepare(&self) -> io::Result<()> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.is_none() {
            *spare = Some(self.make()?);
        }
        Ok(())
    }

    /// An empty group.
    pub fn create(&self) -> io::Result<Group> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        spare.map_or_else(|| self.make(), Ok)
    }

    fn make(&self) -> io::Result<Group> {
        let Some(base) = &self.base else { return Ok(Group { cgroup: None }) };
        let dir = base.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir_all(&dir)?;
        let open = File::open(&dir)?;
        Ok(Group { cgroup: Some((dir, open)) })
    }

    /// Removes a group, now or as soon as its last process has ended.
    pub fn retire(&self, group: Group) {
        let Some((dir, _)) = group.cgroup else { return };
        if !remove(&dir) {
            self.retired.lock().unwrap_or_else(PoisonError::into_inner).push(dir);
        }
    }

    /// Tries again to remove retired groups. Called whenever processes have ended.
    pub fn sweep(&self) {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|dir| !remove(dir));
    }
}

impl Group {
    /// Its directory, which a process can be made in.
    pub fn dir(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup.as_ref().map(|(_, dir)| dir.as_fd())
    }

    /// Kills every process in the group, and what descends from its first process, if that still runs,
    /// wherever it went.
    ///
    /// A command leaves its group where it begins a login session, as `su -` does under systemd, which
    /// then gives the session a cgroup of its own.
    pub fn kill(&self, first: Option<i32>) {
        let descendants = first.map(descendants).unwrap_or_default();
        let mut cgroups: Vec<PathBuf> =
            descendants.iter().filter_map(|pid| session_of(*pid)).collect();
        cgroups.extend(self.cgroup.as_ref().map(|(dir, _)| dir.clone()));
        cgroups.sort();
        cgroups.dedup();
        for dir in cgroups {
            if let Err(error) = fs::write(dir.join("cgroup.kill"), "1") {
                console::say(&format!("the cgroup {} was not killed: {error}", dir.display()));
            }
        }
        for pid in descendants {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Removes a cgroup and those that its processes made in it; true once it is gone.
fn remove(dir: &Path) -> bool {
    let removed = |result: io::Result<()>| match result {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    removed(fs::remove_dir(dir)) || {
        remove_inner(dir, MAX_DEPTH);
        removed(fs::remove_dir(dir))
    }
}

fn remove_inner(dir: &Path, depth: usize) {
    let Some(depth) = depth.checked_sub(1) else { return };
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_inner(&entry.path(), depth);
        let _ = fs::remove_dir(entry.path());
    }
}

/// A process and what descends from it, as far as `/proc` shows it.
fn descendants(first: i32) -> Vec<i32> {
    let all = crate::processes::all();
    let mut found = vec![first];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(all.iter().filter(|it| it.parent == parent).map(|it| it.pid));
        next += 1;
    }
    found
}

/// The cgroup of the login session that a process is in.
fn session_of(pid: i32) -> Option<PathBuf> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    table.lines().find_map(session_in).map(|path| Path::new(CGROUPS).join(path))
}

/// The path of a login session's cgroup in a line of `/proc/PID/cgroup`.
fn session_in(line: &str) -> Option<&str> {
    let path = line.strip_prefix("0::/")?;
    let mut end = 0;
    for name in path.split('/') {
        end += name.len();
        if name.starts_with("session-") && name.ends_with(".scope") {
            return path.get(..end);
        }
        end += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_sessions_are_known_by_their_names() {
        let cases = [
            (
                "0::/user.slice/user-0.slice/session-c1.scope",
                Some("user.slice/user-0.slice/session-c1.scope"),
            ),
            ("0::/user.slice/session-2.scope/inner", Some("user.slice/session-2.scope")),
            ("0::/banger/3", None),
            ("0::/", None),
            ("1:name=systemd:/session-1.scope", None),
            ("0::/init.scope", None),
        ];
        for (line, want) in cases {
            assert_eq!(session_in(line), want, "{line}");
        }
    }

    #[test]
    fn a_group_that_was_prepared_is_taken_once() {
        let dir = tempfile::tempdir().expect("a directory");
        for number in ["1", "2"] {
            fs::create_dir(dir.path().join(number)).expect("a group");
        }
        let cgroups = Cgroups::under(Some(dir.path().to_owned()));
        cgroups.prepare().expect("prepared");
        cgroups.prepare().expect("it is there");
        let names = [(); 2].map(|()| {
            let (path, _) = cgroups.create().expect("a group").cgroup.expect("with a directory");
            path.file_name().expect("a name").to_owned()
        });
        assert_eq!(names, ["1", "2"]);
    }

    #[test]
    fn a_retired_group_goes_when_it_is_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        let group = dir.path().join("1");
        fs::create_dir_all(group.join("inner/most")).expect("a group");
        fs::write(group.join("inner/busy"), "").expect("a process");
        let cgroups = Cgroups::under(Some(dir.path().to_owned()));
        let open = File::open(&group).expect("it is there");
        cgroups.retire(Group { cgroup: Some((group.clone(), open)) });
        assert!(group.exists());
        fs::remove_file(group.join("inner/busy")).expect("ended");
        cgroups.sweep();
        assert!(!group.exists());
        assert!(cgroups.retired.lock().expect("no panics").is_empty());
    }
}
