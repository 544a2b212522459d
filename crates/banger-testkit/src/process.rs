//! Processes of the programs under test.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long it runs at a time. Less than a tick of a guest's kernel (4 ms).
const TURN: Duration = Duration::from_micros(3_500);
/// How long it waits for its next turn. More than a guest's kernel takes to measure its timer
/// (100 ms).
const PAUSE: Duration = Duration::from_millis(110);

/// Lets a process run as little as on a host that is far too busy, until it has ended, or `bound` is over.
pub fn starve(pid: i32, bound: Duration) {
    let target = Pid::from_raw(pid);
    let end = Instant::now() + bound;
    while Instant::now() < end && !has_ended(pid) {
        std::thread::sleep(TURN);
        if kill(target, Signal::SIGSTOP).is_err() {
            return;
        }
        std::thread::sleep(PAUSE);
        let _ = kill(target, Signal::SIGCONT);
    }
}

/// Whether a process is gone, or a zombie all of whose threads are: as long as one ends, it has its
/// files and their locks.
#[must_use]
pub fn has_ended(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_zombie = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    is_zombie && threads <= 1
}
