//! Telling how far each of several transfers is.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use banger_api::operation::{Progress, ProgressUnit};
use banger_core::reference::Digest;

/// How often a transfer says how far it is, at most.
const EVERY: Duration = Duration::from_millis(100);

/// Takes progress to whoever asked for it, from any thread.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// What all transfers of one stage have in common.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) message: &'static str,
    pub(super) sink: ProgressSink,
}

/// One transfer.
#[derive(Debug)]
pub(super) struct Meter {
    stage: Stage,
    item: String,
    total: u64,
    last: Mutex<Option<(Instant, u64)>>,
}

impl Stage {
    pub(super) fn meter(&self, digest: &Digest, total: u64) -> Meter {
        let item = digest.short().to_owned();
        Meter { stage: self.clone(), item, total, last: Mutex::default() }
    }
}

impl Meter {
    /// It is that far. Said if it is news, and not too often.
    pub(super) fn at(&self, done: u64) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_news = match *last {
            None => true,
            Some((_, said)) if said == done => false,
            Some((when, _)) => done >= self.total || when.elapsed() >= EVERY,
        };
        if is_news {
            *last = Some((Instant::now(), done));
            drop(last);
            self.say(self.stage.message, done);
        }
    }

    /// It waits, and for what.
    pub(super) fn waits(&self, message: &str) {
        self.say(message, 0);
    }

    fn say(&self, message: &str, done: u64) {
        (self.stage.sink)(Progress {
            stage: self.stage.name.to_owned(),
            message: message.to_owned(),
            item: Some(self.item.clone()),
            done: Some(done),
            total: Some(self.total),
            unit: Some(ProgressUnit::Bytes),
        });
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_says_its_beginning_and_its_end_and_not_every_byte() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let sink: ProgressSink = {
            let said = Arc::clone(&said);
            Arc::new(move |p: Progress| said.lock().expect("no panic").push((p.item, p.done)))
        };
        let stage = Stage { name: "image.layers", message: "fetching layers", sink };
        let digest = Digest::of_sum([0xab; 32]);
        let meter = stage.meter(&digest, 1000);
        (0..=1000).for_each(|done| meter.at(done));
        meter.at(1000);
        let said = said.lock().expect("no panic");
        let item = || Some("abababababab".to_owned());
        assert_eq!(said.first(), Some(&(item(), Some(0))));
        assert_eq!(said.last(), Some(&(item(), Some(1000))));
        assert!(said.len() < 10, "{}", said.len());
    }
}
