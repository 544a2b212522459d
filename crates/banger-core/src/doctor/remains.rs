//! The doctor's judgement of what crashes, strangers and older releases left: what is provably ours
//! and of no use goes, what may hold somebody's data is set aside, all else stays.
//!
//! A name alone proves nothing. What proves that something is ours: it is in the data directory,
//! which only its owner may enter, and nobody holds the lock that everything alive of a VM holds; or,
//! for a process, it holds that lock itself.

use std::collections::BTreeSet;

use banger_api::system::{Leftover, Remedy};

use crate::id::Id;
use crate::size;

/// Something in or around the state directories that may be left over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remains {
    /// A process of this user that holds the lock of a VM.
    Process {
        /// Its id.
        pid: u32,
        /// Its name.
        program: String,
        /// The lock's path.
        lock: String,
        /// Name of the VM's directory.
        vm: String,
        /// Whether that directory was deleted.
        without_directory: bool,
    },
    /// A directory among those of the VMs.
    Directory {
        /// Its path.
        path: String,
        /// Its name.
        name: String,
        /// Whether something alive holds its lock.
        locked: bool,
        /// What is in it.
        contents: Contents,
        /// Host disk that it takes.
        bytes: u64,
    },
    /// What a daemon that starts clears up: a removal or a build that was interrupted.
    Interrupted {
        /// Its path.
        path: String,
    },
    /// A half-written file that no process writes any more.
    Temporary {
        /// Its path.
        path: String,
    },
    /// A socket that nobody listens on.
    Socket {
        /// Its path.
        path: String,
    },
    /// A directory that was set aside earlier.
    SetAside {
        /// Its path.
        path: String,
        /// Host disk that it takes.
        bytes: u64,
    },
}

/// What is in a directory among those of the VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Only what banger writes anew at every start.
    Replaceable,
    /// What a guest wrote.
    Disk,
    /// Something that banger did not put there.
    Foreign,
}

/// Which VMs there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownVms {
    /// Ids of all of them, those being removed included.
    Ids(BTreeSet<String>),
    /// The daemon cannot be asked.
    Unknown,
}

/// Judges what was found: what it is, why it is ours, and what becomes of it. What belongs to a VM
/// in the database is not left over, and not in the answer. With `discard`, disks go too.
#[must_use]
pub fn judge_remains(found: &[Remains], known: &KnownVms, discard: bool) -> Vec<Leftover> {
    found.iter().filter_map(|remains| judge(remains, known, discard)).collect()
}

fn judge(remains: &Remains, known: &KnownVms, discard: bool) -> Option<Leftover> {
    let leftover = |kind: &str, path: &str, why: String, remedy| Leftover {
        kind: kind.to_owned(),
        path: path.to_owned(),
        pid: None,
        why,
        remedy,
        outcome: None,
    };
    match remains {
        Remains::Process { pid, program, lock, vm, without_directory } => {
            let reason = match known {
                _ if *without_directory => "whose directory was deleted",
                KnownVms::Ids(ids) if !ids.contains(vm) => "which is no VM of the database",
                _ => return None,
            };
            let why = format!("{program} holds the lock of VM {vm}, {reason}");
            Some(Leftover { pid: Some(*pid), ..leftover("process", lock, why, Remedy::End) })
        }
        Remains::Directory { path, name, locked, contents, bytes } => {
            let KnownVms::Ids(ids) = known else { return None };
            if ids.contains(name) {
                return None;
            }
            let (why, remedy) = judge_directory(name, *locked, *contents, discard);
            let why = format!("{why}; takes {}", size::format(*bytes));
            Some(leftover("directory", path, why, remedy))
        }
        Remains::Interrupted { path } => {
            let why = "work that was interrupted, and that nobody has locked".to_owned();
            Some(leftover("interrupted", path, why, Remedy::RestartDaemon))
        }
        Remains::Temporary { path } => {
            let why = "half-written, and its writer is gone".to_owned();
            Some(leftover("temporary", path, why, Remedy::Remove))
        }
        Remains::Socket { path } => {
            let why = "nobody listens on it, and nobody holds its lock".to_owned();
            Some(leftover("socket", path, why, Remedy::Remove))
        }
        Remains::SetAside { path, bytes } => {
            let remedy = if discard { Remedy::Remove } else { Remedy::Keep };
            let why = format!(
                "was set aside, as no VM of the database had its disk; takes {}",
                size::format(*bytes)
            );
            Some(leftover("set-aside", path, why, remedy))
        }
    }
}

