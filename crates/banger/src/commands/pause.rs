//! `banger pause`.

use clap::Args;
use hyper::Method;

use super::each::{Request, each};
use crate::client::{Patience, vm_path};
use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger pause`.
#[derive(Debug, Args)]
pub struct Pause {
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

impl Pause {
    /// Halts them; one that is paused already is fine.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let request = Request {
            method: Method::POST,
            path: &|vm| vm_path(vm, "/pause"),
            body: None::<()>,
            patience: Patience::Watch,
            missing_is_fine: false,
        };
        each(&self.vms, &request, ui).await
    }
}
