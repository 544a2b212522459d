//! `banger restart`.

use clap::Args;
use hyper::Method;

use super::each::{Request, each};
use super::stop::Grace;
use crate::client::{Patience, vm_path};
use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger restart`.
#[derive(Debug, Args)]
pub struct Restart {
    #[command(flatten)]
    grace: Grace,
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

impl Restart {
    /// Stops and starts them.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let request = Request {
            method: Method::POST,
            path: &|vm| vm_path(vm, "/restart"),
            body: Some(self.grace.body()),
            patience: Patience::Watch,
            missing_is_fine: false,
        };
        each(&self.vms, &request, ui).await
    }
}
