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
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

impl Start {
    /// Starts them; one that runs already is fine.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let request = Request {
            method: Method::POST,
            path: &|vm| vm_path(vm, "/start"),
            body: Some(StartVm { owner: None, session_env: guest_session::session_env(ui) }),
            patience: Patience::Lease,
            missing_is_fine: false,
        };
        each(&self.vms, &request, ui).await
    }
}
