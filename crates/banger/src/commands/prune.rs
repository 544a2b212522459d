//! `banger prune`.

use banger_api::vm::{PruneVms, Pruned};
use banger_core::size;
use clap::Args;

use crate::client::Client;
use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger prune`.
#[derive(Debug, Args)]
pub struct Prune {
    /// Only show what would go
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Prune {
    /// Shows what goes, asks, removes.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let client = Client::ready(ui).await?;
        let plan: Pruned = client.post("/v1/vms/prune", &PruneVms { dry_run: true }).await?;
        if self.dry_run || plan.vms.is_empty() {
            return report(&plan, "would free", ui);
        }
        if !self.yes {
            for name in &plan.vms {
                ui.note(name);
            }
            let what = counted(plan.vms.len());
            let question = format!("Remove {what} ({})?", size::format(plan.bytes));
            if !ui.confirm(&question)? {
                return Ok(0);
            }
        }
        let done: Pruned = client.post("/v1/vms/prune", &PruneVms { dry_run: false }).await?;
        report(&done, "freed", ui)
    }
}

fn counted(vms: usize) -> String {
    if vms == 1 { "1 VM".to_owned() } else { format!("{vms} VMs") }
}

fn report(pruned: &Pruned, verb: &str, ui: &Ui) -> Result<u8, Failure> {
    if ui.is_json() {
        ui.json(pruned)?;
        return Ok(0);
    }
    for name in &pruned.vms {
        ui.line(name)?;
    }
    if pruned.vms.is_empty() {
        ui.note("no VM has ended");
    } else {
        let what = counted(pruned.vms.len());
        ui.note(&format!("{what}, {verb} {}", size::format(pruned.bytes)));
    }
    Ok(0)
}
