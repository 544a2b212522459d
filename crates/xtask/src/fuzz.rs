//! `cargo xtask fuzz`: throws bytes at every decoder, a while at each.
//!
//! cargo-fuzz builds the targets, with coverage and with overflow checks, by the stable toolchain:
//! there is no unsafe code of ours in them, so no sanitizer is needed. What is found is a file; the
//! report says how to see it again.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use crate::failure::{ChoreFailure, on_file, run as run_to_end};
use crate::tree;

/// Longest input, in bytes.
const MAX_INPUT: usize = 64 << 10;
/// What one input may take, in seconds; it is slow when nothing else is wrong.
const MAX_INPUT_SECONDS: u64 = 25;
/// Memory that one target may take.
const MAX_MEMORY_MIB: usize = 2048;

/// How to fuzz.
#[derive(Debug)]
pub struct Plan {
    /// For how long each target, in seconds.
    pub seconds: u64,
    /// How many at once.
    pub jobs: usize,
    /// Which; none stands for all.
    pub targets: Vec<String>,
}

/// What came of one target.
struct Outcome {
    line: String,
    found: bool,
}

/// Builds the targets, and runs each for its time.
///
/// # Errors
/// If cargo-fuzz is missing, something does not build, or a target found something.
pub fn run(plan: &Plan) -> Result<(), ChoreFailure> {
    let known = targets()?;
    if let Some(unknown) = plan.targets.iter().find(|name| !known.contains(name)) {
        let all = known.join(", ");
        return Err(ChoreFailure::Found(format!("no target is called {unknown}; there are {all}")));
    }
    let wanted = if plan.targets.is_empty() { known } else { plan.targets.clone() };
    build(&wanted)?;
    let waiting = Mutex::new(VecDeque::from(wanted));
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..plan.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().expect("no panics").pop_front();
                    let Some(target) = next else { return };
                    let outcome = fuzz(&target, plan.seconds);
                    if let Ok(outcome) = &outcome {
                        println!("{}", outcome.line);
                    }
                    outcomes.lock().expect("no panics").push(outcome);
                }
            });
        }
    });
    let outcomes: Result<Vec<Outcome>, _> =
        outcomes.into_inner().expect("no panics").into_iter().collect();
    match outcomes?.iter().filter(|outcome| outcome.found).count() {
        0 => Ok(()),
        count => Err(ChoreFailure::Found(format!("{count} targets found something"))),
    }
}

/// The programs of `fuzz/Cargo.toml`.
fn targets() -> Result<Vec<String>, ChoreFailure> {
    let path = tree::root().join("fuzz/Cargo.toml");
    let text = std::fs::read_to_string(&path).map_err(on_file("read", &path))?;
    let manifest: toml::Table =
        text.parse().map_err(|error: toml::de::Error| ChoreFailure::Found(error.to_string()))?;
    let programs = manifest.get("bin").and_then(toml::Value::as_array).into_iter().flatten();
    let names = programs.filter_map(|program| program.get("name")?.as_str().map(str::to_owned));
    Ok(names.collect())
}

fn build(wanted: &[String]) -> Result<(), ChoreFailure> {
    let mut version = tree::cargo();
    version.args(["fuzz", "--version"]);
    if run_to_end(&mut version).is_err() {
        let text = "cargo-fuzz is missing: cargo install --locked cargo-fuzz";
        return Err(ChoreFailure::Found(text.to_owned()));
    }
    let mut cargo = tree::cargo();
    cargo.args(["fuzz", "build", "--sanitizer", "none", "--debug-assertions", "--target-dir"]);
    cargo.arg(place(""));
    if let [only] = wanted {
        cargo.arg(only);
    }
    run_to_end(&mut cargo)
}

/// Where everything goes that fuzzing makes.
fn place(name: &str) -> PathBuf {
    tree::root().join("target/fuzz").join(name)
}

fn fuzz(target: &str, seconds: u64) -> Result<Outcome, ChoreFailure> {
    let (corpus, found) = (place("corpus").join(target), place("artifacts").join(target));
    for dir in [&corpus, &found] {
        std::fs::create_dir_all(dir).map_err(on_file("make", dir))?;
    }
    let before = files_in(&found);
    let log = place(&format!("{target}.log"));
    let output = File::create(&log).map_err(on_file("write", &log))?;
    let mut program = Command::new(place("x86_64-unknown-linux-gnu/release").join(target));
    program.arg(&corpus).arg(tree::root().join("fuzz/corpus").join(target));
    program.args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={MAX_INPUT}"),
        format!("-timeout={MAX_INPUT_SECONDS}"),
        format!("-rss_limit_mb={MAX_MEMORY_MIB}"),
        format!("-artifact_prefix={}/", found.display()),
        "-print_final_stats=1".to_owned(),
    ]);
    program.stdout(output.try_clone().map_err(on_file("write", &log))?).stderr(output);
    let began = Instant::now();
    let ended = run_to_end(&mut program);
    let text = std::fs::read(&log).map_err(on_file("read", &log))?;
    let text = String::from_utf8_lossy(&text);
    let stat = |name: &str| last_number(&text, name).unwrap_or(0);
    let (executed, covered) = (stat("stat::number_of_executed_units:"), stat("cov:"));
    let mut line = format!(
        "{target:<18} {:>4} s {executed:>10} inputs {covered:>6} edges",
        began.elapsed().as_secs()
    );
    let new: Vec<PathBuf> =
        files_in(&found).into_iter().filter(|file| !before.contains(file)).collect();
    if ended.is_err() {
        line.push_str(&reproduction(target, &new, &log));
    }
    Ok(Outcome { line, found: ended.is_err() })
}

/// What to type to see it again.
fn reproduction(target: &str, new: &[PathBuf], log: &Path) -> String {
    let mut text = format!("\n  FOUND something, see {}", log.display());
    for file in new {
        let program = place("x86_64-unknown-linux-gnu/release").join(target);
        text.push_str(&format!("\n  again:    {} {}", program.display(), file.display()));
        text.push_str(&format!(
            "\n  mended?   cp {} fuzz/corpus/{target}/ && cargo test -p banger-fuzz",
            file.display()
        ));
    }
    text
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The number after the last `name`.
fn last_number(text: &str, name: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once(name)?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let text =
            "#12 NEW cov: 7 ft: 9\n#13 DONE cov: 19 ft: 30\nstat::number_of_executed_units: 4711\n";
        assert_eq!(last_number(text, "cov:"), Some(19));
        assert_eq!(last_number(text, "stat::number_of_executed_units:"), Some(4711));
        assert_eq!(last_number(text, "stat::peak"), None);
    }

    #[test]
    fn the_targets_are_known() {
        assert!(targets().expect("there is a list").contains(&"ext4".to_owned()));
    }
}
