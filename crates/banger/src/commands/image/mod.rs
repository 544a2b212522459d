//! `banger image …`.

mod build;
mod list;
mod prune;
mod register;
mod show;

use std::path::{Path, PathBuf};

use banger_api::image::{CatalogImage, PromoteVm, PullRequest, PushImage};
use clap::{Args, Subcommand};

use super::library::{self, Names, Removal};
use super::registry::{RegistryArgs, unreadable};
use crate::failure::Failure;
use crate::ui::Ui;

pub use list::{short, yes_or_no};

const PATH: &str = "/v1/images";
/// Largest public key that is read, in bytes.
const MAX_KEY: u64 = 64 * 1024;

/// The verbs of images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List local images
    #[command(alias = "list")]
    Ls,
    /// List the images that can be had by a short name
    Catalog,
    /// Fetch an image from a registry, or one of the catalog
    Pull(Pull),
    /// Make an image of a file, a directory or an archive
    #[command(aliases = ["import", "load"])]
    Register(register::Register),
    /// Make an image with a Dockerfile
    Build(build::Build),
    /// Make an image of a stopped VM's disk
    Promote(Promote),
    /// Send an image to a registry
    Push(Push),
    /// Show all about images
    #[command(alias = "inspect")]
    Show(Names),
    /// Remove images that no VM uses
    Rm(Removal),
    /// Remove images and layers that nobody needs
    Prune(prune::Prune),
}

const PULL_EXAMPLES: &str = "\
Examples:
  banger image pull alpine:3.20          The catalog first, then docker.io
  banger image pull localhost:5000/team/app@sha256:...
  banger image pull --refresh debian-bookworm
  banger image pull --verify-key cosign.pub registry.example/app:1

Credentials are those of `docker login`, `podman login` and their helpers.
";

/// Arguments of `banger image pull`.
#[derive(Debug, Args)]
#[command(after_help = PULL_EXAMPLES)]
pub struct Pull {
    /// Look for a newer version even if one is here; VMs keep the version they have
    #[arg(long)]
    refresh: bool,
    /// Take the image only if it has a signature of this public key (PEM)
    #[arg(long, value_name = "FILE")]
    verify_key: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Name of the catalog, or reference: [HOST/]NAME[:TAG][@DIGEST]
    #[arg(value_name = "REF")]
    reference: String,
}

/// Arguments of `banger image promote`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image promote web web-base      What is on the disk of `web` is now an image
  banger run web-base

The VM must not run; it stays as it is. Its SSH host keys and machine id do not go along.
")]
pub struct Promote {
    /// Name or id of the VM
    #[arg(value_name = "VM")]
    vm: String,
    /// Name of the new image
    #[arg(value_name = "NAME")]
    name: String,
}

/// Arguments of `banger image push`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image push web-base localhost:5000/team/web:1
")]
pub struct Push {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Name or digest of a local image
    #[arg(value_name = "NAME")]
    name: String,
    /// Where to: HOST/NAME[:TAG]
    #[arg(value_name = "REF")]
    reference: String,
}

/// Does one of them.
pub async fn run(command: ImageCommand, ui: &Ui) -> Result<u8, Failure> {
    match command {
        ImageCommand::Ls => list::run(ui).await,
        ImageCommand::Catalog => library::list::<CatalogImage>("/v1/images/catalog", ui).await,
        ImageCommand::Pull(args) => library::make("/v1/images/pull", &args.request()?, ui).await,
        ImageCommand::Register(args) => args.run(ui).await,
        ImageCommand::Build(args) => args.run(ui).await,
        ImageCommand::Promote(Promote { vm, name }) => {
            library::make("/v1/images/promote", &PromoteVm { vm, name }, ui).await
        }
        ImageCommand::Push(args) => library::make("/v1/images/push", &args.request()?, ui).await,
        ImageCommand::Show(which) => library::show(PATH, &which.names, show::fields, ui).await,
        ImageCommand::Rm(removal) => library::remove(PATH, &removal, ui).await,
        ImageCommand::Prune(args) => args.run(ui).await,
    }
}

impl Pull {
    fn request(self) -> Result<PullRequest, Failure> {
        Ok(PullRequest {
            name: self.reference,
            refresh: self.refresh,
            registry: self.registry.access()?,
            verify_key: self.verify_key.as_deref().map(read_key).transpose()?,
        })
    }
}

impl Push {
    fn request(self) -> Result<PushImage, Failure> {
        let Self { registry, name, reference } = self;
        Ok(PushImage { name, reference, registry: registry.access()? })
    }
}

/// Reads a public key; whether it is one, the daemon says.
fn read_key(path: &Path) -> Result<String, Failure> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_KEY).read_to_string(&mut text))
        .map_err(|error| unreadable(path, &error))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_api::ErrorCode;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: ImageCommand,
    }

    fn parse(words: &[&str]) -> ImageCommand {
        Line::try_parse_from([&["image"], words].concat()).expect("it makes sense").command
    }

    #[test]
    fn a_pull_takes_the_key_along() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let key = tmp.path().join("cosign.pub");
        std::fs::write(&key, "-----BEGIN PUBLIC KEY-----").expect("writable");
        let key = key.to_str().expect("text");
        let ImageCommand::Pull(pull) = parse(&["pull", "--refresh", "--verify-key", key, "a:1"])
        else {
            panic!("a pull");
        };
        let request = pull.request().expect("all files are there");
        assert_eq!((request.name.as_str(), request.refresh), ("a:1", true));
        assert_eq!(request.verify_key.as_deref(), Some("-----BEGIN PUBLIC KEY-----"));
        assert!(request.registry.path.is_some_and(|path| path.contains('/')));
    }

    #[test]
    fn a_key_that_is_not_there_is_named() {
        let ImageCommand::Pull(pull) = parse(&["pull", "--verify-key", "/nowhere/k", "a"]) else {
            panic!("a pull");
        };
        let failure = pull.request().expect_err("no key");
        assert_eq!(failure.code(), Some(ErrorCode::InvalidArgument));
    }

    #[test]
    fn a_push_says_what_and_where_to() {
        let ImageCommand::Push(push) = parse(&["push", "web", "localhost:5000/web:1"]) else {
            panic!("a push");
        };
        let request = push.request().expect("nothing is read");
        assert_eq!((&*request.name, &*request.reference), ("web", "localhost:5000/web:1"));
    }
}
