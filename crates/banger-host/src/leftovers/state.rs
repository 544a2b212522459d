//! What crashes and strangers left in and around one user's state directories, and how it goes.
//!
//! Looking needs no daemon and changes nothing. What is removed is looked at again right before, with
//! its lock held where it has one.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use banger_api::shim::{
    CONSOLE_FILE, COW_FILE, LAUNCH_FILE, LOCK_FILE, MAIN_LOG_FILE, RUN_DIR, SHIM_LOG_FILE,
    STATUS_FILE, VMM_LOG_FILE,
};
use banger_core::doctor::{Contents, Remains};
use nix::unistd::{Pid, geteuid};

use super::paths::DELETED;
use super::processes::{self, Seen};
use crate::files;
use crate::lock::{OfdLock, is_locked};
use crate::paths::StateDirs;

/// Directory in the data directory for what may be somebody's and is no VM's.
pub const SET_ASIDE: &str = "set-aside";
/// Files that are written anew at every start of a VM, or tell of its last.
const REPLACEABLE: [&str; 8] = [
    LOCK_FILE,
    LAUNCH_FILE,
    STATUS_FILE,
    CONSOLE_FILE,
    MAIN_LOG_FILE,
    SHIM_LOG_FILE,
    VMM_LOG_FILE,
    RUN_DIR,
];
/// Disks in a VM's directory.
const DISKS: [&str; 2] = [COW_FILE, "work.ext4"];
/// How long a half-written file must have been left alone. Writing one takes a moment.
const ABANDONED: Duration = Duration::from_secs(600);

/// Everything in and around the state directories that may be left over. What is in use is judged by
/// who knows which VMs there are.
#[must_use]
pub fn find(dirs: &StateDirs) -> Vec<Remains> {
    let mut found: Vec<Remains> = holders_of_vm_locks(&dirs.vms()).map(Remains::from).collect();
    for dir in entries(&dirs.vms()) {
        found.extend(vm_directory(&dir));
    }
    for store in [dirs.images(), dirs.kernels(), dirs.data.join("blobs")] {
        found.extend(entries(&store).into_iter().filter_map(|path| interrupted(&path)));
    }
    for dir in [dirs.data.clone(), dirs.cache(), dirs.images(), dirs.kernels()] {
        found.extend(abandoned(&dir));
    }
    found.extend(stale_socket(&dirs.api_socket(), &dirs.daemon_lock()));
    found.extend(entries(&dirs.data.join(SET_ASIDE)).into_iter().map(|path| Remains::SetAside {
        bytes: files::allocated_bytes(&path).unwrap_or(0),
        path: text(&path),
    }));
    found
}

/// Ends a process, if it still holds the lock of a VM below `dirs`. Says whether there was one.
///
/// # Errors
/// Of the kernel.
pub fn end(dirs: &StateDirs, pid: u32) -> io::Result<bool> {
    let id = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let pidfd = match crate::process::pidfd_open(Pid::from_raw(id)) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
        other => other?,
    };
    // The descriptor is the process for good; that it is still the one that was found is looked up
    // after it was opened.
    let is_it = holders_of_vm_locks(&dirs.vms()).any(|holder| holder.pid == pid);
    if is_it { crate::process::pidfd_signal(&pidfd, libc::SIGKILL) } else { Ok(false) }
}

/// Moves the directory of no VM to where nobody takes it for one's, unless something alive holds its
/// lock. Says where it is.
///
/// # Errors
/// `WouldBlock` if something holds its lock; of the file system.
pub fn set_aside(dirs: &StateDirs, path: &Path) -> io::Result<PathBuf> {
    let _lock = lock_unused(path)?;
    let place = dirs.data.join(SET_ASIDE);
    files::create_private_dir(&place)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    let names = std::iter::once(name.clone()).chain((2..).map(|n| format!("{name}-{n}")));
    let free = names.map(|name| place.join(name)).find(|to| fs::symlink_metadata(to).is_err());
    let to = free.ok_or(io::ErrorKind::AlreadyExists)?;
    fs::rename(path, &to)?;
    files::sync_dir(&place)?;
    path.parent().map_or(Ok(()), files::sync_dir)?;
    Ok(to)
}

/// Removes what was found. What is gone already is fine.
///
/// # Errors
/// `WouldBlock` if something holds its lock; `InvalidInput` if it is not below the state directories;
/// of the file system.
pub fn remove(dirs: &StateDirs, path: &Path) -> io::Result<()> {
    if !(path.starts_with(&dirs.data) || path.starts_with(&dirs.runtime)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => {
            let _lock = lock_unused(path)?;
            files::remove_tree(path)
        }
        Ok(_) => {
            // The daemon that began meanwhile has put its own socket there.
            let _lock = if path == dirs.api_socket() {
                Some(OfdLock::try_acquire(&dirs.daemon_lock())?.ok_or(io::ErrorKind::WouldBlock)?)
            } else {
                None
            };
            fs::remove_file(path)
        }
    }
}

