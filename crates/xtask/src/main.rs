//! The project's own chores: `cargo xtask dist`, `tidy`, `ci`, `leaks`, `bench`, `host-vm`.
//!
//! A development program: nothing that a user runs depends on it.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a development program: it prints, starts cargo and reads its environment"
)]

mod apt;
mod bench;
mod ci;
mod dist;
mod failure;
mod fsync_kills;
mod fuzz;
mod host_vm;
mod leaks;
mod tidy;
mod torture;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Chores of the banger repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Build everything into target/dist/{bin,libexec,lib}.
    Dist {
        /// Build with the dev profile, into target/dist-dev.
        #[arg(long)]
        dev: bool,
        /// Build with the dev profile and with fail points, into target/dist-faults.
        #[arg(long, conflicts_with = "dev")]
        faults: bool,
    },
    /// Check the rules of the tree: dependencies, doors, sizes, documents.
    Tidy,
    /// What needs neither a virtual machine nor a test run: format, clippy, tidy.
    Ci,
    /// Compare the machine before and after: nothing of ours may be left over.
    Leaks {
        #[command(subcommand)]
        step: LeaksStep,
    },
    /// Run a command in a whole Debian machine with a working KVM, made for it and gone after it.
    HostVm(host_vm::HostVmArgs),
    /// End a machine again and again while it writes and fsyncs, and look for what was lost.
    FsyncKills {
        /// How often.
        #[arg(long, default_value_t = 50)]
        rounds: usize,
        /// The same seed gives the same times; without it, another one each time.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Fuzz every decoder of what a guest, a registry or a file says. Needs cargo-fuzz.
    Fuzz {
        /// For how long each target, in seconds.
        #[arg(long, default_value_t = 300)]
        seconds: u64,
        /// How many targets at once.
        #[arg(long, default_value_t = 1)]
        jobs: usize,
        /// Which; without any, all of them.
        targets: Vec<String>,
    },
    /// Break real machines at every step; `cargo xtask dist --faults` first.
    Torture(torture::Selection),
    /// Measure start, exec, list and memory, as ratios taken in the same run.
    Bench(bench::Selection),
}

#[derive(Debug, Subcommand)]
enum LeaksStep {
    /// Write down what is on the machine now.
    Snapshot {
        /// Where to.
        file: PathBuf,
    },
    /// Fail if anything is there now that was not there then.
    Compare {
        /// What `snapshot` wrote.
        file: PathBuf,
        /// How long what is ending may take to be gone, in seconds.
        #[arg(long, default_value_t = 10)]
        patience: u64,
    },
}

fn main() -> ExitCode {
    let result = match Args::parse().chore {
        Chore::Dist { dev, faults } => dist::build(match (dev, faults) {
            (_, true) => dist::Kind::Faults,
            (true, _) => dist::Kind::Dev,
            _ => dist::Kind::Release,
        }),
        Chore::Torture(selection) => torture::run(&selection),
        Chore::Tidy => tidy::check(),
        Chore::Ci => ci::run(),
        Chore::Leaks { step: LeaksStep::Snapshot { file } } => leaks::snapshot(&file),
        Chore::Leaks { step: LeaksStep::Compare { file, patience } } => {
            leaks::compare(&file, Duration::from_secs(patience))
        }
        // Its exit code is that of the command.
        Chore::HostVm(args) => {
            return host_vm::run(&args).unwrap_or_else(|failure| report(&failure));
        }
        Chore::FsyncKills { rounds, seed } => {
            fsync_kills::run(rounds, seed);
            Ok(())
        }
        Chore::Fuzz { seconds, jobs, targets } => fuzz::run(&fuzz::Plan { seconds, jobs, targets }),
        Chore::Bench(selection) => bench::run(&selection),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn report(failure: &failure::ChoreFailure) -> ExitCode {
    eprintln!("error: {failure}");
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        eprintln!("caused by: {error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}
