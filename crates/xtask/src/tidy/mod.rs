//! `cargo xtask tidy`: the rules of the tree that no compiler knows.
//!
//! Each rule is a function from the [`sources::Sources`] to what it found; a finding says where,
//! what, and what to do instead. `ARCHITECTURE.md` names the invariants that these rules keep.

mod dependencies;
mod documents;
mod doors;
mod sizes;
mod sources;
mod steps;
mod words;

use crate::failure::ChoreFailure;
use sources::Sources;

/// One thing that is not as it must be.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// File and, where it helps, line.
    place: String,
    /// What is wrong and what to do instead.
    text: String,
}

impl Finding {
    fn new(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self { place: place.into(), text: text.into() }
    }
}

type Rule = fn(&Sources) -> Vec<Finding>;

const RULES: [(&str, Rule); 7] = [
    ("dependencies point one way", dependencies::check),
    ("doors are kept", doors::check),
    ("files and functions are small", sizes::check),
    ("every step has its fail point", steps::check),
    ("words that do not belong in the tree", words::check),
    ("modules are documented and well named", documents::check_modules),
    ("documents are true", documents::check_documents),
];

/// Checks every rule, printing what it finds.
///
/// # Errors
/// If anything was found, or the tree cannot be read.
pub fn check() -> Result<(), ChoreFailure> {
    let sources = Sources::read()?;
    let mut count = 0;
    for (name, rule) in RULES {
        let mut findings = rule(&sources);
        findings.sort();
        println!("{} {name}", if findings.is_empty() { "ok  " } else { "BAD " });
        for finding in &findings {
            println!("     {}: {}", finding.place, finding.text);
        }
        count += findings.len();
    }
    if count == 0 { Ok(()) } else { Err(ChoreFailure::Found(format!("tidy found {count} things"))) }
}
