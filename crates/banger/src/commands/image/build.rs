//! `banger image build`: a Dockerfile becomes an image, by way of buildah.
//!
//! Buildah runs in the namespaces in which banger also bootstraps images: as root of the caller's
//! subordinate ids, in a process namespace that ends with this program. It keeps its layers in the
//! data directory's cache and leaves nothing anywhere else. What it built is registered as an OCI
//! layout, so the daemon sees no difference between this and any other local image.

mod buildah;
mod place;
mod settings;

use std::io::Read;
use std::path::{Path, PathBuf};

use banger_api::image::RegisterSource;
use banger_api::version::DaemonVersion;
use banger_api::{ErrorCode, Problem};
use banger_core::name;
use banger_core::reference::Reference;
use clap::Args;

use self::buildah::{Builder, Recipe};
use super::register::HowItRuns;
use crate::client::Client;
use crate::commands::library;
use crate::commands::registry::{absolute, unreadable};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  banger image build -t web .            ./Dockerfile or ./Containerfile, with . as its context
  banger image build -t web -f web.df --build-arg VERSION=2 src
  banger run web
";
/// Largest Dockerfile that is read from standard input, in bytes.
const MAX_DOCKERFILE: u64 = 4 * 1024 * 1024;

/// Arguments of `banger image build`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Build {
    /// Name of the new image [default: that of the directory]
    #[arg(short = 't', long = "name", alias = "tag", value_name = "NAME")]
    name: Option<String>,
    /// Dockerfile; `-` is standard input [default: DIR's Containerfile or Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Value of an ARG, repeatable; KEY alone takes its value from here
    #[arg(long = "build-arg", value_name = "KEY[=VALUE]")]
    build_args: Vec<String>,
    /// Build only up to this stage
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Run every step again, also those that were run before
    #[arg(long)]
    no_cache: bool,
    #[command(flatten)]
    how: HowItRuns,
    /// Directory with the files that the Dockerfile copies
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Build {
    /// Builds, then has what was built made into an image.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        buildah::check_installed()?;
        let dir = context(&self.dir)?;
        let name = image_name(self.name.as_deref(), &dir)?;
        let described = format!("built from {}", dir.display());
        let file = self.file.as_deref().map(|file| dockerfile(file, &dir)).transpose()?;
        let mut interrupts = Interrupts::listen();
        let client = Client::ready(ui).await?;
        let daemon: DaemonVersion = client.get("/v1/version").await?;
        let recipe = Recipe {
            context: dir,
            file,
            args: self.build_args,
            target: self.target,
            no_cache: self.no_cache,
        };
        let mut shown = (ui, &mut interrupts);
        let builder = Builder::begin(Path::new(&daemon.data_dir), &mut shown).await?;
        let built = async {
            let layout = builder.build(&recipe, &mut shown).await?;
            let source = RegisterSource::Path { path: layout };
            let mut request = self.how.request(Some(name), source);
            request.description = Some(described);
            library::make_with(&client, "/v1/images/register", &request, shown).await
        };
        let code = built.await;
        builder.end().await;
        code
    }
}

/// What the Dockerfile is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Dockerfile {
    /// A file.
    Path(String),
    /// Its text.
    Text(String),
}

/// The absolute path of the directory that is built from.
fn context(dir: &Path) -> Result<PathBuf, Failure> {
    let found = std::fs::metadata(dir).map_err(|error| unreadable(dir, &error))?;
    if !found.is_dir() {
        let title = format!("{} is not a directory", dir.display());
        let problem = Problem::new(ErrorCode::InvalidArgument, title);
        return Err(problem.hint("banger image build -f DOCKERFILE DIR").into());
    }
    // With links resolved, so that `.` and `..` have a name.
    std::fs::canonicalize(dir).map_err(|error| unreadable(dir, &error))
}

/// The name of the new image, checked now rather than after an hour of building.
fn image_name(given: Option<&str>, context: &Path) -> Result<String, Failure> {
    let Some(given) = given else {
        let dir = context.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        return name::mend(&dir).ok_or_else(|| {
            let title = "the image has no name, and none can be made of the directory's";
            Failure::new(ErrorCode::InvalidArgument, title)
                .or_hint("banger image build -t NAME DIR")
        });
    };
    let wrong = |cause: String| {
        let title = format!("{given:?} cannot be the name of an image");
        Failure::from(Problem::new(ErrorCode::InvalidArgument, title).cause(cause))
    };
    match Reference::parse(given) {
        Ok(reference) if reference.digest().is_some() => {
            Err(wrong("its digest is known only when it is built".to_owned()))
        }
        Ok(_) => Ok(given.to_owned()),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// A Dockerfile that was named: here, else in the context, as with Docker and buildah.
fn dockerfile(file: &Path, context: &Path) -> Result<Dockerfile, Failure> {
    if file == Path::new("-") {
        let mut text = String::new();
        let mut stdin = std::io::stdin().lock().take(MAX_DOCKERFILE);
        stdin.read_to_string(&mut text).map_err(|error| unreadable(file, &error))?;
        return Ok(Dockerfile::Text(text));
    }
    let places = [file.to_owned(), context.join(file)];
    let found = places.iter().find(|path| path.is_file());
    let Some(found) = found else {
        let title = format!("there is no {}", file.display());
        let cause = format!("neither here nor in {}", context.display());
        return Err(Problem::new(ErrorCode::InvalidArgument, title).cause(cause).into());
    };
    absolute(found).map(Dockerfile::Path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(failure: Failure) -> String {
        let Failure::Problem(problem) = failure else { panic!("something to tell") };
        assert_eq!(problem.code, ErrorCode::InvalidArgument);
        problem.to_string()
    }

    #[test]
    fn a_name_is_given_or_the_directorys() {
        let name = |given, dir: &str| image_name(given, Path::new(dir)).map_err(cause);
        assert_eq!(name(None, "/src/My App").as_deref(), Ok("my-app"));
        assert_eq!(name(Some("team/web:2"), "/src").as_deref(), Ok("team/web:2"));
        assert_eq!(name(Some("localhost:5000/web"), "/x").as_deref(), Ok("localhost:5000/web"));
        assert!(name(None, "/").expect_err("no name").contains("no name"));
        let error = name(Some("Web"), "/x").expect_err("upper case");
        assert!(error.contains("lower-case"), "{error}");
        let digest = format!("web@sha256:{}", "a".repeat(64));
        assert!(name(Some(&digest), "/x").expect_err("a digest").contains("digest"));
    }

    #[test]
    fn a_dockerfile_is_here_or_in_the_context() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let file = tmp.path().join("web.df");
        std::fs::write(&file, "FROM scratch\n").expect("writable");
        let path = Dockerfile::Path(file.display().to_string());
        assert_eq!(dockerfile(Path::new("web.df"), tmp.path()).expect("in the context"), path);
        assert_eq!(dockerfile(&file, Path::new("/")).expect("as it is"), path);
        let error = dockerfile(Path::new("none.df"), tmp.path()).expect_err("nowhere");
        assert!(cause(error).contains("there is no none.df"));
    }

    #[test]
    fn a_context_is_a_directory() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let file = tmp.path().join("Dockerfile");
        std::fs::write(&file, "FROM scratch\n").expect("writable");
        let there = tmp.path().canonicalize().expect("it is there");
        assert_eq!(context(&tmp.path().join(".")).expect("a directory"), there);
        assert!(cause(context(&file).expect_err("a file")).contains("not a directory"));
        assert!(cause(context(Path::new("/nowhere")).expect_err("none")).contains("/nowhere"));
    }
}
