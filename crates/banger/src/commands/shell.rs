//! `banger shell`.

use clap::Args;

use super::exec::How;
use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger shell`.
#[derive(Debug, Args)]
pub struct Shell {
    #[command(flatten)]
    how: How,
    /// Name or id
    #[arg(value_name = "VM")]
    vm: String,
}

impl Shell {
    /// Opens the user's login shell; the exit code is its own.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        self.how.run(&self.vm, Vec::new(), ui).await
    }
}
