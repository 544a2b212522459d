//! Progress of long work on stderr: bars on a terminal, a line per stage and finished thing elsewhere.
//!
//! The stages of every VM start (`vm.…`) are shown while they last and leave nothing behind, so a
//! script that runs commands in VMs sees only what the commands write.

mod board;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use banger_api::operation::{Progress, ProgressUnit};
use banger_core::{duration, size};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::board::{Board, Count, News, Shown};

/// How often a bar moves by itself.
const TICK: Duration = Duration::from_millis(100);
/// Stages shorter than this leave no line on a terminal.
const WORTH_A_LINE: Duration = Duration::from_millis(300);

/// The progress of one operation.
#[derive(Debug)]
pub struct Stages {
    display: Display,
    board: Board,
    since: BTreeMap<String, Instant>,
}

#[derive(Debug)]
enum Display {
    Nothing,
    Lines,
    Bars(Bars),
}

/// The lines on a terminal.
#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    /// In the order in which they stand.
    shown: Vec<Bar>,
}

#[derive(Debug)]
struct Bar {
    key: String,
    shape: Shape,
    bar: ProgressBar,
}

/// What a bar's looks depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    is_item: bool,
    has_done: bool,
    has_total: bool,
    unit: Option<ProgressUnit>,
}

impl Stages {
    /// A display that shows nothing, bars, or lines.
    pub(super) fn new(silent: bool, bars: bool) -> Self {
        let display = match (silent, bars) {
            (true, _) => Display::Nothing,
            (false, true) => Display::Bars(Bars::new(ProgressDrawTarget::stderr())),
            (false, false) => Display::Lines,
        };
        Self { display, board: Board::default(), since: BTreeMap::new() }
    }

    /// A stage began or went on.
    pub fn update(&mut self, progress: &Progress) {
        let news = self.board.update(progress);
        self.show(news);
    }

    /// Something else is to be printed; the bars make room for it.
    pub fn suspend(&mut self, print: impl FnOnce()) {
        match &self.display {
            Display::Bars(bars) => bars.all.suspend(print),
            Display::Nothing | Display::Lines => print(),
        }
    }

    /// A last word about the present stage, for example that it is being cancelled.
    pub fn say(&mut self, text: &str) {
        match &self.display {
            Display::Bars(bars) => {
                if let Some(first) = bars.shown.first() {
                    first.bar.set_message(text.to_owned());
                }
            }
            Display::Lines => write(text),
            Display::Nothing => {}
        }
    }

    /// The work is done: the last stage is too.
    pub fn finish(&mut self) {
        let news = self.board.finish();
        self.show(news);
    }

    /// The work failed: what was under way leaves no line that says it was done.
    pub fn abandon(&mut self) {
        self.board.clear();
        self.show(Vec::new());
    }

    fn show(&mut self, news: Vec<News>) {
        for news in news {
            let Some(text) = self.line_of(news) else { continue };
            self.suspend(|| write(&text));
        }
        if let Display::Bars(bars) = &mut self.display {
            bars.show(self.board.lines());
        }
    }

