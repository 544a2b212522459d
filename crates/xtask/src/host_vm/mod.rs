//! `cargo xtask host-vm`: a whole Debian machine, emulated, with the tree in it.
//!
//! The machine (L1) has an AMD processor with SVM as QEMU's tcg emulates it, so KVM works inside,
//! and a systemd, an AppArmor and a power button of its own: what a development machine lacks, or
//! what nobody wants to try on it. Everything about it ends with the command; see docs/host-vm.md.

mod guest;
mod image;
mod machine;
mod parcel;
mod suites;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::failure::{ChoreFailure, on_file};
use crate::tree;
use guest::Who;
use image::Kind;
use machine::{Machine, Plan};

/// Options of `cargo xtask host-vm`.
#[derive(Debug, Args)]
pub struct HostVmArgs {
    /// Run the command as root and not as the ordinary user `tester`.
    #[arg(long)]
    root: bool,
    /// Make the machine's image anew, with the packages of today.
    #[arg(long)]
    fresh: bool,
    /// Keep the machine's disks and the log of its console, and say where they are.
    #[arg(long)]
    keep: bool,
    /// A machine on which nothing that banger needs is installed.
    #[arg(long)]
    blank: bool,
    /// Let the machine reach what this one reaches; without it, it has no network.
    #[arg(long)]
    network: bool,
    /// Let the user's services live on after logout, as `loginctl enable-linger` does.
    #[arg(long)]
    linger: bool,
    /// Take the programs of `cargo xtask dist --dev`.
    #[arg(long)]
    dev: bool,
    /// Run one of the prepared suites, or `all`; `list` names them.
    #[arg(long, conflicts_with = "command")]
    suite: Option<String>,
    /// What to run, in the copied tree, in a login session of its own.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Where everything of host-vm is.
fn home() -> PathBuf {
    tree::root().join("target/host-vm")
}

/// Boots, runs, brings back the results and the exit code.
///
/// # Errors
/// If the machine cannot be made, booted or reached. That the command fails is no error.
pub fn run(args: &HostVmArgs) -> Result<ExitCode, ChoreFailure> {
    match args.suite.as_deref() {
        Some("list") => {
            suites::list();
            Ok(ExitCode::SUCCESS)
        }
        Some(name) => suites::run(name, args),
        None if args.command.is_empty() => {
            Err(ChoreFailure::Found("say what to run: cargo xtask host-vm -- CMD".to_owned()))
        }
        None => command(args),
    }
}

fn command(args: &HostVmArgs) -> Result<ExitCode, ChoreFailure> {
    let kind = if args.blank { Kind::Blank } else { Kind::Ready };
    let plan = Plan { kind, network: args.network, persistent: false };
    let session = Session::begin(args, plan)?;
    session.machine.prepare(args.linger)?;
    let who = if args.root { Who::Root } else { Who::Tester };
    let code = session.machine.ssh(who, &guest::in_tree(&guest::quoted(&args.command)))?;
    session.end(args.keep)?;
    Ok(ExitCode::from(code))
}

/// A machine that runs, and the directory it lives in.
struct Session {
    machine: Machine,
    dir: PathBuf,
    _alive: File,
}

impl Session {
    fn begin(args: &HostVmArgs, plan: Plan) -> Result<Self, ChoreFailure> {
        sweep()?;
        // Of two that want the same image one makes it.
        let making = locked(&home().join("making.lock"))?;
        let image = image::ensure(plan.kind, args.fresh)?;
        let seed = parcel::ensure_seed(args.dev)?;
        drop(making);
        let dir = home().join("runs").join(std::process::id().to_string());
        std::fs::create_dir_all(&dir).map_err(on_file("create", &dir))?;
        let alive = locked(&dir.join("alive"))?;
        parcel::make_tree(&dir, args.dev)?;
        let machine = Machine::new(plan, &image, &seed, &dir)?;
        Ok(Self { machine, dir, _alive: alive })
    }

    /// Brings the results back and ends the machine.
    fn end(mut self, keep: bool) -> Result<(), ChoreFailure> {
        self.machine.fetch_results(&home().join("results"))?;
        self.machine.kill();
        if keep {
            println!("kept: {}", self.dir.display());
            return std::fs::rename(&self.dir, self.dir.with_extension("kept"))
                .map_err(on_file("rename", &self.dir));
        }
        std::fs::remove_dir_all(&self.dir).map_err(on_file("remove", &self.dir))
    }
}

/// Removes what runs that were killed have left; QEMU itself dies with its xtask.
fn sweep() -> Result<(), ChoreFailure> {
    let runs = home().join("runs");
    std::fs::create_dir_all(&runs).map_err(on_file("create", &runs))?;
    for entry in std::fs::read_dir(&runs).map_err(on_file("read", &runs))?.flatten() {
        let dir = entry.path();
        if dir.extension().is_none() && is_abandoned(&dir) {
            std::fs::remove_dir_all(&dir).map_err(on_file("remove", &dir))?;
        }
    }
    Ok(())
}

fn locked(path: &Path) -> Result<File, ChoreFailure> {
    let file = File::create(path).map_err(on_file("create", path))?;
    file.lock().map_err(on_file("lock", path))?;
    Ok(file)
}

fn is_abandoned(dir: &Path) -> bool {
    File::open(dir.join("alive")).is_ok_and(|file| file.try_lock().is_ok())
}
