//! `banger create`: a VM that is not started.

use banger_api::ErrorCode;
use banger_api::operation::{Operation, OperationResult};
use banger_api::vm::CreateVm;
use clap::Args;

use super::shape::Shape;
use crate::client::{Client, Patience, follow};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  banger create --name web -m 2G         A VM to be started later
  banger create --name srv debian-bookworm -- ./serve
                                         ./serve is its main command at every start
";

/// Arguments of `banger create`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES,
    override_usage = "banger create [OPTIONS] [IMAGE] [[--] COMMAND...]")]
pub struct Create {
    #[command(flatten)]
    shape: Shape,
    /// Image, then the main command and its arguments
    #[arg(trailing_var_arg = true, hide = true)]
    words: Vec<String>,
}

impl Create {
    /// Creates it, and prints its name.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let line: Vec<_> = std::env::args_os().collect();
        let escaped = crate::guest_command::is_escaped(&line, self.words.len());
        let what = crate::guest_command::split(self.shape.image.as_deref(), &self.words, escaped);
        self.shape.check(&what)?;
        let mut spec = self.shape.spec(what.image.as_deref());
        spec.command.clone_from(&what.command);
        let request = CreateVm {
            name: self.shape.name.clone(),
            spec,
            start: None,
            // It is started without a client, so what the image runs is its main command.
            main: true,
            pull: self.shape.pull.into(),
            registry: self.shape.registry()?,
        };
        let mut interrupts = Interrupts::listen();
        let client = Client::ready(ui).await?;
        let created = async {
            let operation: Operation = client.post("/v1/vms", &request).await?;
            follow(&client, &operation, Patience::Lease, (ui, &mut interrupts)).await
        };
        let followed = created.await.map_err(|failure| what.hint_at_marker(failure, "create"))?;
        let OperationResult::Vm(vm) = followed.result else {
            return Err(Failure::new(
                ErrorCode::Internal,
                "the daemon did not say what it created",
            ));
        };
        ui.done(&vm.name, Some(&vm))?;
        Ok(0)
    }
}
