//! `banger ls`.

use banger_api::vm::Vm;
use clap::Args;

use super::vm_row::VmRow;
use crate::client::{Client, escape};
use crate::failure::Failure;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  banger ls --filter state=running       Also name=, image=, label=KEY[=VALUE]
  banger rm $(banger ls -q)              Names only
";

/// Arguments of `banger ls`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Ls {
    /// Only VMs for which this holds, for example state=running (may be repeated)
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// All VMs (always so; accepted as in Docker)
    #[arg(short, long, hide = true)]
    all: bool,
}

impl Ls {
    /// Lists them.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let client = Client::ready(ui).await?;
        let path = if self.filters.is_empty() {
            "/v1/vms".to_owned()
        } else {
            format!("/v1/vms?filter={}", escape(&self.filters.join(",")))
        };
        let vms: Vec<Vm> = client.get(&path).await?;
        let now_ms = banger_host::clock::now_ms();
        let rows: Vec<VmRow> = vms.into_iter().map(|vm| VmRow::new(vm, now_ms)).collect();
        ui.list(&rows)?;
        Ok(0)
    }
}
