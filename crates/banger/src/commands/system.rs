//! `banger system …`.

use banger_api::operation::Operation;
use banger_api::system::{DiskUse, DiskUseRow, ResetPlan, ResetRequest};
use banger_core::size;
use clap::{Args, Subcommand};

use crate::client::{Client, Patience, follow};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::ui::{Row, Ui};

/// The verbs of the system.
#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Show what takes how much of the disk
    Df,
    /// Stop and remove everything: VMs, images, kernels
    Reset(Reset),
}

/// Arguments of `banger system reset`.
#[derive(Debug, Args)]
pub struct Reset {
    /// Only show what would go
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Does one of them.
pub async fn run(command: SystemCommand, ui: &Ui) -> Result<u8, Failure> {
    match command {
        SystemCommand::Df => df(ui).await,
        SystemCommand::Reset(args) => args.run(ui).await,
    }
}

async fn df(ui: &Ui) -> Result<u8, Failure> {
    let used: DiskUse = Client::ready(ui).await?.get("/v1/system/df").await?;
    if ui.is_json() {
        ui.json(&used)?;
        return Ok(0);
    }
    ui.list(&used.rows)?;
    ui.note(&format!("{} free", size::format(used.free_bytes)));
    Ok(0)
}

impl Row for DiskUseRow {
    const HEADERS: &'static [&'static str] = &["KIND", "COUNT", "IN USE", "SIZE", "RECLAIMABLE"];

    fn name(&self) -> &str {
        &self.kind
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.kind.clone(),
            self.count.to_string(),
            self.in_use.to_string(),
            size::format(self.bytes),
            size::format(self.reclaimable_bytes),
        ]
    }
}

impl Reset {
    /// Shows what goes, asks, removes.
    async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let client = Client::ready(ui).await?;
        let dry = ResetRequest { dry_run: true };
        let plan: ResetPlan = client.post("/v1/system/reset", &dry).await?;
        if self.dry_run {
            ui.show(&plan, &fields(&plan))?;
            return Ok(0);
        }
        if !self.yes {
            for (name, value) in fields(&plan) {
                ui.note(&format!("{name}: {}", value.replace('\n', ", ")));
            }
            if !ui.confirm("Stop all VMs and remove all of this?")? {
                return Ok(0);
            }
        }
        let mut interrupts = Interrupts::listen();
        let wet = ResetRequest { dry_run: false };
        let operation: Operation = client.post("/v1/system/reset", &wet).await?;
        follow(&client, &operation, Patience::Watch, (ui, &mut interrupts)).await?;
        ui.note(&format!("everything is removed, {} freed", size::format(plan.bytes)));
        Ok(0)
    }
}

fn fields(plan: &ResetPlan) -> Vec<(&'static str, String)> {
    let names = |names: &[String]| match names {
        [] => "none".to_owned(),
        names => names.join("\n"),
    };
    let mut fields = vec![
        ("VMs", names(&plan.vms)),
        ("Images", names(&plan.images)),
        ("Kernels", names(&plan.kernels)),
    ];
    if !plan.set_aside.is_empty() {
        fields.push(("Set aside", names(&plan.set_aside)));
    }
    fields.push(("Disk space", size::format(plan.bytes)));
    fields
}
