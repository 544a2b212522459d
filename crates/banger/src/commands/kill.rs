//! `banger kill`.

use clap::Args;
use hyper::Method;

use super::each::{Request, each};
use crate::client::{Patience, vm_path};
use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger kill`.
#[derive(Debug, Args)]
pub struct Kill {
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

impl Kill {
    /// Switches them off.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let request = Request {
            method: Method::POST,
            path: &|vm| vm_path(vm, "/kill"),
            body: None::<()>,
            patience: Patience::Watch,
            missing_is_fine: false,
        };
        each(&self.vms, &request, ui).await
    }
}
