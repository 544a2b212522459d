//! Progress of long work on stderr: a bar per stage on a terminal, a line per stage elsewhere.
//!
//! The stages of every VM start (`vm.…`) are shown while they last and leave nothing behind, so a
//! script that runs commands in VMs sees only what the commands write.

use std::io::Write;
use std::time::{Duration, Instant};

use banger_api::operation::{Progress, ProgressUnit};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::message;

/// How often a bar moves by itself.
const TICK: Duration = Duration::from_millis(100);
/// Stages shorter than this leave no line on a terminal.
const WORTH_A_LINE: Duration = Duration::from_millis(300);

/// The progress of one operation.
#[derive(Debug)]
pub struct Stages {
    display: Display,
    current: Option<Stage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Display {
    Nothing,
    Lines,
    Bars,
}

#[derive(Debug)]
struct Stage {
    name: String,
    message: String,
    since: Instant,
    bar: Option<ProgressBar>,
}

impl Stages {
    /// A display that shows nothing, bars, or lines.
    pub(super) fn new(silent: bool, bars: bool) -> Self {
        let display = match (silent, bars) {
            (true, _) => Display::Nothing,
            (false, true) => Display::Bars,
            (false, false) => Display::Lines,
        };
        Self { display, current: None }
    }

    /// A stage began or went on.
    pub fn update(&mut self, progress: &Progress) {
        let is_new = self.current.as_ref().is_none_or(|stage| stage.name != progress.stage);
        if is_new {
            self.end_stage();
            self.begin_stage(progress);
        }
        if let Some(bar) = self.current.as_ref().and_then(|stage| stage.bar.as_ref()) {
            move_bar(bar, progress);
        }
    }

    /// Something else is to be printed; the bar makes room for it.
    pub fn suspend(&mut self, print: impl FnOnce()) {
        match self.current.as_ref().and_then(|stage| stage.bar.as_ref()) {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// A last word about the present stage, for example that it is being cancelled.
    pub fn say(&mut self, text: &str) {
        match self.current.as_ref().and_then(|stage| stage.bar.as_ref()) {
            Some(bar) => bar.set_message(text.to_owned()),
            None if self.display == Display::Lines => write(text),
            None => {}
        }
    }

    /// The work is done: the last stage is too.
    pub fn finish(&mut self) {
        self.end_stage();
    }

    /// The work failed: what was under way leaves no line that says it was done.
    pub fn abandon(&mut self) {
        if let Some(bar) = self.current.take().and_then(|stage| stage.bar) {
            bar.finish_and_clear();
        }
    }

    fn begin_stage(&mut self, progress: &Progress) {
        let message = message::clean(&progress.message);
        let bar = (self.display == Display::Bars).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style(progress));
            bar.set_message(message.clone());
            bar.enable_steady_tick(TICK);
            bar
        });
        if self.display == Display::Lines && is_worth_telling(&progress.stage) {
            write(&message);
        }
        let name = progress.stage.clone();
        self.current = Some(Stage { name, message, since: Instant::now(), bar });
    }

    fn end_stage(&mut self) {
        let Some(stage) = self.current.take() else { return };
        let Some(bar) = stage.bar else { return };
        bar.finish_and_clear();
        let lasted = stage.since.elapsed();
        if is_worth_telling(&stage.name) && lasted >= WORTH_A_LINE {
            let lasted = banger_core::duration::format(lasted);
            write(&format!("{} ({lasted})", stage.message));
        }
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn is_worth_telling(stage: &str) -> bool {
    !stage.starts_with("vm.")
}

fn write(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

fn move_bar(bar: &ProgressBar, progress: &Progress) {
    if let Some(total) = progress.total.filter(|total| bar.length() != Some(*total)) {
        bar.set_length(total);
        bar.set_style(style(progress));
    }
    if let Some(done) = progress.done {
        bar.set_position(done);
    }
    bar.set_message(message::clean(&progress.message));
}

fn style(progress: &Progress) -> ProgressStyle {
    let template = match (progress.total, progress.done, progress.unit) {
        (Some(_), _, Some(ProgressUnit::Bytes)) => {
            "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes}"
        }
        (Some(_), _, Some(ProgressUnit::Percent)) => "{msg} [{bar:30}] {percent}%",
        (Some(_), _, _) => "{msg} [{bar:30}] {pos}/{len}",
        (None, Some(_), Some(ProgressUnit::Bytes)) => "{spinner} {msg} {binary_bytes}",
        (None, _, _) => "{spinner} {msg} ({elapsed})",
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_one() {
        let units = [
            None,
            Some(ProgressUnit::Bytes),
            Some(ProgressUnit::Items),
            Some(ProgressUnit::Percent),
        ];
        for unit in units {
            for (done, total) in [(None, None), (Some(1), None), (Some(1), Some(2))] {
                let progress = Progress { done, total, unit, ..Progress::stage("a", "b") };
                let _ = style(&progress);
            }
        }
    }

    #[test]
    fn only_fetching_is_worth_telling() {
        assert!(is_worth_telling("image.bootstrap"));
        assert!(is_worth_telling("kernel.download"));
        assert!(!is_worth_telling("vm.boot"));
    }
}
