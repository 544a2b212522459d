//! `cargo xtask torture`: every step × every process × every way to break, on real machines.
//!
//! The full product takes hours. It can be cut into shards and into slices of time, and goes on
//! where it stopped: what came of a case stands in `target/torture/results.tsv`, a line each. They
//! go into the table in docs/reliability.md, which keeps the rest and says how many there are.
//! Beside what each case checks in its own directories, the whole machine is compared before and
//! after all of them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use banger_api::step::{self, Who};
use banger_testkit::torture::{self, Case, Verdict, WAYS};

use crate::failure::{ChoreFailure, capture, on_file};
use crate::{leaks, tree};

const DOCUMENT: &str = "docs/reliability.md";
const BEGIN: &str = "<!-- torture -->";
/// How long what the last cases ended may take to go.
const LEAVING: Duration = Duration::from_secs(60);
const END: &str = "<!-- /torture -->";

/// Which cases to run.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// Only the Ith of N parts: I/N.
    #[arg(long, value_parser = shard)]
    shard: Option<(usize, usize)>,
    /// Leave out what has been run before and broke no promise.
    #[arg(long)]
    resume: bool,
    /// Only cases whose names (step/process/way) contain this.
    #[arg(long)]
    only: Option<String>,
    /// Begin no case after so many minutes.
    #[arg(long)]
    minutes: Option<u64>,
    /// So many parts beside each other.
    #[arg(long, conflicts_with = "shard")]
    jobs: Option<usize>,
}

fn shard(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((i, n)) if i >= 1 && i <= n => Ok((i, n)),
        _ => Err("I/N, with I from 1 to N".to_owned()),
    }
}

/// Runs the selected cases and writes the table.
///
/// # Errors
/// If a case broke a promise, anything is left on the machine, or a file cannot be written.
pub fn run(selection: &Selection) -> Result<(), ChoreFailure> {
    if selection.shard.is_some() {
        return run_here(selection);
    }
    let before = Results::file().with_file_name("machine");
    Results::make_dir()?;
    leaks::snapshot(&before)?;
    let outcome = match selection.jobs {
        None | Some(0 | 1) => run_here(selection),
        Some(jobs) => run_beside(jobs, selection),
    };
    let left = leaks::compare(&before, LEAVING);
    outcome.and(left)
}

/// Runs all parts beside each other, each by this program.
fn run_beside(jobs: usize, selection: &Selection) -> Result<(), ChoreFailure> {
    let program = std::env::current_exe().map_err(on_file("find", Path::new("this program")))?;
    let mut parts = Vec::new();
    for number in 1..=jobs {
        let mut part = Command::new(&program);
        part.arg("torture").args(selection.arguments());
        part.arg("--shard").arg(format!("{number}/{jobs}"));
        parts.push(part.spawn().map_err(on_file("start", &program))?);
    }
    let mut all_held = true;
    for mut part in parts {
        all_held &= part.wait().map_err(on_file("wait for", &program))?.success();
    }
    match all_held {
        true => Ok(()),
        false => Err(ChoreFailure::Found("cases broke a promise".to_owned())),
    }
}

fn run_here(selection: &Selection) -> Result<(), ChoreFailure> {
    let mut results = Results::read()?;
    let deadline =
        selection.minutes.map(|minutes| Instant::now() + Duration::from_secs(minutes * 60));
    for case in selection.cases(&results) {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            println!("the time is over; --resume goes on");
            break;
        }
        let began = Instant::now();
        let outcome = Outcome::of(case);
        println!("{:<44} {} ({} s)", case.to_string(), outcome.word(), began.elapsed().as_secs());
        results.add(case, outcome)?;
    }
    // Other shards may have written meanwhile.
    let results = Results::read()?;
    results.write_table()?;
    let broken = results.count(Outcome::Broken);
    if broken == 0 {
        Ok(())
    } else {
        Err(ChoreFailure::Found(format!("{broken} cases broke a promise")))
    }
}

