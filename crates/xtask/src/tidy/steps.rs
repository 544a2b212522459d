//! Every named step has its fail point, and everything that looks like a step is one.
//!
//! The types see to it that only a step of [`banger_api::step`] can be passed; this rule, that each
//! of them is, in the code of its own process and nowhere else, and that no stage of progress is
//! announced by a name that is no step.

use banger_api::step::{self, Process, Step};

use super::Finding;
use super::sources::{Source, Sources, code_of};

/// Where the table is.
const TABLE: &str = "crates/banger-api/src/step.rs";
/// What passes a step, right before its name.
const PASSES: [&str; 4] = ["pass(", "reach(", ".step(", ".stage("];
/// Stages of progress that are no steps: waiting, and what only repeats what others do.
const NO_STEPS: [&str; 7] = [
    "image.wait",
    "kernel.wait",
    "image.upload",
    "vm.create",
    "vm.prepare",
    "reset.vms",
    "reset.artifacts",
];

/// The crates whose code runs in a process.
fn crates_of(process: Process) -> &'static [&'static str] {
    match process {
        Process::Daemon => &["crates/bangerd/", "crates/banger-image/"],
        Process::Shim => &["crates/banger-shim/"],
        Process::Agent => &["crates/banger-agent/"],
        Process::Cli => &["crates/banger/"],
    }
}

pub(super) fn check(sources: &Sources) -> Vec<Finding> {
    let files: Vec<&Source> = sources.rust().filter(|source| is_product(source)).collect();
    check_table(&files, step::ALL)
}

fn is_product(source: &Source) -> bool {
    let for_tests =
        ["simulated.rs", "simulated/artifacts.rs", "simulated/launching.rs", "testing.rs"]
            .iter()
            .any(|name| source.path.ends_with(name));
    source.path.starts_with("crates/")
        && !source.is_test()
        && !for_tests
        && source.path != TABLE
        && !source.path.starts_with("crates/xtask/")
        && !source.path.starts_with("crates/banger-testkit/")
}

fn check_table(files: &[&Source], table: &[(&str, Step)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let passed: Vec<(&str, String)> = files.iter().flat_map(|file| passed_in(file)).collect();
    for (constant, step) in table {
        let homes = crates_of(step.process());
        let places = || passed.iter().filter(|(_, name)| name == constant).map(|(path, _)| *path);
        let (here, elsewhere): (Vec<&str>, Vec<&str>) =
            places().partition(|path| homes.iter().any(|home| path.starts_with(home)));
        if here.is_empty() {
            let text = format!("{constant} ({step}) is passed nowhere in {}", homes.join(", "));
            findings.push(Finding::new(TABLE, text));
        }
        for path in elsewhere {
            let text = format!("passes {constant}, a step of {:?}", step.process());
            findings.push(Finding::new(path, text));
        }
    }
    findings.extend(files.iter().flat_map(|file| unknown_stages(file, table)));
    findings
}

/// The lines of a file before its module of tests. Unlike [`Source::product_lines`] this goes on after
/// a module of tests that is in a file of its own.
fn product_lines(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    let end = source.text.find("#[cfg(test)]\nmod tests {").unwrap_or(source.text.len());
    source.text[..end].lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// The constants of the steps that a file passes, each with the file's path.
fn passed_in(source: &Source) -> Vec<(&str, String)> {
    let code: String = product_lines(source).map(|(_, line)| code_of(line).trim()).collect();
    let mut found = Vec::new();
    for pass in PASSES {
        for (at, _) in code.match_indices(pass) {
            let argument = code[at + pass.len()..].trim_start();
            let Some(path) = argument.split([',', ')', '.']).next() else { continue };
            let mut words = path.rsplit("::");
            let (constant, module) = (words.next().unwrap_or_default(), words.next());
            if module.is_some_and(|module| module.starts_with("step")) {
                found.push((source.path.as_str(), constant.trim().to_owned()));
            }
        }
    }
    found
}

/// Stages of progress that are announced by a name in quotes, without a fail point.
fn unknown_stages(source: &Source, table: &[(&str, Step)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in product_lines(source) {
        let code = code_of(line);
        for (at, call) in ["Progress::stage(\"", ".stage(\"", ".step(\""]
            .iter()
            .filter_map(|call| code.find(call).map(|at| (at, *call)))
        {
            let name = code[at + call.len()..].split('"').next().unwrap_or_default();
            if NO_STEPS.contains(&name) {
                continue;
            }
            let known = table.iter().any(|(_, step)| step.name() == name);
            let text = match known {
                true => format!("announces {name} without its fail point: give the step itself"),
                false => format!("announces {name}, which is not in the table of steps ({TABLE})"),
            };
            findings.push(Finding::new(format!("{}:{number}", source.path), text));
            break;
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)], table: &[(&str, Step)]) -> Vec<String> {
        let files: Vec<Source> = files
            .iter()
            .map(|(path, text)| Source { path: (*path).into(), text: (*text).into() })
            .collect();
        let files: Vec<&Source> = files.iter().collect();
        check_table(&files, table).into_iter().map(|finding| finding.text).collect()
    }

    const TWO: &[(&str, Step)] = &[("CREATE_ROW", step::CREATE_ROW), ("VM_DISK", step::VM_DISK)];
    const DAEMON: &str = "crates/bangerd/src/vm/create.rs";
    const SHIM: &str = "crates/banger-shim/src/launch.rs";

    #[test]
    fn a_step_is_passed_in_its_own_process() {
        let good = [
            (DAEMON, "gate\n    .pass(step::CREATE_ROW)\n    .await?"),
            (SHIM, "reporter.step(\n    step::VM_DISK,\n    \"checking\",\n)"),
        ];
        assert_eq!(found(&good, TWO), [""; 0]);
        let missing = found(&good[..1], TWO);
        assert!(missing[0].contains("VM_DISK (vm.disk) is passed nowhere"), "{missing:?}");
        let elsewhere = found(&[good[0], good[1], (SHIM, "fault::reach(step::CREATE_ROW)")], TWO);
        assert_eq!(elsewhere, ["passes CREATE_ROW, a step of Daemon"]);
    }

    #[test]
    fn what_only_tests_or_comments_say_does_not_count() {
        let only_talk = [
            (DAEMON, "// gate.pass(step::CREATE_ROW)\n"),
            (SHIM, "#[cfg(test)]\nmod tests { fault::pass(step::VM_DISK) }"),
        ];
        assert_eq!(found(&only_talk, TWO).len(), 2);
    }

    #[test]
    fn a_stage_without_a_fail_point_is_found() {
        let with = |line: &str| found(&[(DAEMON, line)], &[]);
        assert!(
            with("reporter.stage(\"image.paint\", \"painting\")")[0].contains("not in the table")
        );
        let known = found(
            &[(SHIM, "Progress::stage(\"vm.disk\", \"x\"); fault::pass(step::VM_DISK)")],
            &[("VM_DISK", step::VM_DISK)],
        );
        assert!(known[0].contains("without its fail point"), "{known:?}");
        assert_eq!(with("reporter.stage(\"image.wait\", \"waiting\")"), [""; 0]);
    }
}
