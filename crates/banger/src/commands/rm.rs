//! `banger rm`.

use clap::Args;
use hyper::Method;

use super::each::{Request, each};
use crate::client::{Patience, vm_path};
use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// Also those that run; one that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

impl Rm {
    /// Removes them with their disks.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let query = if self.force { "?force=true" } else { "" };
        let request = Request {
            method: Method::DELETE,
            path: &|vm| vm_path(vm, query),
            body: None::<()>,
            patience: Patience::Watch,
            missing_is_fine: self.force,
        };
        each(&self.vms, &request, ui).await
    }
}
