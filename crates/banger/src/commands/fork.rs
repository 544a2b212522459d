//! `banger fork`: running copies of a running VM.

use banger_api::ErrorCode;
use banger_api::fork::{ForkVm, Forked, MAX_COPIES};
use banger_api::operation::{Operation, OperationResult};
use clap::Args;

use super::guest_session;
use crate::client::{Client, Patience, follow, vm_path};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  banger fork web                        One copy of web, which runs on
  banger fork web -n 20 --name try       try-1 to try-20

A copy has the memory and the disks that the VM had at one moment, and shares the memory until
one of them writes. It is a machine of its own: name, machine-id, ssh host keys, random numbers
and network are new, connections are reset, and commands that ran in the VM go on there alone.
";

/// Arguments of `banger fork`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Fork {
    /// Name or id
    #[arg(value_name = "VM")]
    vm: String,
    /// How many copies
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_COPIES)))]
    count: u32,
    /// Name of the copy; with -n, NAME-1, NAME-2, … [default: generated]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Give the copies' commands the environment that VM was made with, secrets included
    #[arg(long)]
    keep_env: bool,
}

impl Fork {
    /// Makes them, and prints their names.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let request = ForkVm {
            count: self.count,
            name: self.name,
            keep_env: self.keep_env,
            session_env: guest_session::session_env(ui),
        };
        let mut interrupts = Interrupts::listen();
        let client = Client::ready(ui).await?;
        let operation: Operation = client.post(&vm_path(&self.vm, "/fork"), &request).await?;
        let followed = follow(&client, &operation, Patience::Lease, (ui, &mut interrupts)).await?;
        let OperationResult::Forked(forked) = followed.result else {
            return Err(Failure::new(ErrorCode::Internal, "the daemon did not say what it copied"));
        };
        show(&self.vm, &forked, ui)?;
        Ok(0)
    }
}

fn show(vm: &str, forked: &Forked, ui: &Ui) -> Result<(), Failure> {
    if ui.is_json() {
        ui.json(forked)?;
        return Ok(());
    }
    for copy in &forked.vms {
        ui.done(&copy.name, None::<&()>)?;
    }
    ui.note(&format!("{vm} stood still for {} ms", forked.paused_ms));
    Ok(())
}
