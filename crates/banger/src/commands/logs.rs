//! `banger logs`.

use banger_api::vm::{Vm, VmState};
use banger_host::http;
use clap::Args;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;

use crate::client::{Client, ShimClient, vm_path};
use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger logs`.
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on as lines are added, until the VM ends
    #[arg(short, long)]
    follow: bool,
    /// Only so many last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u32>,
    /// The guest's console instead of the main command's output
    #[arg(long)]
    console: bool,
    /// Name or id
    #[arg(value_name = "VM")]
    vm: String,
}

impl Logs {
    /// Copies the log to stdout.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let client = Client::ready(ui).await?;
        let vm = client.vm(&self.vm).await?;
        let mut body = self.open(&client, &vm).await?.into_body();
        let mut is_empty = true;
        while let Some(frame) = body.frame().await {
            let frame = match frame {
                Ok(frame) => frame,
                // The shim that is followed ends with its VM, in the middle of its answer.
                Err(_) if self.follow => break,
                Err(error) => return Err(http::HttpError::Body(error.to_string()).into()),
            };
            if let Some(bytes) = frame.data_ref() {
                is_empty &= bytes.is_empty();
                ui.raw(bytes)?;
            }
        }
        if is_empty && !self.console && vm.spec.command.is_empty() {
            ui.note(&format!(
                "{0} has no main command; `banger logs --console {0}` shows its console",
                vm.name
            ));
        }
        Ok(0)
    }

    /// A running VM's shim has its logs at hand and can follow them; the daemon reads what a
    /// stopped one left.
    async fn open(&self, client: &Client, vm: &Vm) -> Result<Response<Incoming>, Failure> {
        if matches!(vm.status.state, VmState::Running | VmState::Paused) {
            let shim = ShimClient::of(vm).await?;
            return shim.open(&format!("/v1/logs?{}", self.query())).await;
        }
        client.open(&vm_path(&vm.id, &format!("/logs?{}", self.query()))).await
    }

    fn query(&self) -> String {
        let source = if self.console { "console" } else { "main" };
        let tail = self.tail.map(|lines| format!("&tail={lines}")).unwrap_or_default();
        format!("source={source}&follow={}{tail}", self.follow)
    }
}
