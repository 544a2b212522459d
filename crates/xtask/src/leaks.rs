//! `cargo xtask leaks`: nothing of ours may be on the machine after a test run that was not there
//! before, and nothing that was there may have been taken away.
//!
//! What counts, and how it is found, is `banger_host::leftovers`. `tests/leaks.rs` plants one leak of
//! each kind and sees it found.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_host::leftovers::{Observation, Scope, observe};

use crate::failure::{ChoreFailure, on_file};

/// How often the machine is looked at while something is ending.
const INTERVAL: Duration = Duration::from_millis(200);

/// Writes down what is on the machine.
///
/// # Errors
/// If the file cannot be written.
pub fn snapshot(file: &Path) -> Result<(), ChoreFailure> {
    std::fs::write(file, observe(&scope()).to_lines()).map_err(on_file("write", file))
}

/// Compares what is on the machine with what `snapshot` wrote down.
///
/// # Errors
/// If anything is there that was not there before, and does not go by itself within `patience`; or
/// if a mount, a network device or a firewall rule is gone.
pub fn compare(file: &Path, patience: Duration) -> Result<(), ChoreFailure> {
    let text = std::fs::read_to_string(file).map_err(on_file("read", file))?;
    let before = Observation::from_lines(&text).map_err(|error| {
        ChoreFailure::Found(format!("{} is no snapshot of this program: {error}", file.display()))
    })?;
    let deadline = Instant::now() + patience;
    loop {
        let now = observe(&scope());
        let (left, gone) = (now.since(&before), now.missing_from(&before));
        if left.is_empty() && gone.is_empty() {
            println!("nothing was left over");
            return Ok(());
        }
        if Instant::now() >= deadline {
            print("left over", &left);
            print("taken away", &gone);
            let count = left.things.len() + gone.things.len();
            return Err(ChoreFailure::Found(format!("{count} things differ from before")));
        }
        std::thread::sleep(INTERVAL);
    }
}

/// The whole machine, and the state directories that tests do not make themselves.
fn scope() -> Scope {
    Scope::machine(["/var/lib/banger", "/run/banger"].map(PathBuf::from).to_vec())
}

fn print(what: &str, found: &Observation) {
    for (thing, holder) in &found.things {
        match holder {
            Some(holder) => {
                println!("{what}: {thing} (process {}: {})", holder.pid, holder.command);
            }
            None => println!("{what}: {thing}"),
        }
    }
}
