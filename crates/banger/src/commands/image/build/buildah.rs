//! Running buildah: which arguments it gets, and what becomes of what it says.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use banger_api::ErrorCode;
use banger_host::command::{Cancel, Finished, Isolation, Line, Tool, ToolError, find_program};
use tokio::sync::mpsc;

use super::Dockerfile;
use super::place::{Beginning, Place};
use super::settings::Settings;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::ui::Ui;

const PROGRAM: &str = "buildah";
/// File with the identity of what was built.
const IMAGE_ID: &str = "image-id";
/// Directory of the OCI layout of what was built.
const LAYOUT: &str = "layout";

/// What is to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The directory that the Dockerfile copies from.
    pub context: PathBuf,
    /// The Dockerfile; None lets buildah find it in the context.
    pub file: Option<Dockerfile>,
    /// Values of its arguments.
    pub args: Vec<String>,
    /// The last stage to build.
    pub target: Option<String>,
    /// Run all steps anew.
    pub no_cache: bool,
}

/// How layers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    /// Only what differs; needs a kernel and a file system that let this user mount overlays.
    Overlay,
    /// A whole copy of each layer; works everywhere.
    Vfs,
}

impl Driver {
    fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Vfs => "vfs",
        }
    }
}

/// A build that has a place to work in.
#[derive(Debug)]
pub struct Builder {
    place: Place,
    settings: Settings,
    driver: Driver,
}

/// Says early, and how to mend it, that there is no buildah.
///
/// # Errors
/// `host_program_missing`.
pub fn check_installed() -> Result<(), Failure> {
    match find_program(PROGRAM) {
        Some(_) => Ok(()),
        None => Err(failure(&ToolError::Missing { program: PROGRAM.to_owned() })),
    }
}

impl Builder {
    /// Prepares a place, and finds out how layers can be kept there.
    ///
    /// # Errors
    /// If the place cannot be made, or buildah does not run at all.
    pub async fn begin(
        data_dir: &Path,
        shown: &mut (&Ui, &mut Interrupts),
    ) -> Result<Self, Failure> {
        let data_dir = data_dir.to_owned();
        let begun = tokio::task::spawn_blocking(move || Place::begin(&data_dir)).await;
        let begun = begun.map_err(io::Error::other).and_then(|begun| begun);
        let beginning = begun.map_err(|error| no_place(&error))?;
        // Nobody else begins as long as this is held: remains of others are removed meanwhile.
        let place = &beginning.place;
        let settings = Settings::write(place).map_err(|error| no_place(&error))?;
        // Something that needs the layers, and does no harm.
        let trial: &[&str] =
            if beginning.is_alone { &["rm", "--all"] } else { &["containers", "--quiet"] };
        let trial = with(global(place, &settings, Driver::Overlay), trial);
        let silent = &mut (&Ui::silent(), &mut *shown.1);
        let driver = match run(tool(trial, place, &settings), silent).await? {
            Ok(_) => Driver::Overlay,
            // Without its namespaces it cannot do anything else either.
            Err(error @ ToolError::Isolation { .. }) => return Err(failure(&error)),
            Err(_) => Driver::Vfs,
        };
        let Beginning { place, .. } = beginning;
        Ok(Self { place, settings, driver })
    }

    /// Builds, and answers the path of an OCI layout with what was built.
    ///
    /// # Errors
    /// If the build fails, or the user gave it up.
    pub async fn build(
        &self,
        recipe: &Recipe,
        shown: &mut (&Ui, &mut Interrupts),
    ) -> Result<String, Failure> {
        let Self { place, settings, driver } = self;
        let file = match &recipe.file {
            None => None,
            Some(Dockerfile::Path(path)) => Some(PathBuf::from(path)),
            Some(Dockerfile::Text(text)) => {
                let path = place.work.join("Dockerfile");
                std::fs::write(&path, text).map_err(|error| no_place(&error))?;
                Some(path)
            }
        };
        let global = || global(place, settings, *driver);
        let words = bud(place, settings, recipe, file.as_deref());
        let built = run(tool(with(global(), &words), place, settings), shown).await?;
        built.map_err(|error| failed(&error, recipe, shown.0))?;
        let id = std::fs::read_to_string(place.work.join(IMAGE_ID))
            .map_err(|error| Failure::internal("buildah did not say what it built", &error))?;
        let words = push(settings, id.trim());
        let pushed = run(tool(with(global(), &words), place, settings), shown).await?;
        pushed.map_err(|error| failed(&error, recipe, shown.0))?;
        let layout = place.work.join(LAYOUT).into_os_string().into_string();
        layout.map_err(|path| {
            let title = format!("the path {} is not UTF-8", path.display());
            Failure::new(ErrorCode::InvalidArgument, title)
        })
    }

    /// Removes what the next build does not need.
    pub async fn end(self) {
        let _ = tokio::task::spawn_blocking(move || self.place.end()).await;
    }
}

fn no_place(error: &io::Error) -> Failure {
    Failure::internal("banger's cache cannot be used for a build", error)
}

