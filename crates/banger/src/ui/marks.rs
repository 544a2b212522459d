//! Where the time of a start went: a table, or an object per stage.

use banger_api::trace::{Mark, describe};
use serde::Serialize;

use super::table::{self, Row};

/// A stage, its times counted from the first one's beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Stage {
    stage: String,
    began_us: u64,
    took_us: u64,
}

impl Row for Stage {
    const HEADERS: &'static [&'static str] = &["STAGE", "BEGAN/ms", "TOOK/ms", "WHAT"];

    fn name(&self) -> &str {
        &self.stage
    }

    fn cells(&self) -> Vec<String> {
        let name = self.stage.clone();
        let (began, took) = (milliseconds(self.began_us), milliseconds(self.took_us));
        vec![name, format!("{began:>8}"), format!("{took:>7}"), describe(&self.stage).to_owned()]
    }
}

fn milliseconds(us: u64) -> String {
    format!("{}.{}", us / 1000, us % 1000 / 100)
}

/// In the order in which they began, those that include others first.
fn stages(marks: &[Mark]) -> Vec<Stage> {
    let first_us = marks.iter().map(|mark| mark.began_us).min().unwrap_or(0);
    let stage = |mark: &Mark| Stage {
        stage: mark.stage.clone(),
        began_us: mark.began_us - first_us,
        took_us: mark.ended_us.saturating_sub(mark.began_us),
    };
    let mut stages: Vec<Stage> = marks.iter().map(stage).collect();
    stages.sort_by_key(|stage| (stage.began_us, std::cmp::Reverse(stage.took_us)));
    stages
}

/// For people.
pub fn as_table(marks: &[Mark]) -> String {
    table::render(&stages(marks))
}

/// For programs, one object per line.
pub fn as_json(marks: &[Mark]) -> String {
    let line = |stage: &Stage| serde_json::to_string(stage).unwrap_or_default() + "\n";
    stages(marks).iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_api::trace;

    fn marks() -> Vec<Mark> {
        let mark =
            |stage: &str, began_us, ended_us| Mark { stage: stage.into(), began_us, ended_us };
        vec![
            mark(trace::COMMAND_RUN, 1_120_000, 2_000_000),
            mark(trace::CLI_BEGIN, 1_000_000, 1_000_900),
            mark(trace::SHIM_RULES, 1_010_000, 1_020_000),
            mark(trace::SHIM_NETWORK, 1_010_000, 1_030_049),
            mark("later.stage", 1_110_000, 1_109_000),
        ]
    }

    #[test]
    fn stages_are_told_as_they_began() {
        insta::assert_snapshot!(as_table(&marks()), @r"
        STAGE         BEGAN/ms  TOOK/ms  WHAT
        cli.begin          0.0      0.9  the command line is read
        shim.network      10.0     20.0  network namespace and tap are made
        shim.rules        10.0     10.0  the packet rules are waited for, without which there is no uplink
        later.stage      110.0      0.0
        command.run      120.0    880.0  the command runs
        ");
        insta::assert_snapshot!(as_json(&marks()), @r#"
        {"stage":"cli.begin","began_us":0,"took_us":900}
        {"stage":"shim.network","began_us":10000,"took_us":20049}
        {"stage":"shim.rules","began_us":10000,"took_us":10000}
        {"stage":"later.stage","began_us":110000,"took_us":0}
        {"stage":"command.run","began_us":120000,"took_us":880000}
        "#);
        assert_eq!(as_json(&[]), "");
    }
}
