//! `banger start`.

use banger_api::vm::StartVm;
use clap::Args;
use hyper::Method;

use super::each::{Request, each};
use super::guest_session;
use crate::client::{Patience, vm_path};
use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger start`.
#[derive(Debug, Args)]
pub struct Start {
    /// Boot, also where one could go on from a saved guest
    #[arg(long)]
    cold: bool,
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

impl Start {
    /// Starts them; one that runs already is fine.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let session_env = guest_session::session_env(ui);
        let request = Request {
            method: Method::POST,
            path: &|vm| vm_path(vm, "/start"),
            body: Some(StartVm { owner: None, cold: self.cold, trace: false, session_env }),
            patience: Patience::Lease,
            missing_is_fine: false,
        };
        each(&self.vms, &request, ui).await
    }
}
