//! Marks of where the time goes, kept until somebody takes them along; see [`banger_api::trace`].

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use banger_api::trace::Mark;

use crate::clock;

/// The marks of a process. If nobody asked for them there are none, and making one costs nothing. Clones
/// are the same marks.
#[derive(Debug, Clone, Default)]
pub struct Trace(Option<Arc<Mutex<Vec<Mark>>>>);

/// When a stage began.
#[derive(Debug, Clone, Copy)]
pub struct Began(u64);

/// The beginning of this process: the first call of this.
#[must_use]
pub fn beginning() -> Began {
    static BEGINNING: OnceLock<u64> = OnceLock::new();
    Began(*BEGINNING.get_or_init(clock::monotonic_us))
}

impl Trace {
    /// Marks, if they are wanted.
    #[must_use]
    pub fn new(wanted: bool) -> Self {
        Self(wanted.then(Arc::default))
    }

    /// Whether anybody asked for marks.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// A stage begins.
    #[must_use]
    pub fn begin(&self) -> Began {
        Began(if self.is_wanted() { clock::monotonic_us() } else { 0 })
    }

    /// A stage has ended.
    pub fn end(&self, stage: &str, Began(began_us): Began) {
        if self.is_wanted() {
            let (stage, ended_us) = (stage.to_owned(), clock::monotonic_us());
            self.add([Mark { stage, began_us, ended_us }]);
        }
    }

    /// Marks of another process.
    pub fn add(&self, marks: impl IntoIterator<Item = Mark>) {
        if let Some(kept) = &self.0 {
            kept.lock().unwrap_or_else(PoisonError::into_inner).extend(marks);
        }
    }

    /// Hands out what was marked since the last time.
    #[must_use]
    pub fn take(&self) -> Vec<Mark> {
        let Some(kept) = &self.0 else { return Vec::new() };
        std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_kept_only_if_wanted_and_handed_out_once() {
        for wanted in [true, false] {
            let trace = Trace::new(wanted);
            let began = trace.begin();
            trace.clone().end("a", began);
            let marks = trace.take();
            assert_eq!(marks.len(), usize::from(wanted));
            assert!(marks.iter().all(|it| it.stage == "a" && it.began_us <= it.ended_us));
            assert!(trace.take().is_empty());
        }
    }
}
