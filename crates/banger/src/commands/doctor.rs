//! `banger doctor`.

mod fix;

use std::collections::BTreeSet;

use banger_api::system::{DoctorCheck, Verdict, VmIds};
use banger_core::doctor::{self, DaemonFacts, KnownVms};
use banger_core::spec;
use banger_host::leftovers::state;
use banger_host::paths::StateDirs;
use banger_host::probe::{self, Known};
use clap::Args;

use crate::client::{self, Client};
use crate::failure::Failure;
use crate::ui::{Row, Ui};

/// Exit code if VMs will not work.
const UNHEALTHY: u8 = 1;

/// Arguments of `banger doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Remove what crashes left over, saying what it is and why it is banger's
    #[arg(long)]
    fix: bool,
    /// With --fix: also delete disks that belong to no VM, instead of setting them aside
    #[arg(long, requires = "fix")]
    discard: bool,
}

impl Doctor {
    /// Looks at the machine, and says what is wrong and how to mend it. The daemon is not needed,
    /// and not started.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        if self.fix {
            return fix::run(self.discard, ui).await;
        }
        let dirs = StateDirs::locate()?;
        // Before the daemon is asked which VMs there are: one that is made meanwhile is known then.
        let remains = state::find(&dirs);
        let daemon = client::observe_daemon(&dirs).await;
        let known =
            Known { dirs: &dirs, image: spec::DEFAULT_IMAGE, kernel: spec::DEFAULT_KERNEL, daemon };
        let vms = match &known.daemon {
            DaemonFacts::Up { is_compatible: true, .. } => ask(Client::running().await?).await,
            _ => KnownVms::Unknown,
        };
        let mut report = doctor::judge(&probe::facts(known));
        let left = doctor::judge_remains(&remains, &vms, false);
        report.checks.push(doctor::check_remains(left, &vms));
        if ui.is_json() {
            ui.list(&report.checks)?;
        } else {
            ui.text(&text(&report.checks))?;
        }
        Ok(match report.verdict() {
            Verdict::Fail => UNHEALTHY,
            Verdict::Pass | Verdict::Warn => 0,
        })
    }
}

/// Which VMs there are, if that daemon tells.
async fn ask(client: Option<Client>) -> KnownVms {
    let Some(client) = client else { return KnownVms::Unknown };
    match client.get::<VmIds>("/v1/system/vm-ids").await {
        Ok(VmIds { ids }) => KnownVms::Ids(BTreeSet::from_iter(ids)),
        // One of an older release cannot be asked.
        Err(_) => KnownVms::Unknown,
    }
}

/// One line per check, and below it the command that mends it.
fn text(checks: &[DoctorCheck]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let word = word(check.verdict);
        text.push_str(&format!("{word}  {:width$}  {}\n", check.name, check.reason));
        for left in &check.found {
            text.push_str(&format!("      {:width$}  {}: {}\n", "", fix::name(left), left.why));
        }
        if let Some(fix) = &check.fix {
            text.push_str(&format!("      {:width$}  mend with: {fix}\n", ""));
        }
    }
    text
}

/// The verdict, so that what needs attention stands out without colour.
fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Warn => "WARN",
        Verdict::Fail => "FAIL",
    }
}

impl Row for DoctorCheck {
    const HEADERS: &'static [&'static str] = &["CHECK", "VERDICT", "REASON"];

    fn name(&self) -> &str {
        &self.name
    }

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), word(self.verdict).to_owned(), self.reason.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_how_to_mend() {
        let check = |name: &str, verdict, fix: Option<&str>| DoctorCheck {
            name: name.to_owned(),
            verdict,
            reason: format!("about {name}"),
            fix: fix.map(str::to_owned),
            found: Vec::new(),
        };
        let checks = [
            check("kvm", Verdict::Warn, Some("sudo usermod -aG kvm ann")),
            check("disk-space", Verdict::Pass, None),
            check("pasta", Verdict::Fail, Some("sudo apt-get install -y passt")),
        ];
        insta::assert_snapshot!(text(&checks), @r"
        WARN  kvm         about kvm
                          mend with: sudo usermod -aG kvm ann
        pass  disk-space  about disk-space
        FAIL  pasta       about pasta
                          mend with: sudo apt-get install -y passt
        ");
    }
}
