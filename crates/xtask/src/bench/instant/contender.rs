//! Who takes part, and taking turns.

use std::fmt;
use std::time::Duration;

use super::Stage;
use crate::bench::figures::percentile;
use crate::failure::ChoreFailure;

/// After so many failures a contender is not asked again.
const PATIENCE: usize = 3;

/// In whose favour a time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Ours, as users have it.
    Warm,
    /// Ours, where guests stand ready.
    Pool,
    /// Ours, but booted anew.
    Cold,
    /// What ours cannot go below; nobody's.
    Floor,
    /// Somebody else's.
    Peer,
}

/// Something that starts a VM, runs `true` in it, and is rid of it.
#[derive(Clone, Copy)]
pub(super) struct Contender {
    /// What the table and the picture call it.
    pub(super) name: &'static str,
    pub(super) side: Side,
    /// It takes part in the first round and then in each fifth, tenth: who is slow, less often.
    pub(super) every: usize,
    /// Installs and makes what is missing, and gives what does it once and says how long it took.
    pub(super) prepare: for<'a> fn(&'a Stage) -> Result<Once<'a>, Reason>,
}

/// Starts a VM, runs `true` in it, and waits until it is gone.
pub(super) type Once<'a> = Box<dyn FnMut() -> Result<Duration, Reason> + 'a>;

/// Why there is no time, in one short line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason(String);

impl Reason {
    /// Longer ones are cut: they stand in a table.
    const MAX_CHARS: usize = 160;

    /// Whatever a program said may be given: only what prints is kept.
    pub(super) fn new(text: &str) -> Self {
        // A bar would end the table's cell.
        let prints = |c: char| if c.is_control() || c == '|' { ' ' } else { c };
        let text: String = text.chars().map(prints).collect();
        let words: Vec<&str> = text.split_whitespace().collect();
        let text = words.join(" ");
        match text.char_indices().nth(Self::MAX_CHARS) {
            Some((end, _)) => Self(format!("{}…", &text[..end])),
            None => Self(text),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ChoreFailure> for Reason {
    fn from(failure: ChoreFailure) -> Self {
        match std::error::Error::source(&failure) {
            Some(source) => Self::new(&format!("{failure}: {source}")),
            None => Self::new(&failure.to_string()),
        }
    }
}

impl Contender {
    /// Prepares it and lets it run once unmeasured: caches are filled then, and what ours keeps for
    /// the next time is made.
    pub(super) fn enter<'a>(&self, stage: &'a Stage) -> Entry<'a> {
        eprintln!("{}: preparing", self.name);
        let ready = (self.prepare)(stage).and_then(|mut once| {
            once()?;
            Ok(once)
        });
        Entry::new(self, ready)
    }
}

/// A contender under measurement.
pub(super) struct Entry<'a> {
    name: &'static str,
    side: Side,
    every: usize,
    ready: Result<Once<'a>, Reason>,
    times: Vec<Duration>,
    failures: Vec<Reason>,
}

impl<'a> Entry<'a> {
    fn new(contender: &Contender, ready: Result<Once<'a>, Reason>) -> Self {
        if let Err(reason) = &ready {
            eprintln!("{}: not measured: {reason}", contender.name);
        }
        let Contender { name, side, every, .. } = *contender;
        Self { name, side, every, ready, times: Vec::new(), failures: Vec::new() }
    }

    fn take_turn(&mut self, round: usize) {
        if !round.is_multiple_of(self.every) || self.failures.len() >= PATIENCE {
            return;
        }
        let Ok(once) = &mut self.ready else { return };
        match once() {
            Ok(took) => self.times.push(took),
            Err(reason) => {
                eprintln!("{}: {reason}", self.name);
                self.failures.push(reason);
            }
        }
    }

    /// What came of it.
    pub(super) fn outcome(self) -> Outcome {
        let Self { name, side, ready, times, mut failures, .. } = self;
        let trouble = match (ready, failures.len()) {
            (Err(reason), _) => Some(reason),
            (Ok(_), 0) => None,
            (Ok(_), count) => {
                let last = failures.remove(count - 1);
                Some(Reason::new(&format!("{count} failed: {last}")))
            }
        };
        Outcome { name, side, times, trouble }
    }
}

