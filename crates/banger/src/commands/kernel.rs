//! `banger kernel …`.

use std::path::{Path, PathBuf};

use banger_api::ErrorCode;
use banger_api::image::PullRequest;
use banger_api::kernel::{CatalogKernel, ImportKernel, Kernel};
use banger_core::{name, size};
use clap::{Args, Subcommand};

use super::image::{short, yes_or_no};
use super::library::{self, Names, Removal};
use super::registry::{absolute, existing_file, unreadable};
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
    /// Take a kernel from files: a vmlinux, a bzImage, a Debian package
    Import(Import),
    /// Show all about kernels
    #[command(alias = "inspect")]
    Show(Names),
    /// Remove kernels that no VM uses
    Rm(Removal),
}

/// Arguments of `banger kernel pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// Make a new version even if one is here; VMs keep the version they have
    #[arg(long)]
    refresh: bool,
    /// Name from the catalog
    #[arg(value_name = "NAME")]
    name: String,
}

const IMPORT_EXAMPLES: &str = "\
Examples:
  banger kernel import linux-image-6.1.0-28-amd64_6.1.119-1_amd64.deb
  banger kernel import arch/x86/boot/bzImage --name mine --modules out/lib/modules/6.12.1
  banger run --kernel mine

What a guest needs and the kernel lacks is listed, and nothing is imported then.
";

/// Arguments of `banger kernel import`.
#[derive(Debug, Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub struct Import {
    /// Name of the new kernel [default: that of the file]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Directory of its modules: .../lib/modules/RELEASE, or one above exactly one such
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Its build configuration, if the kernel does not carry it itself
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A vmlinux, a bzImage, or a Debian package with a kernel in it
    #[arg(value_name = "KERNEL")]
    kernel: PathBuf,
}

impl Import {
    fn request(self) -> Result<ImportKernel, Failure> {
        let directory = |path: &Path| {
            std::fs::read_dir(path).map_err(|error| unreadable(path, &error))?;
            absolute(path)
        };
        Ok(ImportKernel {
            name: self.name.map_or_else(|| name_of(&self.kernel), Ok)?,
            kernel: existing_file(&self.kernel)?,
            modules: self.modules.as_deref().map(directory).transpose()?,
            config: self.config.as_deref().map(existing_file).transpose()?,
        })
    }
}

/// The name of a kernel that was given none: its file's, as far as that can be a name.
fn name_of(kernel: &Path) -> Result<String, Failure> {
    let file = kernel.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    // Of a package the version is not part of the name.
    let stem = match file.strip_suffix(".deb") {
        Some(package) => package.split('_').next().unwrap_or(package),
        None => &file,
    };
    name::mend(stem).ok_or_else(|| {
        let title = "the kernel has no name, and none can be made of the file's";
        Failure::new(ErrorCode::InvalidArgument, title)
            .or_hint("banger kernel import --name NAME KERNEL")
    })
}

/// Does one of them.
pub async fn run(command: KernelCommand, ui: &Ui) -> Result<u8, Failure> {
    match command {
        KernelCommand::Ls => library::list::<Kernel>(PATH, ui).await,
        KernelCommand::Catalog => library::list::<CatalogKernel>("/v1/kernels/catalog", ui).await,
        KernelCommand::Pull(Pull { refresh, name }) => {
            let request = PullRequest { name, refresh, ..PullRequest::default() };
            library::make("/v1/kernels/pull", &request, ui).await
        }
        KernelCommand::Import(args) => {
            library::make("/v1/kernels/import", &args.request()?, ui).await
        }
        KernelCommand::Show(which) => library::show(PATH, &which.names, fields, ui).await,
        KernelCommand::Rm(removal) => library::remove(PATH, &removal, ui).await,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_named_after_its_file() {
        let name = |path: &str| name_of(Path::new(path)).map_err(|failure| failure.code());
        let cases = [
            ("/x/bzImage", "bzimage"),
            ("vmlinuz-6.1.0-28-amd64", "vmlinuz-6-1-0-28-amd64"),
            ("./linux-image-6.1.0-28-cloud_6.1.119-1_amd64.deb", "linux-image-6-1-0-28-cloud"),
        ];
        for (path, want) in cases {
            assert_eq!(name(path).as_deref(), Ok(want), "{path}");
        }
        assert_eq!(name("/"), Err(Some(ErrorCode::InvalidArgument)));
    }

    #[test]
    fn all_paths_are_absolute_and_there() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let file = tmp.path().join("vmlinux");
        std::fs::write(&file, "ELF").expect("writable");
        let import = |modules: &Path| Import {
            name: None,
            modules: Some(modules.to_owned()),
            config: Some(file.clone()),
            kernel: file.clone(),
        };
        let request = import(tmp.path()).request().expect("all is there");
        assert_eq!(request.name, "vmlinux");
        assert_eq!(request.kernel, file.display().to_string());
        assert_eq!(request.modules, Some(tmp.path().display().to_string()));
        import(&file).request().expect_err("the modules are no directory");
        import(Path::new("/nowhere")).request().expect_err("there are no modules");
    }
}
