//! `banger image register`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use banger_api::image::{RegisterImage, RegisterSource};
use banger_api::vm::InitMode;
use banger_api::{ErrorCode, Problem};
use banger_host::terminal::Stream;
use clap::Args;

use crate::client::{Client, upload};
use crate::commands::library;
use crate::commands::registry::{absolute, unreadable};
use crate::commands::shape::Init;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  banger image register rootfs.tar --name mine      A root filesystem: tar, or its directory
  banger image register ./layout --name mine        An OCI layout: directory, or tar
  docker save web | banger image register --name web
  banger image register disk.ext4 --init system     An ext4 file system
";

/// Arguments of `banger image register`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Register {
    /// Name of the new image [default: the archive's own, else the file's]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    how: HowItRuns,
    /// File or directory; `-`, or nothing, reads standard input
    #[arg(value_name = "PATH|-")]
    path: Option<PathBuf>,
}

/// How VMs of a new image run.
#[derive(Debug, Clone, Default, Args)]
pub struct HowItRuns {
    /// Kernel that goes with it [default: the usual one]
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// First process of its VMs: banger's agent, or its own /sbin/init
    #[arg(long, value_enum, value_name = "agent|system", hide_possible_values = true)]
    init: Option<Init>,
}

impl HowItRuns {
    /// The request to make an image like that of local files.
    pub fn request(self, name: Option<String>, source: RegisterSource) -> RegisterImage {
        let init = self.init.map_or(InitMode::Agent, Into::into);
        RegisterImage { name, source, description: None, kernel: self.kernel, init }
    }
}

impl Register {
    /// Sends what has no path, then has the image made.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let mut interrupts = Interrupts::listen();
        let path = self.path.filter(|path| path != Path::new("-"));
        if path.is_none() && std::io::stdin().is_terminal() {
            return Err(nothing("standard input is a terminal"));
        }
        let path = path.map(|path| existing(&path)).transpose()?;
        let client = Client::ready(ui).await?;
        let source = match path {
            Some(path) => RegisterSource::Path { path },
            None => {
                RegisterSource::Upload { id: send_stdin(&client, (ui, &mut interrupts)).await? }
            }
        };
        let request = self.how.request(self.name, source);
        library::make_with(&client, "/v1/images/register", &request, (ui, &mut interrupts)).await
    }
}

async fn send_stdin(client: &Client, shown: (&Ui, &mut Interrupts)) -> Result<String, Failure> {
    let stdin = Stream::stdin()
        .map_err(|error| Failure::internal("the standard streams cannot be used", &error))?;
    let sent = upload(client, stdin, shown).await?;
    if sent.bytes == 0 {
        return Err(nothing("nothing came on standard input"));
    }
    Ok(sent.id)
}

fn nothing(cause: &str) -> Failure {
    Problem::new(ErrorCode::InvalidArgument, "there is nothing to make an image of")
        .cause(cause)
        .hint("banger image register PATH, or: docker save IMAGE | banger image register")
        .into()
}

fn existing(path: &Path) -> Result<String, Failure> {
    std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    absolute(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_how_it_runs() {
        let source = RegisterSource::Path { path: "/x".to_owned() };
        let plain = HowItRuns::default().request(None, source.clone());
        assert_eq!((plain.name, plain.kernel, plain.init), (None, None, InitMode::Agent));
        let how = HowItRuns { kernel: Some("k".to_owned()), init: Some(Init::System) };
        let full = how.request(Some("mine".to_owned()), source);
        assert_eq!(full.name.as_deref(), Some("mine"));
        assert_eq!((full.kernel.as_deref(), full.init), (Some("k"), InitMode::System));
    }

    #[test]
    fn what_is_not_there_is_named_before_anybody_is_asked() {
        let failure = existing(Path::new("/nowhere/rootfs.tar")).expect_err("it is not there");
        let Failure::Problem(problem) = failure else { panic!("something to tell") };
        assert!(problem.title.contains("/nowhere/rootfs.tar"), "{problem}");
    }
}
