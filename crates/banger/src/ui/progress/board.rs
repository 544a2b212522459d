//! What is known of an operation's progress, and what of it is worth showing. Pure: nothing here
//! prints or looks at a clock.

use std::collections::BTreeSet;

use banger_api::operation::{Progress, ProgressUnit};

use crate::ui::message;

/// How many things of one stage are shown at the same time.
const VISIBLE_ITEMS: usize = 6;

/// The stages that are under way.
#[derive(Debug, Default)]
pub(super) struct Board {
    open: Vec<Stage>,
    told: BTreeSet<String>,
    /// Stage and name of each thing whose end was told: a stage can be closed and go on.
    done: BTreeSet<(String, String)>,
}

/// A stage that is under way.
#[derive(Debug)]
struct Stage {
    name: String,
    /// What it said first, by which it is remembered.
    title: String,
    /// What it says now.
    message: String,
    count: Count,
    items: Vec<Item>,
}

/// One of the things that a stage does at the same time.
#[derive(Debug)]
struct Item {
    name: String,
    message: String,
    count: Count,
}

/// How much of something is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// Units done, where they can be counted.
    pub done: Option<u64>,
    /// Units in all, where that is known.
    pub total: Option<u64>,
    /// What is counted.
    pub unit: Option<ProgressUnit>,
}

/// What a report has changed, for displays that only add lines.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A stage ended.
    Ended {
        /// Its stable name.
        stage: String,
        /// What it did.
        message: String,
    },
    /// A stage began that was not told of before.
    Began {
        /// Its stable name.
        stage: String,
        /// What it does.
        message: String,
    },
    /// One of a stage's things is done.
    ItemDone {
        /// The stage's stable name.
        stage: String,
        /// The thing.
        item: String,
        /// How much it was.
        count: Count,
    },
}

/// A line on a terminal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// Which line it is: the same as long as it is about the same thing.
    pub key: String,
    /// What it says.
    pub text: String,
    /// What its bar shows.
    pub count: Count,
    /// Whether it is about a thing of the stage above it.
    pub is_item: bool,
}

impl Board {
    /// Takes a report in.
    pub(super) fn update(&mut self, progress: &Progress) -> Vec<News> {
        let mut news = Vec::new();
        let found = self.open.iter().position(|stage| stage.name == progress.stage);
        let index = found.unwrap_or_else(|| {
            // What still has something under way goes on beside the new stage.
            news.extend(self.close(Stage::is_idle));
            self.open.push(Stage::new(progress));
            if self.told.insert(progress.stage.clone()) {
                let message = message::clean(&progress.message);
                news.push(News::Began { stage: progress.stage.clone(), message });
            }
            self.open.len() - 1
        });
        let item_done = self.open[index].update(progress);
        news.extend(item_done.filter(|_| {
            let item = progress.item.clone().unwrap_or_default();
            self.done.insert((progress.stage.clone(), item))
        }));
        news
    }

    /// The work is done: so is everything that was under way.
    pub(super) fn finish(&mut self) -> Vec<News> {
        self.close(|_| true)
    }

    /// Forgets what was under way.
    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    /// The lines that a terminal shows now.
    pub(super) fn lines(&self) -> Vec<Shown> {
        self.open.iter().flat_map(Stage::lines).collect()
    }

    fn close(&mut self, which: impl Fn(&Stage) -> bool) -> Vec<News> {
        let (closed, open) = std::mem::take(&mut self.open).into_iter().partition(which);
        self.open = open;
        let ended = |stage: Stage| News::Ended { stage: stage.name, message: stage.title };
        Vec::into_iter(closed).map(ended).collect()
    }
}

impl Stage {
    fn new(progress: &Progress) -> Self {
        let title = message::clean(&progress.message);
        let (name, message) = (progress.stage.clone(), title.clone());
        Self { name, title, message, count: Count::default(), items: Vec::new() }
    }

    /// Whether nothing is known to be under way in it.
    fn is_idle(&self) -> bool {
        self.items.iter().all(|item| item.count.is_complete())
    }

    /// Takes a report in. Some if it is about a thing that is done.
    fn update(&mut self, progress: &Progress) -> Option<News> {
        let count = Count::of(progress);
        let Some(name) = &progress.item else {
            self.message = message::clean(&progress.message);
            self.count = count;
            return None;
        };
        let index = self.items.iter().position(|item| item.name == *name).unwrap_or_else(|| {
            self.items.push(Item::new(name));
            self.items.len() - 1
        });
        let item = &mut self.items[index];
        item.message = message::clean(&progress.message);
        item.count = count;
        count.is_complete().then(|| News::ItemDone {
            stage: self.name.clone(),
            item: message::clean(name),
            count,
        })
    }

    fn lines(&self) -> Vec<Shown> {
        let mut lines = vec![Shown {
            key: self.name.clone(),
            text: self.head(),
            count: self.total(),
            is_item: false,
        }];
        let under_way = || self.items.iter().filter(|item| !item.count.is_complete());
        lines.extend(under_way().take(VISIBLE_ITEMS).map(|item| Shown {
            key: format!("{}\0{}", self.name, item.name),
            text: item.text(&self.message),
            count: item.count,
            is_item: true,
        }));
        let hidden = under_way().skip(VISIBLE_ITEMS).count();
        if hidden > 0 {
            lines.push(Shown {
                key: format!("{}\0", self.name),
                text: format!("and {hidden} more"),
                count: Count::default(),
                is_item: true,
            });
        }
        lines
    }

    /// What the stage does, and how many of its things are done.
    fn head(&self) -> String {
        if self.items.len() < 2 {
            return self.message.clone();
        }
        let done = self.items.iter().filter(|item| item.count.is_complete()).count();
        format!("{} ({done} of {} done)", self.message, self.items.len())
    }

    /// The stage's own count, else that of its things together.
    fn total(&self) -> Count {
        if self.count != Count::default() {
            return self.count;
        }
        let unit = self.items.first().and_then(|item| item.count.unit);
        let sum = |part: fn(&Count) -> Option<u64>| {
            unit?;
            let mut parts = self.items.iter().map(|item| part(&item.count));
            parts.try_fold(0_u64, |sum, part| Some(sum.saturating_add(part?)))
        };
        Count { done: sum(|count| count.done), total: sum(|count| count.total), unit }
    }
}

impl Item {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), message: String::new(), count: Count::default() }
    }

    /// Its name, and what is done to it if the stage does not say that already.
    fn text(&self, stage: &str) -> String {
        let name = message::clean(&self.name);
        match self.message.as_str() {
            "" => name,
            message if message == stage || message == name => name,
            message => format!("{name} {message}"),
        }
    }
}

impl Count {
    fn of(progress: &Progress) -> Self {
        Self { done: progress.done, total: progress.total, unit: progress.unit }
    }

    fn is_complete(&self) -> bool {
        matches!((self.done, self.total), (Some(done), Some(total)) if done >= total)
    }
}

#[cfg(test)]
mod tests;
