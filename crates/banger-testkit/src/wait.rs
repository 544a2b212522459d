//! Waiting for something to become true, with a bound. No end-to-end test waits asleep but here.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PAUSE: Duration = Duration::from_millis(20);
/// Between two looks at what is measured.
const SHORT_PAUSE: Duration = Duration::from_millis(1);

/// Asks until there is an answer, and gives it.
///
/// # Panics
/// If there is none within the bound.
pub fn until<T>(what: &str, bound: Duration, ask: impl FnMut() -> Option<T>) -> T {
    until_each(PAUSE, what, bound, ask)
}

/// The same with hardly a pause, where how long it takes is measured.
///
/// # Panics
/// If there is no answer within the bound.
pub fn closely<T>(what: &str, bound: Duration, ask: impl FnMut() -> Option<T>) -> T {
    until_each(SHORT_PAUSE, what, bound, ask)
}

fn until_each<T>(
    pause: Duration,
    what: &str,
    bound: Duration,
    mut ask: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {bound:?} in vain: {what}");
        std::thread::sleep(pause);
    }
}

/// Asks until the answer is yes, and says whether it ever was.
pub fn eventually(bound: Duration, mut ask: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + bound;
    loop {
        if ask() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

/// The host's clock.
///
/// # Panics
/// If it stands before 1970.
#[must_use]
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// The same in whole seconds.
#[must_use]
pub fn seconds_since_1970() -> u64 {
    since_1970().as_secs()
}
