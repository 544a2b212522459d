//! The doctor's judgement: from facts about the machine to verdicts, reasons and cures.
//!
//! [`Facts`] are gathered by `banger-host`'s probe, so everything here can be tried in a table. The
//! checks come in the order in which a VM needs what they check. A check fails only if VMs will not
//! work; what merely makes them slower or less handy is a warning.

mod data;
mod host;
mod programs;
mod remains;

use banger_api::system::{DoctorCheck, DoctorReport, Leftover, Remedy, Verdict};

pub use data::{DaemonFacts, Device, Facts, Kvm, MapRange, Space, Stored};
pub use remains::{Contents, KnownVms, Remains, judge_remains};

use crate::size::GIB;

/// Free space that making the default image and kernel takes.
const SPACE_TO_BUILD: u64 = 3 * GIB;
/// Free space that VMs need to live.
const SPACE_TO_RUN: u64 = GIB / 2;
/// Ids that an image's files may need.
const IDS_NEEDED: u64 = 65_536;
/// The oldest QEMU that is known to work.
const OLDEST_QEMU: (u32, u32) = (7, 2);

/// Judges a machine.
#[must_use]
pub fn judge(facts: &Facts) -> DoctorReport {
    let checks: [fn(&Facts) -> Option<DoctorCheck>; 20] = [
        host::architecture,
        host::installation,
        host::settings,
        host::user_namespaces,
        host::id_ranges,
        programs::id_mappers,
        host::jail_user,
        host::kvm,
        programs::qemu,
        host::tun,
        programs::pasta,
        programs::nft,
        programs::mke2fs,
        programs::mmdebstrap,
        programs::git,
        host::image,
        host::kernel,
        host::space,
        host::runtime_dir,
        host::daemon,
    ];
    DoctorReport { checks: checks.iter().filter_map(|check| check(facts)).collect() }
}

fn check(name: &str, verdict: Verdict, reason: impl Into<String>) -> DoctorCheck {
    DoctorCheck {
        name: name.to_owned(),
        verdict,
        reason: reason.into(),
        fix: None,
        found: Vec::new(),
    }
}

/// What is left over from crashes, as one check of the report.
#[must_use]
pub fn check_remains(found: Vec<Leftover>, known: &KnownVms) -> DoctorCheck {
    const NAME: &str = "leftovers";
    let unasked = match known {
        KnownVms::Ids(_) => "",
        KnownVms::Unknown => " (the daemon does not run, so VMs' directories were not compared)",
    };
    let to_do = found.iter().filter(|leftover| leftover.remedy != Remedy::Keep).count();
    let mut check = match to_do {
        0 => pass(NAME, format!("nothing is left over from crashes{unasked}")),
        1 => warn(NAME, format!("1 thing is left over{unasked}")).fix("banger doctor --fix"),
        n => warn(NAME, format!("{n} things are left over{unasked}")).fix("banger doctor --fix"),
    };
    check.found = found;
    check
}

fn pass(name: &str, reason: impl Into<String>) -> DoctorCheck {
    check(name, Verdict::Pass, reason)
}

fn warn(name: &str, reason: impl Into<String>) -> DoctorCheck {
    check(name, Verdict::Warn, reason)
}

fn fail(name: &str, reason: impl Into<String>) -> DoctorCheck {
    check(name, Verdict::Fail, reason)
}

/// A check with the command that mends it.
trait Mend {
    /// The same check, with a command for whoever may run it.
    fn fix(self, command: impl Into<String>) -> DoctorCheck;

    /// The same check, with a command for root.
    fn fix_as_root(self, facts: &Facts, command: &str) -> DoctorCheck;

    /// The same check, with the installation of a Debian package.
    fn install(self, facts: &Facts, package: &str) -> DoctorCheck;
}

impl Mend for DoctorCheck {
    fn fix(mut self, command: impl Into<String>) -> DoctorCheck {
        self.fix = Some(command.into());
        self
    }

    fn fix_as_root(self, facts: &Facts, command: &str) -> DoctorCheck {
        let sudo = if facts.uid == 0 { "" } else { "sudo " };
        self.fix(format!("{sudo}{command}"))
    }

    fn install(self, facts: &Facts, package: &str) -> DoctorCheck {
        if facts.programs.contains("apt-get") {
            return self.fix_as_root(facts, &format!("apt-get install -y {package}"));
        }
        self.fix(format!("install what Debian has in the package {package}"))
    }
}

#[cfg(test)]
mod tests;
