//! `banger kernel …`.

use banger_api::kernel::{CatalogKernel, Kernel};
use banger_core::size;
use clap::Subcommand;

use super::image::{short, yes_or_no};
use super::library::{self, Names, Pull};
use super::vm_row::age;
use crate::failure::Failure;
use crate::ui::{Row, Ui};

const PATH: &str = "/v1/kernels";

/// The verbs of kernels.
#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// List local kernels
    #[command(alias = "list")]
    Ls,
    /// List the kernels that can be had
    Catalog,
    /// Fetch a kernel
    Pull(Pull),
    /// Show all about kernels
    #[command(alias = "inspect")]
    Show(Names),
    /// Remove kernels that no VM uses
    Rm(Names),
}

/// Does one of them.
pub async fn run(command: KernelCommand, ui: &Ui) -> Result<u8, Failure> {
    match command {
        KernelCommand::Ls => library::list::<Kernel>(PATH, ui).await,
        KernelCommand::Catalog => library::list::<CatalogKernel>("/v1/kernels/catalog", ui).await,
        KernelCommand::Pull(what) => library::pull(PATH, what, ui).await,
        KernelCommand::Show(which) => library::show(PATH, &which.names, fields, ui).await,
        KernelCommand::Rm(which) => library::remove(PATH, &which.names, ui).await,
    }
}

impl Row for Kernel {
    const HEADERS: &'static [&'static str] =
        &["NAME", "DIGEST", "RELEASE", "SIZE", "FETCHED", "SOURCE"];

    fn name(&self) -> &str {
        &self.name
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            short(&self.digest),
            self.release.clone(),
            size::format(self.allocated_bytes),
            format!("{} ago", age(self.created_at_ms, banger_host::clock::now_ms())),
            self.source.clone(),
        ]
    }
}

impl Row for CatalogKernel {
    const HEADERS: &'static [&'static str] = &["NAME", "LOCAL", "SOURCE", "DESCRIPTION"];

    fn name(&self) -> &str {
        &self.name
    }

    fn cells(&self) -> Vec<String> {
        let local = yes_or_no(self.local);
        vec![self.name.clone(), local, self.source.clone(), self.description.clone()]
    }
}

fn fields(kernel: &Kernel) -> Vec<(&'static str, String)> {
    let now_ms = banger_host::clock::now_ms();
    vec![
        ("Name", kernel.name.clone()),
        ("Digest", kernel.digest.clone()),
        ("Release", kernel.release.clone()),
        ("Source", kernel.source.clone()),
        ("Fetched", format!("{} ago", age(kernel.created_at_ms, now_ms))),
        ("On disk", size::format(kernel.allocated_bytes)),
        ("Boot modules", kernel.boot_modules.join(" ")),
    ]
}
