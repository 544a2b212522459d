//! The guest's clock. The host sends the time at boot, and again after it slept itself.

use std::io;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

/// Sets the guest's clock to a time since the Unix epoch.
pub fn set(time_unix_ns: u64) -> io::Result<()> {
    let time = TimeSpec::from_duration(Duration::from_nanos(time_unix_ns));
    clock_settime(ClockId::CLOCK_REALTIME, time)?;
    Ok(())
}