fn judge_directory(
    name: &str,
    locked: bool,
    contents: Contents,
    discard: bool,
) -> (String, Remedy) {
    if Id::parse(name).is_none() {
        let why = "banger gives no such names, so somebody else put it there".to_owned();
        return (why, Remedy::Keep);
    }
    let what = match contents {
        Contents::Replaceable => "holds no disk",
        Contents::Disk => "holds the disk of a VM",
        Contents::Foreign => "holds files that are not banger's",
    };
    let alive = if locked { "something of it is alive" } else { "nothing of it is alive" };
    let why = format!("no VM of the database has this id, {alive}; {what}");
    let remedy = match contents {
        Contents::Replaceable => Remedy::Remove,
        Contents::Disk if discard => Remedy::Remove,
        Contents::Disk | Contents::Foreign => Remedy::SetAside,
    };
    (why, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: &str = "0123456789ab";

    fn directory(name: &str, contents: Contents) -> Remains {
        let (path, name) = (format!("/d/vms/{name}"), name.to_owned());
        Remains::Directory { path, name, locked: false, contents, bytes: 1 << 20 }
    }

    fn process(without_directory: bool) -> Remains {
        Remains::Process {
            pid: 7,
            program: "banger-shim".into(),
            lock: format!("/d/vms/{VM}/lock"),
            vm: VM.into(),
            without_directory,
        }
    }

    fn known(ids: &[&str]) -> KnownVms {
        KnownVms::Ids(ids.iter().map(|id| (*id).to_owned()).collect())
    }

    #[test]
    fn what_is_of_no_vm_goes_and_what_may_be_data_is_set_aside() {
        let path = || "/d/x".to_owned();
        let none = known(&[]);
        let cases = [
            (directory(VM, Contents::Replaceable), &none, false, Some(Remedy::Remove)),
            (directory(VM, Contents::Disk), &none, false, Some(Remedy::SetAside)),
            (directory(VM, Contents::Disk), &none, true, Some(Remedy::Remove)),
            (directory(VM, Contents::Foreign), &none, true, Some(Remedy::SetAside)),
            (directory("my-notes", Contents::Replaceable), &none, true, Some(Remedy::Keep)),
            (directory(VM, Contents::Disk), &known(&[VM]), true, None),
            (directory(VM, Contents::Replaceable), &KnownVms::Unknown, true, None),
            (process(false), &none, false, Some(Remedy::End)),
            (process(false), &known(&[VM]), false, None),
            (process(false), &KnownVms::Unknown, true, None),
            (process(true), &KnownVms::Unknown, false, Some(Remedy::End)),
            (process(true), &known(&[VM]), false, Some(Remedy::End)),
            (Remains::Interrupted { path: path() }, &none, true, Some(Remedy::RestartDaemon)),
            (Remains::Temporary { path: path() }, &none, false, Some(Remedy::Remove)),
            (Remains::Socket { path: path() }, &none, false, Some(Remedy::Remove)),
            (Remains::SetAside { path: path(), bytes: 1 }, &none, false, Some(Remedy::Keep)),
            (Remains::SetAside { path: path(), bytes: 1 }, &none, true, Some(Remedy::Remove)),
        ];
        for (remains, known, discard, want) in cases {
            let judged = judge_remains(std::slice::from_ref(&remains), known, discard);
            let remedy = judged.first().map(|leftover| leftover.remedy);
            assert_eq!(remedy, want, "{remains:?}, {known:?}, discard {discard}");
            assert!(judged.iter().all(|leftover| !leftover.why.is_empty()), "says why");
        }
    }
}
