//! Spans of time as people write and read them.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// No number where one must be.
    #[error("a duration is numbers and units, for example 30s, 5m or 1h30m")]
    NotADuration,
    /// A unit that does not exist.
    #[error("unknown unit {unit:?} (use ms, s, m, h or d)")]
    UnknownUnit {
        /// What stands after a number.
        unit: String,
    },
    /// Longer than can be counted.
    #[error("the duration is out of range")]
    OutOfRange,
}

/// Units from the longest to the shortest, with their length in milliseconds.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a duration: `30s`, `5m`, `1h30m`, `250ms`, `2d`; a number alone counts seconds.
///
/// # Errors
/// [`DurationError`] if it is not one.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text.trim();
    if let Some(total_ms) = seconds(rest) {
        return total_ms.map(Duration::from_millis);
    }
    if rest.is_empty() {
        return Err(DurationError::NotADuration);
    }
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = take(rest, |c| c.is_ascii_digit());
        if number.is_empty() {
            return Err(DurationError::NotADuration);
        }
        let (unit, after) = take(after, |c| !c.is_ascii_digit());
        let unit_ms = unit_ms(unit)?;
        let part_ms = number.parse::<u64>().ok().and_then(|count| count.checked_mul(unit_ms));
        total_ms = part_ms
            .and_then(|part_ms| total_ms.checked_add(part_ms))
            .ok_or(DurationError::OutOfRange)?;
        rest = after;
    }
    Ok(Duration::from_millis(total_ms))
}

/// A duration in its two largest units: `1h30m`, `45s`, `0s`; below a second in milliseconds.
#[must_use]
pub fn format(duration: Duration) -> String {
    let total_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if total_ms == 0 {
        return "0s".to_owned();
    }
    let first = UNITS.iter().position(|(_, ms)| total_ms >= *ms).unwrap_or(UNITS.len() - 1);
    let (name, ms) = UNITS[first];
    let mut text = format!("{}{name}", total_ms / ms);
    if let Some((next, next_ms)) = UNITS.get(first + 1).filter(|(next, _)| *next != "ms") {
        let rest = total_ms % ms / next_ms;
        if rest > 0 {
            text.push_str(&format!("{rest}{next}"));
        }
    }
    text
}

/// How long something has lasted, for a list: `5 seconds`, `1 minute`, `3 days`.
#[must_use]
pub fn age(duration: Duration) -> String {
    const STEPS: [(u64, &str); 4] =
        [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let seconds = duration.as_secs();
    for (length, name) in STEPS {
        let count = seconds / length;
        if count > 0 {
            let plural = if count == 1 { "" } else { "s" };
            return format!("{count} {name}{plural}");
        }
    }
    "less than a second".to_owned()
}

/// A number alone, in milliseconds; None if there is something else than digits.
fn seconds(text: &str) -> Option<Result<u64, DurationError>> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| {
        text.parse::<u64>()
            .ok()
            .and_then(|seconds| seconds.checked_mul(1_000))
            .ok_or(DurationError::OutOfRange)
    })
}

fn take(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

fn unit_ms(unit: &str) -> Result<u64, DurationError> {
    UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, ms)| *ms)
        .ok_or_else(|| DurationError::UnknownUnit { unit: unit.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read() {
        let ms = |ms| Ok(Duration::from_millis(ms));
        let unknown = |unit: &str| Err(DurationError::UnknownUnit { unit: unit.to_owned() });
        let cases = [
            ("30s", ms(30_000)),
            ("30", ms(30_000)),
            ("0", ms(0)),
            ("5m", ms(300_000)),
            ("1h30m", ms(5_400_000)),
            ("250ms", ms(250)),
            ("2d", ms(172_800_000)),
            ("", Err(DurationError::NotADuration)),
            ("s", Err(DurationError::NotADuration)),
            ("-1s", Err(DurationError::NotADuration)),
            ("1.5s", unknown(".")),
            ("5x", unknown("x")),
            ("5m3", unknown("")),
            ("5M", unknown("M")),
            ("99999999999999999999", Err(DurationError::OutOfRange)),
            ("99999999999999999d", Err(DurationError::OutOfRange)),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text), want, "{text:?}");
        }
    }

    #[test]
    fn durations_are_written() {
        let cases = [
            (0, "0s"),
            (250, "250ms"),
            (1_500, "1s"),
            (90_000, "1m30s"),
            (5_400_000, "1h30m"),
            (3_600_000, "1h"),
            (90_061_000, "1d1h"),
        ];
        for (ms, want) in cases {
            assert_eq!(format(Duration::from_millis(ms)), want);
        }
    }

    #[test]
    fn ages_are_written() {
        let cases = [
            (0, "less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "1 minute"),
            (7_300, "2 hours"),
            (86_400 * 3, "3 days"),
        ];
        for (seconds, want) in cases {
            assert_eq!(age(Duration::from_secs(seconds)), want);
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text: String, ms: u64) {
            let _ = parse(&text);
            let _ = format(Duration::from_millis(ms));
        }

        #[test]
        fn whole_seconds_survive(seconds in 0u64..3600) {
            let span = Duration::from_secs(seconds);
            prop_assert_eq!(parse(&format(span)), Ok(span));
        }
    }
}
