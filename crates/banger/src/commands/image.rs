//! `banger image …`.

use banger_api::image::{CatalogImage, Image};
use banger_core::size;
use clap::Subcommand;

use super::library::{self, Names, Pull};
use super::vm_row::age;
use crate::failure::Failure;
use crate::ui::{Row, Ui};

const PATH: &str = "/v1/images";

/// The verbs of images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List local images
    #[command(alias = "list")]
    Ls,
    /// List the images that can be had
    Catalog,
    /// Fetch or build an image
    Pull(Pull),
    /// Show all about images
    #[command(alias = "inspect")]
    Show(Names),
    /// Remove images that no VM uses
    Rm(Names),
}

/// Does one of them.
pub async fn run(command: ImageCommand, ui: &Ui) -> Result<u8, Failure> {
    match command {
        ImageCommand::Ls => library::list::<Image>(PATH, ui).await,
        ImageCommand::Catalog => library::list::<CatalogImage>("/v1/images/catalog", ui).await,
        ImageCommand::Pull(what) => library::pull(PATH, what, ui).await,
        ImageCommand::Show(which) => library::show(PATH, &which.names, fields, ui).await,
        ImageCommand::Rm(which) => library::remove(PATH, &which.names, ui).await,
    }
}

impl Row for Image {
    const HEADERS: &'static [&'static str] = &["NAME", "DIGEST", "SIZE", "BUILT", "SOURCE"];

    fn name(&self) -> &str {
        &self.name
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            short(&self.digest),
            size::format(self.allocated_bytes),
            format!("{} ago", age(self.created_at_ms, banger_host::clock::now_ms())),
            self.source.clone(),
        ]
    }
}

impl Row for CatalogImage {
    const HEADERS: &'static [&'static str] = &["NAME", "LOCAL", "SIZE", "KERNEL", "DESCRIPTION"];

    fn name(&self) -> &str {
        &self.name
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            yes_or_no(self.local),
            format!("~{}", size::format(self.size_hint_bytes)),
            self.kernel.clone(),
            self.description.clone(),
        ]
    }
}

fn fields(image: &Image) -> Vec<(&'static str, String)> {
    let now_ms = banger_host::clock::now_ms();
    let config = &image.config;
    let env: Vec<String> = config.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    vec![
        ("Name", image.name.clone()),
        ("Digest", image.digest.clone()),
        ("Source", image.source.clone()),
        ("Built", format!("{} ago", age(image.created_at_ms, now_ms))),
        ("On disk", size::format(image.allocated_bytes)),
        ("Root disk", size::format(image.disk_bytes)),
        ("User", config.user.clone().unwrap_or_else(|| "root".to_owned())),
        ("Environment", env.join("\n")),
    ]
}

/// The twelve digits by which people tell digests apart.
pub fn short(digest: &str) -> String {
    let digits = digest.rsplit(':').next().unwrap_or(digest);
    digits.get(..12).unwrap_or(digits).to_owned()
}

/// A flag in a table.
pub fn yes_or_no(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}
