//! `banger stop`.

use std::time::Duration;

use banger_api::vm::StopVm;
use clap::Args;
use hyper::Method;

use super::each::{Request, each};
use crate::client::{Patience, vm_path};
use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger stop`.
#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    grace: Grace,
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

/// How long a guest may take to go down.
#[derive(Debug, Args)]
pub struct Grace {
    /// How long a guest may take before it is switched off
    #[arg(long = "grace", visible_alias = "time", value_name = "TIME", default_value = "10s",
        value_parser = banger_core::duration::parse)]
    grace: Duration,
}

impl Grace {
    /// The request's body.
    pub fn body(&self) -> StopVm {
        StopVm { grace_ms: u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX) }
    }
}

impl Stop {
    /// Shuts them down; one that is stopped already is fine.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let request = Request {
            method: Method::POST,
            path: &|vm| vm_path(vm, "/stop"),
            body: Some(self.grace.body()),
            patience: Patience::Watch,
            missing_is_fine: false,
        };
        each(&self.vms, &request, ui).await
    }
}