impl Selection {
    /// The arguments that select the same, but for the part.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if self.resume {
            arguments.push("--resume".to_owned());
        }
        if let Some(only) = &self.only {
            arguments.push(format!("--only={only}"));
        }
        if let Some(minutes) = self.minutes {
            arguments.push(format!("--minutes={minutes}"));
        }
        arguments
    }

    fn cases(&self, results: &Results) -> Vec<Case> {
        let (index, count) = self.shard.unwrap_or((1, 1));
        let wanted =
            |case: &Case| self.only.as_ref().is_none_or(|only| case.to_string().contains(only));
        // Turned by one from group to group, so that every shard has every process and every way.
        let is_mine = |number: usize| (number + number / count) % count == index - 1;
        let mine = torture::cases().into_iter().enumerate().filter(|(number, _)| is_mine(*number));
        mine.map(|(_, case)| case)
            .filter(wanted)
            .filter(|case| !self.resume || results.is_open(*case))
            .collect()
    }
}

/// What came of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Every promise held.
    Held,
    /// The process does not live there.
    Nobody,
    /// A promise was broken.
    Broken,
}

impl Outcome {
    fn of(case: Case) -> Self {
        match std::panic::catch_unwind(|| torture::run(case)) {
            Ok(Verdict::Held) => Self::Held,
            Ok(Verdict::Nobody) => Self::Nobody,
            Err(_) => Self::Broken,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Nobody => "nobody",
            Self::Broken => "BROKEN",
        }
    }

    fn letter(self) -> char {
        match self {
            Self::Held => '+',
            Self::Nobody => '-',
            Self::Broken => '!',
        }
    }

    const ALL: [Self; 3] = [Self::Held, Self::Nobody, Self::Broken];

    fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.word() == word)
    }

    fn of_letter(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.letter() == letter)
    }
}

/// All results so far, by the names of the cases.
#[derive(Debug, Default)]
struct Results {
    file: PathBuf,
    by_name: BTreeMap<String, Outcome>,
}

impl Results {
    fn file() -> PathBuf {
        tree::root().join("target/torture/results.tsv")
    }

    fn make_dir() -> Result<(), ChoreFailure> {
        let file = Self::file();
        let dir = file.parent().expect("it is in a directory");
        std::fs::create_dir_all(dir).map_err(on_file("create", dir))
    }

    fn read() -> Result<Self, ChoreFailure> {
        let file = Self::file();
        Self::make_dir()?;
        let document = tree::root().join(DOCUMENT);
        let text = std::fs::read_to_string(&document).map_err(on_file("read", &document))?;
        let mut by_name = parse_table(&text);
        by_name.extend(parse(&std::fs::read_to_string(&file).unwrap_or_default()));
        Ok(Self { by_name, file })
    }

    /// Whether nothing is known of the case, or nothing good.
    fn is_open(&self, case: Case) -> bool {
        self.of(case).is_none_or(|outcome| outcome == Outcome::Broken)
    }

    fn of(&self, case: Case) -> Option<Outcome> {
        self.by_name.get(&case.to_string()).copied()
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.by_name.values().filter(|found| **found == outcome).count()
    }

    /// Appended at once: whoever ends this chore loses one case.
    fn add(&mut self, case: Case, outcome: Outcome) -> Result<(), ChoreFailure> {
        let line = format!("{case}\t{}\n", outcome.word());
        let file = std::fs::OpenOptions::new().append(true).create(true).open(&self.file);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .map_err(on_file("write", &self.file))?;
        self.by_name.insert(case.to_string(), outcome);
        Ok(())
    }

    fn write_table(&self) -> Result<(), ChoreFailure> {
        let path = tree::root().join(DOCUMENT);
        let text = std::fs::read_to_string(&path).map_err(on_file("read", &path))?;
        let table = format!("{}\n\n{}", self.summary()?, self.table());
        let Some(text) = between_markers(&text, &table) else {
            return Err(ChoreFailure::Found(format!("{DOCUMENT} has no {BEGIN} … {END}")));
        };
        std::fs::write(&path, text).map_err(on_file("write", Path::new(DOCUMENT)))
    }