/// Lets everybody have their turns, so that what else the machine does hits all alike. Who begins
/// changes, so that nobody always comes after the same one.
pub(super) fn by_turns(entries: &mut [Entry<'_>], rounds: usize) {
    let count = entries.len();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for place in 0..count {
            entries[(round + place) % count].take_turn(round);
        }
    }
}

/// What was measured of a contender.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) name: &'static str,
    pub(super) side: Side,
    /// How long each run took that succeeded.
    pub(super) times: Vec<Duration>,
    /// Why there are no times, or less than wanted.
    pub(super) trouble: Option<Reason>,
}

impl Outcome {
    /// The time, in seconds, that so many of a hundred runs do not exceed; None without any run.
    pub(super) fn seconds(&self, part: usize) -> Option<f64> {
        let mut times = self.times.clone();
        (!times.is_empty()).then(|| percentile(&mut times, part).as_secs_f64())
    }

    /// The median, in seconds.
    pub(super) fn p50(&self) -> Option<f64> {
        self.seconds(50)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn entry<'a>(
        name: &'static str,
        every: usize,
        ready: Result<impl FnMut() -> Result<Duration, Reason> + 'a, Reason>,
    ) -> Entry<'a> {
        let prepare = |_: &Stage| Err(Reason::new("is not prepared here"));
        let contender = Contender { name, side: Side::Peer, every, prepare };
        Entry::new(&contender, ready.map(|once| Box::new(once) as Once<'a>))
    }

    fn takes(seconds: u64) -> Result<Duration, Reason> {
        Ok(Duration::from_secs(seconds))
    }

    #[test]
    fn who_is_slow_runs_less_often_and_everybody_begins_once() {
        let order = RefCell::new(String::new());
        let note = |letter| {
            order.borrow_mut().push(letter);
            takes(1)
        };
        let mut entries = [entry("a", 1, Ok(|| note('a'))), entry("b", 2, Ok(|| note('b')))];
        by_turns(&mut entries, 4);
        let runs = entries.map(|entry| entry.outcome().times.len());
        assert_eq!(runs, [4, 2]);
        assert_eq!(order.into_inner(), "abaaba");
    }

    #[test]
    fn who_cannot_take_part_has_a_reason() {
        let none = None::<fn() -> Result<Duration, Reason>>;
        let mut entries = [entry("a", 1, none.ok_or(Reason::new("no KVM here")))];
        by_turns(&mut entries, 2);
        let [outcome] = entries.map(Entry::outcome);
        assert_eq!((outcome.p50(), outcome.trouble), (None, Some(Reason::new("no KVM here"))));
    }

    #[test]
    fn who_fails_now_and_then_keeps_its_times_and_who_always_fails_is_let_go() {
        let calls = RefCell::new(0);
        let count = |fails: fn(u32) -> bool| {
            *calls.borrow_mut() += 1;
            if fails(*calls.borrow()) { Err(Reason::new("hung")) } else { takes(2) }
        };
        let mut entries = [entry("a", 1, Ok(|| count(|call| call == 2)))];
        by_turns(&mut entries, 5);
        let [outcome] = entries.map(Entry::outcome);
        assert_eq!((outcome.times.len(), outcome.p50()), (4, Some(2.0)));
        assert_eq!(outcome.trouble, Some(Reason::new("1 failed: hung")));

        calls.replace(0);
        let mut entries = [entry("b", 1, Ok(|| count(|_| true)))];
        by_turns(&mut entries, 10);
        assert_eq!(calls.take() as usize, PATIENCE);
    }

    #[test]
    fn a_reason_is_one_short_line_that_fits_a_table() {
        let reason = Reason::new("qemu:\u{1b}[31m no |\n\nKVM\0 here");
        assert_eq!(reason.to_string(), "qemu: [31m no KVM here");
        assert_eq!(Reason::new(&"ä".repeat(500)).to_string().chars().count(), 161);
    }
}
