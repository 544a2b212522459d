//! Reading a kernel and what belongs to it: from files, or from a Debian package.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use banger_host::command::Cancel;
use sha2::{Digest, Sha256};

use super::config::Config;
use super::image::KernelImage;
use super::vmlinux::{MAX_CONFIG, is_release};
use crate::debian::deb::{self, PackagedFile, read_package};
use crate::error::PullError;
use crate::modules::{Stage, StageError, open_plain};
use crate::packing::read_bounded;

/// Where a tree has the modules of its kernels, each in a directory with the name of its release.
const MODULE_DIRS: [&str; 2] = ["lib/modules", "usr/lib/modules"];
/// What is in the directory of a release.
const OF_A_RELEASE: [&str; 3] = ["kernel", "modules.builtin", "modules.order"];

/// A kernel and what came with it.
#[derive(Debug)]
pub(crate) struct KernelSource {
    pub(crate) image: KernelImage,
    pub(crate) config: Option<Config>,
    /// Its modules, in a directory of banger's own.
    pub(crate) modules: Option<PathBuf>,
}

/// A file that somebody gave.
#[derive(Debug)]
pub(crate) struct GivenFile {
    path: PathBuf,
    /// Of all of it.
    pub(crate) sha256: String,
    /// Whether it is a Debian package.
    pub(crate) is_package: bool,
}

impl GivenFile {
    /// Read a file once, for its digest and for what it is.
    ///
    /// # Errors
    /// It is none, or cannot be read.
    pub(crate) fn measure(path: &Path, cancel: &Cancel) -> Result<Self, PullError> {
        // The path may be a link: a person chose it.
        let path = fs::canonicalize(path).map_err(PullError::io("read", path))?;
        let mut file = open(&path, cancel)?;
        let first = file.fill_buf().map_err(read_failed(&path, cancel))?;
        let is_package = first.starts_with(deb::MAGIC);
        let sha256 = digest(file).map_err(read_failed(&path, cancel))?;
        Ok(Self { path, sha256, is_package })
    }

    /// Read the kernel in it. What a package has of modules is staged below `staging`.
    pub(crate) fn read(&self, staging: &Path, cancel: &Cancel) -> Result<KernelSource, PullError> {
        if self.is_package {
            return read_kernel_package(&self.path, staging, cancel);
        }
        let image = KernelImage::read(open(&self.path, cancel)?);
        let image = image.map_err(unexpected(&self.path, cancel))?;
        let config = image.vmlinux.config().as_deref().and_then(Config::parse);
        Ok(KernelSource { image, config, modules: None })
    }
}

fn digest(mut file: impl BufRead) -> io::Result<String> {
    let mut sha = Sha256::new();
    loop {
        let bytes = file.fill_buf()?;
        if bytes.is_empty() {
            return Ok(hex::encode(sha.finalize()));
        }
        sha.update(bytes);
        let count = bytes.len();
        file.consume(count);
    }
}

/// Read the kernel in a Debian package, and stage its modules below `staging`.
pub(crate) fn read_kernel_package(
    file: &Path,
    staging: &Path,
    cancel: &Cancel,
) -> Result<KernelSource, PullError> {
    let (mut boot, mut beside, mut config) = (None, None, None);
    let mut modules = PackagedModules::new(staging);
    for_each_file(file, cancel, &mut |PackagedFile { path, contents }| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let in_boot = path.parent() == Some(Path::new("boot"));
        let in_modules = in_modules(&path);
        let is_beside =
            |wanted| in_modules.as_ref().is_some_and(|(_, below)| *below == Path::new(wanted));
        if in_boot && (name.starts_with("vmlinuz-") || name.starts_with("vmlinux-")) {
            let image = KernelImage::read(contents).map_err(unexpected(&path, cancel))?;
            if boot.replace(image).is_some() {
                return Err(PullError::unexpected(file_name(file), "it has several kernels"));
            }
        } else if is_beside("vmlinuz") {
            beside = Some(KernelImage::read(contents).map_err(unexpected(&path, cancel))?);
        } else if (in_boot && name.starts_with("config-")) || is_beside("config") {
            config = Some(read_text(contents).map_err(unexpected(&path, cancel))?);
        } else if let Some((release, below)) = in_modules {
            modules.take(release, below, contents).map_err(staging_failed(file, cancel))?;
        }
        Ok(())
    })?;
    let image = boot.or(beside);
    let image =
        image.ok_or_else(|| PullError::unexpected(file_name(file), "it has no kernel in it"))?;
    let config = image.vmlinux.config().or(config);
    let config = config.as_deref().and_then(Config::parse);
    let modules = modules.of_release(&image.release).map_err(unexpected(file, cancel))?;
    Ok(KernelSource { image, config, modules: modules.map(|(dir, _)| dir) })
}