    fn summary(&self) -> Result<String, ChoreFailure> {
        let date = capture(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (held, nobody) = (self.count(Outcome::Held), self.count(Outcome::Nobody));
        Ok(format!(
            "{}, {cpus} processors, Linux, QEMU with tcg: {} of {} cases run; {held} broke and held \
             every promise, in {nobody} there was nobody to break, {} broke a promise.",
            date.trim(),
            self.by_name.len(),
            torture::cases().len(),
            self.count(Outcome::Broken),
        ))
    }

    /// One row for each step with a result; in a cell one letter for each way.
    fn table(&self) -> String {
        let heads: Vec<String> = Who::EVERYBODY.iter().map(ToString::to_string).collect();
        let mut table =
            format!("| step | {} |\n|---{}|\n", heads.join(" | "), "|---".repeat(heads.len()));
        for (_, step) in step::ALL {
            let cell = |who| {
                let outcome = |what| self.of(Case { step: *step, who, what });
                WAYS.map(|what| outcome(what).map_or('?', Outcome::letter))
                    .iter()
                    .collect::<String>()
            };
            let cells: Vec<String> = Who::EVERYBODY.into_iter().map(cell).collect();
            if cells.iter().any(|cell| cell != "???") {
                table.push_str(&format!("| `{step}` | {} |\n", cells.join(" | ")));
            }
        }
        table
    }
}

fn parse(text: &str) -> BTreeMap<String, Outcome> {
    let line = |line: &str| {
        let (name, word) = line.split_once('\t')?;
        // Of steps that were renamed nothing is known.
        torture::case(name)?;
        Some((name.to_owned(), Outcome::named(word)?))
    };
    text.lines().filter_map(line).collect()
}

/// What the table in a text says: rows as [`Results::table`] writes them.
fn parse_table(text: &str) -> BTreeMap<String, Outcome> {
    let mut by_name = BTreeMap::new();
    for row in text.lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, step, cells @ .., _] = cells.as_slice() else { continue };
        let step = step.trim_matches('`');
        for (who, cell) in Who::EVERYBODY.into_iter().zip(cells) {
            for (what, letter) in WAYS.into_iter().zip(cell.chars()) {
                let name = format!("{step}/{who}/{what}");
                let outcome = Outcome::of_letter(letter).filter(|_| torture::case(&name).is_some());
                by_name.extend(outcome.map(|outcome| (name, outcome)));
            }
        }
    }
    by_name
}

fn between_markers(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn results_are_read_back_and_shown() {
        let text = "create.row/daemon/crash\theld\ncreate.row/vmm/stall\tnobody\n\
                    no.step/daemon/crash\theld\ncreate.row/cli/fail\tBROKEN\n";
        let results = Results { file: PathBuf::new(), by_name: parse(text) };
        assert_eq!(results.by_name.len(), 3, "of an unknown step nothing is known");
        let table = results.table();
        assert!(table.contains("| `create.row` | +?? | ??? | ??- | ??? | ??? | ?!? |"), "{table}");
        assert!(!table.contains("create.disk"), "nothing was run there");
        assert_eq!(parse_table(&table), results.by_name, "a table is read back, too");
        let is_open = |name: &str| results.is_open(torture::case(name).expect("a case"));
        assert!(is_open("create.row/cli/fail") && is_open("create.row/cli/crash"));
        assert!(!is_open("create.row/daemon/crash"));
    }

    #[test]
    fn shards_are_disjoint_and_together_all() {
        let none = Results::default();
        let select = |text: &str| Selection {
            shard: Some(shard(text).expect("a shard")),
            resume: false,
            only: None,
            minutes: None,
            jobs: None,
        };
        let parts = ["1/3", "2/3", "3/3"].map(|text| select(text).cases(&none));
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), torture::cases().len());
        let names: BTreeSet<String> = parts.iter().flatten().map(ToString::to_string).collect();
        assert_eq!(names.len(), torture::cases().len());
        for part in parts {
            assert!(WAYS.iter().all(|what| part.iter().any(|case| case.what == *what)));
        }
        assert!(shard("0/3").is_err() && shard("4/3").is_err() && shard("x").is_err());
    }

    #[test]
    fn the_table_goes_between_its_markers() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = between_markers(&text, "new\n").expect("markers");
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        assert_eq!(between_markers("nothing", "new"), None);
    }
}
