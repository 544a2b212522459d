//! When the guest's clock must be set: after the host's was set or the host slept, and now and then
//! because an emulated counter drifts.

use std::time::Duration;

/// The host's clock has jumped when it moved by more than this against the time it has run.
const JUMP: Duration = Duration::from_millis(500);
/// A guest's clock is set at least this often.
const INTERVAL: Duration = Duration::from_secs(600);

/// The host's two clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Since the Unix epoch.
    pub(crate) real: Duration,
    /// That the host has run, sleep not counted.
    pub(crate) running: Duration,
}

impl Reading {
    /// The clocks now.
    pub(crate) fn now() -> Self {
        Self { real: banger_host::clock::since_epoch(), running: banger_host::clock::monotonic() }
    }
}

/// Remembers when the guest's clock was last set.
#[derive(Debug)]
pub(crate) struct ClockWatch {
    set: Reading,
}

impl ClockWatch {
    /// The guest's clock was just set.
    pub(crate) fn new(now: Reading) -> Self {
        Self { set: now }
    }

    /// Whether the guest's clock must be set now; if so, it is taken as done.
    pub(crate) fn is_due(&mut self, now: Reading) -> bool {
        let ran = now.running.saturating_sub(self.set.running);
        let jump = (self.set.real + ran).abs_diff(now.real);
        let due = jump > JUMP || ran > INTERVAL;
        if due {
            self.set = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(real_s: u64, running_s: u64) -> Reading {
        Reading { real: Duration::from_secs(real_s), running: Duration::from_secs(running_s) }
    }

    #[test]
    fn jumps_sleep_and_age_are_noticed_once() {
        let cases = [
            ("time goes by", reading(1060, 160), false),
            ("the clock is set forward", reading(5000, 160), true),
            ("the clock is set back", reading(10, 160), true),
            ("the host slept for an hour", reading(4660, 160), true),
            ("a long time without anything", reading(1700, 800), true),
        ];
        for (what, now, want) in cases {
            let mut watch = ClockWatch::new(reading(1000, 100));
            assert_eq!(watch.is_due(now), want, "{what}");
            assert!(!watch.is_due(now), "{what}: once is enough");
        }
    }
}
