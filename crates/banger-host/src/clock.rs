//! The clock of the host.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since the Unix epoch. A host clock before 1970 counts as 1970.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// Nanoseconds since the Unix epoch; good until the year 2554.
#[must_use]
pub fn now_ns() -> u64 {
    u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX)
}

/// Milliseconds that this machine has run, its sleep included.
#[must_use]
pub fn elapsed_ms() -> u64 {
    let elapsed = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// The kernel's name for this run of the machine; another after every restart.
#[must_use]
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Microseconds that this machine has run, not counting sleep: one clock for all its processes.
#[must_use]
pub fn monotonic_us() -> u64 {
    u64::try_from(monotonic().as_micros()).unwrap_or(u64::MAX)
}

/// Time that this machine has run, not counting sleep.
#[must_use]
pub fn monotonic() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .unwrap_or_default()
}