    /// The line that stays of it.
    fn line_of(&mut self, news: News) -> Option<String> {
        match (news, &self.display) {
            (News::Began { stage, message }, Display::Lines) => {
                is_worth_telling(&stage).then_some(message)
            }
            (News::Began { stage, .. }, Display::Bars(_)) => {
                self.since.insert(stage, Instant::now());
                None
            }
            (News::ItemDone { stage, item, count }, Display::Lines) => {
                is_worth_telling(&stage).then(|| finished(&item, count))
            }
            (News::Ended { stage, message }, Display::Bars(_)) => {
                // Of a stage that took turns with another only the first end is told.
                let lasted = self.since.remove(&stage)?.elapsed();
                (is_worth_telling(&stage) && lasted >= WORTH_A_LINE)
                    .then(|| format!("{message} ({})", duration::format(lasted)))
            }
            _ => None,
        }
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl Bars {
    fn new(target: ProgressDrawTarget) -> Self {
        Self { all: MultiProgress::with_draw_target(target), shown: Vec::new() }
    }

    /// Makes the terminal show these lines.
    fn show(&mut self, lines: Vec<Shown>) {
        let mut before = std::mem::take(&mut self.shown);
        before.retain(|old| {
            let stays = lines.iter().any(|line| line.key == old.key);
            if !stays {
                old.bar.finish_and_clear();
                self.all.remove(&old.bar);
            }
            stays
        });
        for (index, line) in lines.into_iter().enumerate() {
            let shape = Shape::of(&line);
            let known = before.iter().position(|old| old.key == line.key);
            let mut bar = match known {
                Some(at) => before.swap_remove(at),
                None => self.begin(index, &line, shape),
            };
            if bar.shape != shape {
                bar.bar.set_style(shape.style());
                bar.shape = shape;
            }
            bar.follow(line);
            self.shown.push(bar);
        }
    }

    fn begin(&self, index: usize, line: &Shown, shape: Shape) -> Bar {
        let bar = ProgressBar::no_length().with_style(shape.style());
        let bar = self.all.insert(index, bar);
        if !line.is_item {
            bar.enable_steady_tick(TICK);
        }
        Bar { key: line.key.clone(), shape, bar }
    }
}

impl Bar {
    fn follow(&self, line: Shown) {
        if let Some(total) = line.count.total.filter(|total| self.bar.length() != Some(*total)) {
            self.bar.set_length(total);
        }
        if let Some(done) = line.count.done {
            self.bar.set_position(done);
        }
        if self.bar.message() != line.text {
            self.bar.set_message(line.text);
        }
    }
}

impl Shape {
    fn of(line: &Shown) -> Self {
        let Count { done, total, unit } = line.count;
        Self { is_item: line.is_item, has_done: done.is_some(), has_total: total.is_some(), unit }
    }

    fn style(self) -> ProgressStyle {
        use ProgressUnit::{Bytes, Percent};
        let template = match (self.is_item, self.has_total, self.has_done, self.unit) {
            (false, true, _, Some(Bytes)) => "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes}",
            (false, true, _, Some(Percent)) => "{msg} [{bar:30}] {percent}%",
            (false, true, _, _) => "{msg} [{bar:30}] {pos}/{len}",
            (false, false, true, Some(Bytes)) => "{spinner} {msg} {binary_bytes}",
            (false, false, _, _) => "{spinner} {msg} ({elapsed})",
            (true, true, _, Some(Bytes)) => {
                "  {msg:14} [{bar:24}] {binary_bytes}/{binary_total_bytes}"
            }
            (true, true, _, Some(Percent)) => "  {msg:14} [{bar:24}] {percent}%",
            (true, true, _, _) => "  {msg:14} [{bar:24}] {pos}/{len}",
            (true, false, true, Some(Bytes)) => "  {msg:14} {binary_bytes}",
            (true, false, _, _) => "  {msg}",
        };
        ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ")
    }
}

fn is_worth_telling(stage: &str) -> bool {
    !stage.starts_with("vm.")
}

/// The line of a thing that is done.
fn finished(item: &str, count: Count) -> String {
    match (count.done, count.unit) {
        (Some(done), Some(ProgressUnit::Bytes)) => format!("  {item}  {}", size::format(done)),
        _ => format!("  {item}"),
    }
}

fn write(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stage: &str, item: Option<&str>, done: u64, total: u64) -> Progress {
        Progress {
            item: item.map(str::to_owned),
            done: Some(done),
            total: Some(total),
            unit: Some(ProgressUnit::Bytes),
            ..Progress::stage(stage, "downloading")
        }
    }

    /// What the bars say, and how full they are.
    fn bars(stages: &Stages) -> String {
        let Display::Bars(bars) = &stages.display else { panic!("there are bars") };
        let line = |bar: &Bar| {
            let full = bar.bar.length().map_or(String::new(), |length| format!("/{length}"));
            format!("{} {}{full}\n", bar.bar.message(), bar.bar.position())
        };
        bars.shown.iter().map(line).collect()
    }

    #[test]
    fn every_template_is_one() {
        let units = [
            None,
            Some(ProgressUnit::Bytes),
            Some(ProgressUnit::Items),
            Some(ProgressUnit::Percent),
        ];
        for unit in units {
            for (has_done, has_total) in [(false, false), (true, false), (true, true)] {
                for is_item in [false, true] {
                    let _ = Shape { is_item, has_done, has_total, unit }.style();
                }
            }
        }
    }

    #[test]
    fn only_fetching_is_worth_telling() {
        assert!(is_worth_telling("image.bootstrap"));
        assert!(is_worth_telling("kernel.download"));
        assert!(!is_worth_telling("vm.boot"));
    }

    #[test]
    fn layers_have_lines_below_their_stage_while_they_come() {
        let hidden = Display::Bars(Bars::new(ProgressDrawTarget::hidden()));
        let mut stages =
            Stages { display: hidden, board: Board::default(), since: BTreeMap::new() };
        stages.update(&report("image.download", Some("0123456789ab"), 512, 1024));
        stages.update(&report("image.download", Some("ba9876543210"), 0, 2048));
        insta::assert_snapshot!(bars(&stages), @"
        downloading (0 of 2 done) 512/3072
        0123456789ab 512/1024
        ba9876543210 0/2048
        ");
        stages.update(&report("image.download", Some("0123456789ab"), 1024, 1024));
        stages.update(&report("image.download", Some("third"), 0, 10));
        insta::assert_snapshot!(bars(&stages), @"
        downloading (1 of 3 done) 1024/3082
        ba9876543210 0/2048
        third 0/10
        ");
        stages.update(&Progress::stage("vm.boot", "booting"));
        insta::assert_snapshot!(bars(&stages), @"
        downloading (1 of 3 done) 1024/3082
        ba9876543210 0/2048
        third 0/10
        booting 0
        ");
        stages.finish();
        assert_eq!(bars(&stages), "");
    }

    #[test]
    fn without_a_terminal_a_finished_layer_is_a_line() {
        let count = |done, unit| Count { done, total: done, unit };
        assert_eq!(finished("abc", count(Some(2048), Some(ProgressUnit::Bytes))), "  abc  2 KiB");
        assert_eq!(finished("abc", count(None, None)), "  abc");
        let mut stages = Stages::new(false, false);
        let news = stages.board.update(&report("image.download", Some("abc"), 1, 1));
        let lines: Vec<String> = news.into_iter().filter_map(|news| stages.line_of(news)).collect();
        assert_eq!(lines, ["downloading", "  abc  1 B"]);
    }
}
