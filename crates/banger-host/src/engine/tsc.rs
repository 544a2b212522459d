//! The rate of the host's time stamp counter.
//!
//! Under tcg the guest's counter runs at the host's rate, and the guest's kernel must be told (see
//! [`crate::qemu::arguments`]). No file says it reliably, so it is measured against the monotonic
//! clock.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Long enough that the two readings' own time (under a microsecond) stays below one in 10,000.
const MEASURE: Duration = Duration::from_millis(10);

/// The rate in kHz, measured once per process.
#[must_use]
pub fn rate_khz() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(measure)
}

fn measure() -> u64 {
    let (start, first) = (Instant::now(), read());
    while start.elapsed() < MEASURE {
        std::hint::spin_loop();
    }
    let (elapsed, last) = (start.elapsed(), read());
    let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).max(1);
    let cycles = u128::from(last.wrapping_sub(first));
    u64::try_from(cycles * 1_000_000 / u128::from(nanoseconds)).unwrap_or(0)
}

fn read() -> u64 {
    // SAFETY: every x86-64 processor has rdtsc, and Linux lets user space execute it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (one, other) = (measure(), measure());
        let difference = one.abs_diff(other);
        assert!(difference * 100 < one, "{one} kHz and {other} kHz");
    }
}