/// Stage the modules of the kernel `release` that are in `given`: the directory of that release, one
/// with such a directory below it, or a Debian package. Answers where they are and their digest.
pub(crate) fn stage_modules(
    given: &Path,
    release: &str,
    staging: &Path,
    cancel: &Cancel,
) -> Result<(PathBuf, String), PullError> {
    let given = fs::canonicalize(given).map_err(PullError::io("read", given))?;
    if !given.is_dir() {
        let mut modules = PackagedModules::new(staging);
        for_each_file(
            &given,
            cancel,
            &mut |PackagedFile { path, contents }| match in_modules(&path) {
                Some((release, below)) => {
                    modules.take(release, below, contents).map_err(staging_failed(&given, cancel))
                }
                None => Ok(()),
            },
        )?;
        let found = modules.of_release(release).map_err(unexpected(&given, cancel))?;
        return found.ok_or_else(|| PullError::unexpected(file_name(&given), NO_MODULES));
    }
    let source = release_dir(&given, release).map_err(unexpected(&given, cancel))?;
    let dir = staging.join(release);
    let mut stage = Stage::new(&dir);
    let staged = stage.add_dir(&source, &|| cancel.is_cancelled());
    staged.map_err(staging_failed(&source, cancel))?;
    Ok((dir, stage.digest()))
}

const NO_MODULES: &str = "it has no kernel modules in it";

/// The directory of a release's modules: `given` itself, or the one below it.
fn release_dir(given: &Path, release: &str) -> Result<PathBuf, String> {
    let is_one = |dir: &Path| OF_A_RELEASE.iter().any(|name| dir.join(name).exists());
    if is_one(given) {
        return Ok(given.to_owned());
    }
    let mut found = Vec::new();
    for parent in [""].into_iter().chain(MODULE_DIRS) {
        let Ok(entries) = fs::read_dir(given.join(parent)) else { continue };
        let dirs = entries.flatten().filter_map(|entry| fs::canonicalize(entry.path()).ok());
        // A link may lead elsewhere in the tree, as `lib` does to `usr/lib`, and not out of it.
        found.extend(dirs.filter(|dir| dir.starts_with(given) && is_one(dir)));
    }
    found.sort();
    found.dedup();
    if let [only] = &found[..] {
        return Ok(only.clone());
    }
    let named = found.iter().find(|dir| dir.file_name().is_some_and(|name| name == release));
    named.cloned().ok_or_else(|| match found.len() {
        0 => NO_MODULES.to_owned(),
        count => format!("it has the modules of {count} kernels, but none of {release}"),
    })
}

/// Read a build configuration that somebody gave: its digest and what it says.
pub(crate) fn read_config(path: &Path, cancel: &Cancel) -> Result<(String, Config), PullError> {
    let path = fs::canonicalize(path).map_err(PullError::io("read", path))?;
    let text = read_text(open(&path, cancel)?).map_err(unexpected(&path, cancel))?;
    let config = Config::parse(&text);
    let config = config.ok_or("it is no configuration of a kernel");
    Ok((hex::encode(Sha256::digest(&text)), config.map_err(unexpected(&path, cancel))?))
}

fn read_text(file: impl Read) -> Result<String, String> {
    let bytes = read_bounded(file, MAX_CONFIG).map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|_| "it is no text".to_owned())
}

/// The modules of the one kernel that a package may have modules of.
struct PackagedModules {
    staging: PathBuf,
    /// The kernel, and its modules.
    found: Option<(String, Stage)>,
}

impl PackagedModules {
    fn new(staging: &Path) -> Self {
        Self { staging: staging.to_owned(), found: None }
    }