/// The arguments that every command of buildah gets: state in our place and nowhere else.
fn global(place: &Place, settings: &Settings, driver: Driver) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![
        "--root".into(),
        place.cache.join(driver.as_str()).into(),
        // Of this build alone: it remembers mounts, and those are of one mount namespace.
        "--runroot".into(),
        place.work.join("run").into(),
        "--storage-driver".into(),
        driver.as_str().into(),
        "--short-name-alias-conf".into(),
        place.cache.join("short-names.conf").into(),
    ];
    if let Some(registries) = &settings.registries {
        words.extend(["--registries-conf".into(), registries.into()]);
    }
    words
}

/// The arguments of a build.
fn bud(place: &Place, settings: &Settings, recipe: &Recipe, file: Option<&Path>) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["bud".into(), "--isolation".into(), "chroot".into()];
    words.extend(policy(settings));
    // Docker's own format knows all that a Dockerfile can say; it becomes OCI's in the layout.
    words.extend(["--format", "docker", "--layers", "--identity-label=false"].map(Into::into));
    words.extend(["--iidfile".into(), place.work.join(IMAGE_ID).into()]);
    if recipe.no_cache {
        words.push("--no-cache".into());
    }
    if let Some(file) = file {
        words.extend(["--file".into(), file.into()]);
    }
    for value in &recipe.args {
        words.extend(["--build-arg".into(), value.into()]);
    }
    if let Some(stage) = &recipe.target {
        words.extend(["--target".into(), stage.into()]);
    }
    words.extend(["--".into(), recipe.context.clone().into()]);
    words
}

/// The arguments that turn what was built into an OCI layout in the working directory, whose path
/// may hold a colon.
fn push(settings: &Settings, id: &str) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["push".into()];
    words.extend(policy(settings));
    words.extend(["--quiet".into(), id.into(), format!("oci:{LAYOUT}:latest").into()]);
    words
}

fn policy(settings: &Settings) -> Vec<OsString> {
    match &settings.policy {
        Some(policy) => vec!["--signature-policy".into(), policy.into()],
        None => Vec::new(),
    }
}

fn with<W: Clone + Into<OsString>>(mut global: Vec<OsString>, words: &[W]) -> Vec<OsString> {
    global.extend(words.iter().cloned().map(Into::into));
    global
}

fn tool(words: Vec<OsString>, place: &Place, settings: &Settings) -> Tool {
    let tool = Tool::new(PROGRAM)
        .args(words)
        .env("TMPDIR", place.work.join("tmp"))
        .env("CONTAINERS_CONF", &settings.containers)
        .env("XDG_DATA_HOME", place.work.join("data"))
        .env("XDG_RUNTIME_DIR", &settings.runtime)
        .dir(&place.work)
        .isolation(Isolation::Root)
        .stdout_lines();
    match place.uid {
        0 => tool,
        // What it is to the rest of the machine, which it cannot see from inside its namespace.
        // Else it looks into root's directories. `buildah unshare` tells what it starts the same.
        uid => tool.env("_CONTAINERS_ROOTLESS_UID", uid.to_string()),
    }
}

/// Runs it, showing each line that it writes.
///
/// # Errors
/// [`Failure::Quiet`] if the user gave it up. A second interrupt does not wait for its end.
async fn run(
    tool: Tool,
    (ui, interrupts): &mut (&Ui, &mut Interrupts),
) -> Result<Result<Finished, ToolError>, Failure> {
    let cancel = Cancel::new();
    let token = cancel.clone();
    let (sender, mut lines) = mpsc::unbounded_channel();
    let mut running = tokio::task::spawn_blocking(move || {
        tool.run_watched(&token, &mut |line| {
            let (Line::Stdout(text) | Line::Stderr(text)) = line;
            let _ = sender.send(text.to_owned());
        })
    });
    let mut interrupted = None;
    let ended = loop {
        tokio::select! {
            biased;
            signal = interrupts.next() => {
                if interrupted.is_some() {
                    return Err(Failure::signal(signal));
                }
                interrupted = Some(signal);
                cancel.cancel();
            }
            Some(line) = lines.recv() => ui.note(&line),
            ended = &mut running => break ended,
        }
    };
    match interrupted {
        Some(signal) => Err(Failure::signal(signal)),
        None => ended.map_err(|error| Failure::internal("buildah cannot be run", &error)),
    }
}

fn failure(error: &ToolError) -> Failure {
    error.problem("buildah cannot be run", ErrorCode::PullFailed).into()
}

/// A build that failed. What buildah said of it has been shown already, unless nobody wanted to
/// see anything.
fn failed(error: &ToolError, recipe: &Recipe, ui: &Ui) -> Failure {
    let title = format!("cannot build an image of {}", recipe.context.display());
    let mut problem = error.problem(title, ErrorCode::PullFailed);
    if matches!(error, ToolError::Failed { .. }) && problem.code == ErrorCode::PullFailed {
        if ui.shows_notes() {
            problem.causes.truncate(1);
        }
        problem.hint = hint(recipe);
    }
    problem.into()
}

/// What may be missing.
fn hint(recipe: &Recipe) -> Option<String> {
    let found =
        ["Containerfile", "Dockerfile"].iter().any(|name| recipe.context.join(name).is_file());
    (recipe.file.is_none() && !found).then(|| {
        format!("write {}, or name one with -f", recipe.context.join("Dockerfile").display())
    })
}

#[cfg(test)]
mod tests;
