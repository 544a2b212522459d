//! When a VM with a time to live goes.
//!
//! The moment is written down as a time of day, so that it is the same after a restart of the host.
//! A running daemon counts the time that passes from when it first saw the VM, with a clock that
//! nobody sets: the sleep of the host counts, a clock that is set forward or back does not.

/// The clocks of the host at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// Time of day, in milliseconds since the Unix epoch. Somebody may set it.
    pub real_ms: u64,
    /// Since the host was started, its sleep included. Nobody sets it.
    pub elapsed_ms: u64,
}

/// The moment at which a VM goes, on the clock that nobody sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    elapsed_ms: u64,
}

impl Deadline {
    /// The deadline of a VM that expires at `expires_at_ms`, a time of day, first seen now.
    #[must_use]
    pub fn new(expires_at_ms: u64, now: Clocks) -> Self {
        let left_ms = expires_at_ms.saturating_sub(now.real_ms);
        Self { elapsed_ms: now.elapsed_ms.saturating_add(left_ms) }
    }

    /// How long until then; zero when it has passed.
    #[must_use]
    pub fn left_ms(self, now: Clocks) -> u64 {
        self.elapsed_ms.saturating_sub(now.elapsed_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(real_s: u64, elapsed_s: u64) -> Clocks {
        Clocks { real_ms: real_s * 1000, elapsed_ms: elapsed_s * 1000 }
    }

    #[test]
    fn time_that_passes_counts_and_time_that_is_set_does_not() {
        let deadline = Deadline::new(1_060_000, at(1_000, 50));
        let table = [
            ("at once", at(1_000, 50), 60_000),
            ("a little later", at(1_010, 60), 50_000),
            ("the clock was set forward by a year", at(31_536_000, 60), 50_000),
            ("the clock was set back", at(3, 60), 50_000),
            ("the host slept for a minute", at(1_060, 110), 0),
            ("long ago", at(9_999, 9_999), 0),
        ];
        for (what, now, left_ms) in table {
            assert_eq!(deadline.left_ms(now), left_ms, "{what}");
        }
    }

    #[test]
    fn what_expired_while_nobody_looked_is_due_at_once() {
        let now = at(5_000, 9);
        assert_eq!(Deadline::new(4_999_000, now).left_ms(now), 0);
        assert_eq!(Deadline::new(0, now).left_ms(now), 0);
        assert!(Deadline::new(u64::MAX, now).left_ms(now) > 1 << 60);
    }
}
