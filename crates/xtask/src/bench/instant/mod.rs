//! `cargo xtask bench --instant`: how long it takes until a VM has run `true` and is gone, beside
//! others that do the same, by turns; and then many VMs at once.
//!
//! `bench/README.md` says what each contender does.

mod agent;
mod contender;
mod copies;
mod crowd;
mod debvm;
mod floor;
mod memory;
mod microvms;
mod ours;
mod picture;
mod plain;
mod provision;
mod report;
mod trial;
mod virtme;

use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_api::shim::{Begin, LaunchSpec};
use banger_api::vm::Accelerator;
use banger_testkit::Host;

use super::figures::Machine;
use super::{readme, starts};
use crate::failure::{ChoreFailure, on_file};
use crate::{dist, tree};
use contender::{Contender, Entry, Reason};

/// How often a warm start is measured unless something else is said.
pub(super) const RUNS: usize = 50;
/// Where the picture goes, and where README.md finds it.
const PICTURE: &str = "docs/instant-start.svg";

/// Everybody who takes part, in the order of the table.
const CONTENDERS: [Contender; 10] = [
    ours::WARM,
    ours::POOL,
    ours::COLD,
    floor::FLOOR,
    plain::AS_BANGER,
    plain::AS_PACKAGED,
    virtme::VIRTME_NG,
    debvm::DEBVM,
    microvms::MICROSANDBOX,
    microvms::FIRECRACKER,
];

/// What contenders have in common: the machine, and the VM that all of them make as alike as they
/// can.
pub(super) struct Stage {
    /// Ours, with image and kernel.
    host: Host,
    /// The same where a guest stands ready.
    pool: Host,
    /// How banger starts a VM: kernel, memory, processors, accelerator.
    spec: LaunchSpec,
    /// What was installed and made for others, and stays: below `target`.
    cache: PathBuf,
}

impl Stage {
    /// Where banger keeps the booted VM that others begin from.
    fn template(&self) -> Result<&Path, Reason> {
        match &self.spec.begin {
            Begin::Restore { saved, .. } => Ok(Path::new(saved)),
            _ => Err(Reason::new("banger keeps no booted VM")),
        }
    }

    fn has_kvm(&self) -> bool {
        self.spec.engine.accelerator == Accelerator::Kvm
    }
}

/// Measures, and prints the tables.
///
/// # Errors
/// If the programs cannot be built, or README.md or the picture cannot be written. A contender that
/// fails is a line of the table.
pub(super) fn run(rounds: usize, into_readme: bool) -> Result<(), ChoreFailure> {
    dist::build(dist::Kind::Release)?;
    let stage = set_up()?;
    let machine = Machine::this(&stage.spec);
    let outcomes = {
        let mut entries: Vec<Entry<'_>> =
            CONTENDERS.iter().map(|contender| contender.enter(&stage)).collect();
        contender::by_turns(&mut entries, rounds);
        entries.into_iter().map(Entry::outcome).collect::<Vec<_>>()
    };
    // Its guest would be in the way of what follows.
    stage.pool.banger(["daemon", "stop"]).run().assert_ok();
    let crowd = crowd::measure(&stage);
    let copies = copies::measure(&stage);
    for host in [stage.host, stage.pool] {
        let reset = host.banger(["system", "reset", "--yes"]);
        reset.timeout(Duration::from_secs(600)).run().assert_ok();
        host.finish();
    }
    let text = report::report(&machine, &outcomes, [&crowd, &copies]);
    println!("{text}");
    if into_readme {
        let path = tree::root().join(PICTURE);
        std::fs::write(&path, picture::draw(&outcomes)).map_err(on_file("write", &path))?;
        let image = format!("![Seconds until a VM has run true and is gone]({PICTURE})");
        readme::write(readme::INSTANT, &format!("{image}\n\n{text}"))?;
    }
    Ok(())
}

fn set_up() -> Result<Stage, ChoreFailure> {
    let host = Host::new();
    let vm = host.running_vm("instant");
    let spec = starts::launch_spec(&host, &vm)?;
    host.banger(["rm", "-f", &vm]).run().assert_ok();
    let cache = tree::root().join("target/bench");
    std::fs::create_dir_all(&cache).map_err(on_file("create", &cache))?;
    let pool = Host::builder().pool(1).build();
    Ok(Stage { host, pool, spec, cache })
}