/// The lock of a directory that nothing alive may hold; None if it has none.
fn lock_unused(dir: &Path) -> io::Result<Option<OfdLock>> {
    let path = dir.join(LOCK_FILE);
    if fs::symlink_metadata(&path).is_err() {
        return Ok(None);
    }
    match OfdLock::try_acquire(&path)? {
        Some(lock) => Ok(Some(lock)),
        None => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Processes of this user that hold `file`'s lock, with their command lines.
#[must_use]
pub fn holders_of_lock(file: &Path) -> Vec<super::Holder> {
    with_lock(file, |_| true).map(|process| process.holder()).collect()
}

/// Ids of the processes of this user that run a program of that name and hold `file`'s lock.
pub(crate) fn programs_with_lock(name: &str, file: &Path) -> Vec<i32> {
    with_lock(file, |process| process.name == name).map(|process| process.pid).collect()
}

fn with_lock(file: &Path, wanted: impl Fn(&Seen) -> bool) -> impl Iterator<Item = Seen> {
    let holds = move |process: &Seen| {
        let mut files = process.open_files().into_iter();
        files.any(|open| open.path == file && !process.locks_on(&open.number).is_empty())
    };
    processes::all().filter(move |seen| wanted(seen) && is_mine(&seen.proc) && holds(seen))
}

struct LockHolder {
    pid: u32,
    program: String,
    lock: String,
    vm: String,
    without_directory: bool,
}

impl From<LockHolder> for Remains {
    fn from(holder: LockHolder) -> Self {
        let LockHolder { pid, program, lock, vm, without_directory } = holder;
        Self::Process { pid, program, lock, vm, without_directory }
    }
}

/// Processes of this user that hold the lock of a directory below `vms`, deleted ones included.
fn holders_of_vm_locks(vms: &Path) -> impl Iterator<Item = LockHolder> {
    processes::all().filter(|process| is_mine(&process.proc)).filter_map(move |process| {
        for file in process.open_files() {
            let path = file.path.to_string_lossy();
            let lock = path.strip_suffix(DELETED).unwrap_or(&path);
            let Some((vm, LOCK_FILE)) = Path::new(lock)
                .strip_prefix(vms)
                .ok()
                .and_then(Path::to_str)
                .and_then(|rest| rest.split_once('/'))
            else {
                continue;
            };
            // Whoever only reads the file holds no lock.
            if process.locks_on(&file.number).is_empty() {
                continue;
            }
            return Some(LockHolder {
                pid: process.pid.unsigned_abs(),
                program: process.name.clone(),
                lock: lock.to_owned(),
                vm: vm.strip_prefix(".deleting-").unwrap_or(vm).to_owned(),
                without_directory: path.ends_with(DELETED),
            });
        }
        None
    })
}

fn is_mine(proc: &Path) -> bool {
    fs::metadata(proc).is_ok_and(|found| found.uid() == geteuid().as_raw())
}

fn vm_directory(path: &Path) -> Vec<Remains> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let lock = path.join(LOCK_FILE);
    // What cannot be told is taken for alive.
    let locked = is_locked(&lock).unwrap_or(true);
    if name.starts_with(".deleting-") {
        return vec![Remains::Interrupted { path: text(path) }];
    }
    let mut found = vec![Remains::Directory {
        path: text(path),
        locked,
        contents: contents(path),
        bytes: files::allocated_bytes(path).unwrap_or(0),
        name,
    }];
    // Its sockets stay from its last run, and its next replaces them.
    if !locked {
        found.extend(abandoned(path));
    }
    found
}

fn contents(dir: &Path) -> Contents {
    let mut contents = Contents::Replaceable;
    for path in entries(dir) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = name.strip_suffix(".tmp").unwrap_or(&name);
        let stem = stem.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('.');
        if DISKS.contains(&name.as_str()) {
            contents = Contents::Disk;
        } else if !REPLACEABLE.contains(&stem) {
            return Contents::Foreign;
        }
    }
    contents
}

/// Work of a pull or a build, if nobody is at it.
fn interrupted(path: &Path) -> Option<Remains> {
    let name = path.file_name()?.to_str()?;
    if !name.starts_with("tmp-") || name.ends_with(".lock") {
        return None;
    }
    let beside = path.with_file_name(format!("{name}.lock"));
    let locked = is_locked(path).unwrap_or(false) || is_locked(&beside).unwrap_or(true);
    (!locked).then(|| Remains::Interrupted { path: text(path) })
}

/// Half-written files that nobody has touched for a while.
fn abandoned(dir: &Path) -> Vec<Remains> {
    let is_old = |path: &Path| {
        let written = fs::symlink_metadata(path).and_then(|found| found.modified());
        written.is_ok_and(|at| age(at) > ABANDONED)
    };
    let files = entries(dir).into_iter();
    files
        .filter(|path| path.extension().is_some_and(|end| end == "tmp") && is_old(path))
        .map(|path| Remains::Temporary { path: text(&path) })
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "ages of files are told by the clock they have")]
fn age(at: SystemTime) -> Duration {
    SystemTime::now().duration_since(at).unwrap_or_default()
}

fn stale_socket(path: &Path, lock: &Path) -> Option<Remains> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let stale = is_socket && !is_locked(lock).unwrap_or(true);
    stale.then(|| Remains::Socket { path: text(path) })
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