    fn take(
        &mut self,
        release: &str,
        below: &Path,
        contents: &mut dyn Read,
    ) -> Result<(), StageError> {
        if !Stage::wants(below) || !is_release(release) {
            return Ok(());
        }
        let begin = || (release.to_owned(), Stage::new(&self.staging.join(release)));
        let (known, stage) = self.found.get_or_insert_with(begin);
        if known != release {
            return Err(StageError::TooMuch("it has the modules of several kernels".to_owned()));
        }
        stage.add(below, contents)
    }

    /// Where the modules of that kernel are and their digest, if there are any.
    fn of_release(&self, wanted: &str) -> Result<Option<(PathBuf, String)>, String> {
        match &self.found {
            None => Ok(None),
            Some((release, stage)) if release == wanted => {
                Ok(Some((self.staging.join(release), stage.digest())))
            }
            Some((release, _)) => {
                Err(format!("its modules are of the kernel {release}, and the kernel is {wanted}"))
            }
        }
    }
}

/// The release and the rest of a path below a directory of modules.
fn in_modules(path: &Path) -> Option<(&str, &Path)> {
    let below = MODULE_DIRS.iter().find_map(|dir| path.strip_prefix(dir).ok())?;
    let release = below.iter().next()?;
    Some((release.to_str()?, below.strip_prefix(release).ok()?))
}

fn for_each_file(
    package: &Path,
    cancel: &Cancel,
    on_file: &mut dyn FnMut(PackagedFile<'_>) -> Result<(), PullError>,
) -> Result<(), PullError> {
    enum Failure {
        Reading(io::Error),
        Using(PullError),
    }
    impl From<io::Error> for Failure {
        fn from(error: io::Error) -> Self {
            Self::Reading(error)
        }
    }
    let reader = open(package, cancel)?;
    let done = read_package(reader, &mut |file| on_file(file).map_err(Failure::Using));
    done.map_err(|failure| match failure {
        Failure::Using(error) => error,
        Failure::Reading(error) => unexpected(package, cancel)(error.to_string()),
    })
}

/// A file that is read until the work is called off.
struct Watched<'a> {
    file: File,
    cancel: &'a Cancel,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("it was called off"));
        }
        self.file.read(buffer)
    }
}

fn open<'a>(path: &Path, cancel: &'a Cancel) -> Result<BufReader<Watched<'a>>, PullError> {
    let file = open_plain(path).map_err(read_failed(path, cancel))?;
    Ok(BufReader::with_capacity(1 << 20, Watched { file, cancel }))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// For `map_err`: a file could not be read.
fn read_failed(path: &Path, cancel: &Cancel) -> impl FnOnce(io::Error) -> PullError {
    let (path, cancel) = (path.to_owned(), cancel.clone());
    move |error| match error.kind() {
        _ if cancel.is_cancelled() => PullError::Cancelled,
        io::ErrorKind::InvalidInput => PullError::unexpected(path.display().to_string(), error),
        _ => PullError::io("read", &path)(error),
    }
}

/// For `map_err`: a file is not what it should be.
fn unexpected<E: ToString>(path: &Path, cancel: &Cancel) -> impl FnOnce(E) -> PullError {
    let (what, cancel) = (file_name(path), cancel.clone());
    move |reason| {
        if cancel.is_cancelled() {
            PullError::Cancelled
        } else {
            PullError::unexpected(what, reason.to_string())
        }
    }
}

/// For `map_err`: modules could not be taken over.
fn staging_failed(source: &Path, cancel: &Cancel) -> impl FnOnce(StageError) -> PullError {
    let (what, cancel) = (file_name(source), cancel.clone());
    move |error| match error {
        _ if cancel.is_cancelled() => PullError::Cancelled,
        StageError::TooMuch(reason) => PullError::unexpected(what, reason),
        StageError::File { path, source } if is_of_the_host(&source) => {
            PullError::io("take over", &path)(source)
        }
        StageError::File { path, source } => {
            PullError::unexpected(format!("{what}: {}", path.display()), source)
        }
    }
}

/// Whether the host, and not what was read, is at fault.
fn is_of_the_host(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::StorageFull | Kind::QuotaExceeded | Kind::PermissionDenied)
}
