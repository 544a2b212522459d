//! `banger doctor`.

use clap::Args;

use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger doctor`.
#[derive(Debug, Args)]
pub struct Doctor {}

impl Doctor {
    /// Checks the machine.
    pub async fn run(self, _ui: &Ui) -> Result<u8, Failure> {
        Ok(0)
    }
}
