//! When to try again, and how long to wait before.

use std::time::Duration;

/// A download that comes at least that much further has made progress.
const PROGRESS: u64 = 64 * 1024;

/// How patient we are with a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    /// How often something is tried that makes no progress.
    pub(crate) attempts: u32,
    /// How long the first wait is; each next one is twice as long.
    pub(crate) first_wait: Duration,
    /// How long a wait is at most.
    pub(crate) longest_wait: Duration,
    /// How long the registry may tell us to wait.
    pub(crate) longest_request: Duration,
    /// How long a connection may take to be made.
    pub(crate) connect: Duration,
    /// How long nothing may come.
    pub(crate) silence: Duration,
}

impl Default for Patience {
    /// Fifteen seconds of trouble, or a registry that is slow to answer, are normal in the life of
    /// the internet; more is worth an error.
    fn default() -> Self {
        Self {
            attempts: 6,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(8),
            longest_request: Duration::from_secs(120),
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
        }
    }
}

/// The attempts at one thing.
#[derive(Debug)]
pub(super) struct Attempts {
    patience: Patience,
    failures: u32,
    furthest: u64,
}

impl Attempts {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, failures: 0, furthest: 0 }
    }

    /// So much of it is done. What was lost and done again is no progress.
    pub(super) fn reached(&mut self, bytes: u64) {
        if bytes >= self.furthest.saturating_add(PROGRESS) {
            self.furthest = bytes;
            self.failures = 0;
        }
    }

    /// It failed once more. How long to wait before the next attempt; None if that was the last one.
    /// `wanted` is what the registry asks for, `chance` is a random number: many clients that fail at
    /// the same time shall not come back at the same time.
    pub(super) fn failed(&mut self, wanted: Option<Duration>, chance: u8) -> Option<Duration> {
        self.failures += 1;
        if self.failures >= self.patience.attempts
            || wanted.is_some_and(|wanted| wanted > self.patience.longest_request)
        {
            return None;
        }
        let doubled =
            self.patience.first_wait * 2_u32.saturating_pow(self.failures - 1).min(1 << 16);
        let wait = doubled.min(self.patience.longest_wait);
        // Between half of it and all of it.
        let wait = wait / 2 + wait / 2 * u32::from(chance) / 255;
        Some(wanted.map_or(wait, |wanted| wanted.max(wait)))
    }
}

/// What a header `Retry-After` asks for: seconds, or a date. `now` is the time since 1970.
pub(super) fn parse_retry_after(value: &str, now: Duration) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value.trim()).ok()?;
    let since_epoch = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(since_epoch.saturating_sub(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn waits_grow_and_end() {
        let mut attempts = Attempts::new(Patience::default());
        let waits: Vec<_> = (0..6).map(|_| attempts.failed(None, 255)).collect();
        let want = [500, 1000, 2000, 4000, 8000].map(|ms| Some(Duration::from_millis(ms)));
        assert_eq!(waits[..5], want);
        assert_eq!(waits[5], None);
        let early = Attempts::new(Patience::default()).failed(None, 0);
        assert_eq!(early, Some(Duration::from_millis(250)));
    }

    #[test]
    fn progress_counts_and_repetition_does_not() {
        let mut attempts = Attempts::new(Patience { attempts: 2, ..Patience::default() });
        assert!(attempts.failed(None, 0).is_some());
        attempts.reached(PROGRESS);
        assert!(attempts.failed(None, 0).is_some());
        attempts.reached(PROGRESS);
        attempts.reached(PROGRESS + 1);
        assert_eq!(attempts.failed(None, 0), None);
    }

    #[test]
    fn the_registry_may_ask_for_patience_but_not_for_too_much() {
        let mut attempts = Attempts::new(Patience::default());
        assert_eq!(attempts.failed(Some(seconds(7)), 0), Some(seconds(7)));
        assert_eq!(attempts.failed(Some(seconds(0)), 255), Some(seconds(1)));
        assert_eq!(attempts.failed(Some(seconds(3600)), 0), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = seconds(784_111_770);
        let cases = [
            ("7", Some(seconds(7))),
            (" 0 ", Some(seconds(0))),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(seconds(7))),
            ("Sat, 06 Nov 1993 08:49:37 GMT", Some(seconds(0))),
            ("-1", None),
            ("soon", None),
            ("", None),
        ];
        for (value, want) in cases {
            assert_eq!(parse_retry_after(value, now), want, "{value:?}");
        }
    }
}
