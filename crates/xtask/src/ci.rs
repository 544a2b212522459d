//! `cargo xtask ci`: everything that needs no virtual machine.

use std::process::Command;

use crate::failure::{self, ChoreFailure};
use crate::{tidy, tree};

/// Format, clippy and tidy, in that order.
///
/// # Errors
/// At the first that fails.
pub fn run() -> Result<(), ChoreFailure> {
    step("format", tree::cargo().args(["fmt", "--all", "--check"]))?;
    step(
        "clippy",
        tree::cargo()
            .args(["clippy", "--locked", "--workspace", "--all-targets", "--"])
            .args(["-D", "warnings"]),
    )?;
    println!("== tidy");
    tidy::check()
}

fn step(name: &str, command: &mut Command) -> Result<(), ChoreFailure> {
    println!("== {name}");
    failure::run(command)
}
