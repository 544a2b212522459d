//! Telling how far a pull is.

use std::path::Path;

use banger_api::operation::{Progress, ProgressUnit};
use banger_api::step::Step;
use banger_host::fault;

use crate::error::LibraryError;

/// Announce a step right before its effect.
///
/// # Errors
/// Only in test builds.
pub(crate) fn pass(step: Step) -> Result<(), LibraryError> {
    fault::pass(step).map_err(LibraryError::io("take the step", Path::new(step.name())))
}

/// Takes the progress of a pull to whoever asked for it.
pub(crate) struct Reporter<'a> {
    out: &'a mut dyn FnMut(Progress),
}

impl<'a> Reporter<'a> {
    pub(crate) fn new(out: &'a mut dyn FnMut(Progress)) -> Self {
        Self { out }
    }

    /// Begin a step: `message` is for people.
    ///
    /// # Errors
    /// Only in test builds.
    pub(crate) fn stage(
        &mut self,
        step: Step,
        message: &str,
    ) -> Result<Stage<'_, 'a>, LibraryError> {
        (self.out)(Progress::stage(step.name(), message));
        pass(step)?;
        Ok(Stage { reporter: self, name: step.name(), message: message.to_owned(), last: None })
    }

    /// Say that this waits for somebody else, which is no step.
    pub(crate) fn wait(&mut self, name: &'static str, message: &str) {
        (self.out)(Progress::stage(name, message));
    }
}

/// A stage that has begun.
pub(crate) struct Stage<'r, 'a> {
    reporter: &'r mut Reporter<'a>,
    name: &'static str,
    message: String,
    last: Option<(u64, String)>,
}

impl Stage<'_, '_> {
    /// It is that far, and does `what` at the moment. Said only if it is news.
    pub(crate) fn percent(&mut self, percent: u64, what: &str) {
        let news = Some((percent, what.to_owned()));
        if self.last == news {
            return;
        }
        self.last = news;
        let message = match what {
            "" => self.message.clone(),
            what => format!("{}: {what}", self.message),
        };
        (self.reporter.out)(Progress {
            stage: self.name.to_owned(),
            message,
            item: None,
            done: Some(percent),
            total: Some(100),
            unit: Some(ProgressUnit::Percent),
        });
    }
}

#[cfg(test)]
mod tests {
    use banger_api::step;

    use super::*;

    #[test]
    fn a_stage_says_what_is_new() {
        let mut heard = Vec::new();
        let mut out = |progress: Progress| {
            heard.push(format!("{} {:?} {}", progress.stage, progress.done, progress.message));
        };
        let mut reporter = Reporter::new(&mut out);
        let mut stage =
            reporter.stage(step::KERNEL_DOWNLOAD, "fetching the kernel").expect("no faults here");
        stage.percent(1, "");
        stage.percent(1, "");
        stage.percent(2, "lists");
        let want = [
            "kernel.download None fetching the kernel",
            "kernel.download Some(1) fetching the kernel",
            "kernel.download Some(2) fetching the kernel: lists",
        ];
        assert_eq!(heard, want);
    }
}
