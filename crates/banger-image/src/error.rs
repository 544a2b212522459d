//! What can go wrong with images and kernels, and what a person can do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use banger_api::{ErrorCode, Problem};
use banger_core::reference::ReferenceError;
use banger_host::command::ToolError;

use crate::blobs::BlobError;
use crate::catalog::Catalog;
use crate::layer::LayerError;
use crate::registry::RegistryError;

/// The two kinds of things that a library holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A root filesystem.
    Image,
    /// A kernel with its modules.
    Kernel,
}

impl Kind {
    /// The kind in one lower-case word; also its verb on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Kernel => "kernel",
        }
    }

    fn not_found(self) -> ErrorCode {
        match self {
            Self::Image => ErrorCode::ImageNotFound,
            Self::Kernel => ErrorCode::KernelNotFound,
        }
    }

    fn corrupt(self) -> ErrorCode {
        match self {
            Self::Image => ErrorCode::ImageCorrupt,
            Self::Kernel => ErrorCode::KernelCorrupt,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why something with local images and kernels failed.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// A file or directory of the library could not be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was to be done: `read`.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nothing of that name or digest is here.
    #[error("no {kind} {name} here")]
    NotFound {
        /// Which kind of thing.
        kind: Kind,
        /// What was asked for.
        name: String,
        /// The most similar name that exists.
        nearest: Option<String>,
    },
    /// A name that nothing can have.
    #[error("{name:?} cannot be a name")]
    BadName {
        /// The name.
        name: String,
    },
    /// Its files are not as they were made.
    #[error("{kind} {name} is damaged: {reason}")]
    Corrupt {
        /// Which kind of thing.
        kind: Kind,
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that no image can have, here or in a registry.
    #[error("{name:?} is not the name of an image")]
    Reference {
        /// The name.
        name: String,
        /// Why not.
        source: ReferenceError,
    },
    /// The user's catalog cannot be used.
    #[error("the catalog {} makes no sense: {reason}", path.display())]
    Catalog {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tree that belongs to subordinate ids could not be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// The tree.
        path: PathBuf,
        /// Why not.
        source: ToolError,
    },
}

impl LibraryError {
    /// For `map_err`: an input or output error with what was to be done with which file.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// The kind of failure.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io { source, .. } if is_disk_full(source) => ErrorCode::HostDiskFull,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                ErrorCode::HostNotPermitted
            }
            Self::Io { .. } => ErrorCode::Internal,
            Self::NotFound { kind, .. } => kind.not_found(),
            Self::BadName { .. } | Self::Reference { .. } | Self::Catalog { .. } => {
                ErrorCode::InvalidArgument
            }
            Self::Corrupt { kind, .. } => kind.corrupt(),
            Self::Remove { source, .. } => source.code(ErrorCode::Internal),
        }
    }

    /// What to type next, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { kind, nearest, .. } => Some(not_found_hint(*kind, nearest.as_deref())),
            Self::Corrupt { kind: Kind::Kernel, name, .. }
                if Catalog::built_in().kernel(name).is_none() =>
            {
                Some(format!("import the kernel again: banger kernel import --name {name}"))
            }
            Self::Corrupt { kind, name, .. } => {
                Some(format!("banger {kind} pull --refresh {name}"))
            }
            Self::Remove { source, .. } => source.hint(),
            Self::Io { .. } if self.code() == ErrorCode::HostDiskFull => {
                Some("banger system df".to_owned())
            }
            Self::Reference { .. } => Some("banger image catalog".to_owned()),
            Self::Io { .. } | Self::BadName { .. } | Self::Catalog { .. } => None,
        }
    }
}

/// Why fetching or building an image or a kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The catalog does not have it.
    #[error("the catalog has no {kind} {name}")]
    Unknown {
        /// Which kind of thing.
        kind: Kind,
        /// What was asked for.
        name: String,
        /// The most similar name that the catalog has.
        nearest: Option<String>,
    },
    /// Somebody called it off.
    #[error("the pull was cancelled")]
    Cancelled,
    /// There is not enough room to begin.
    #[error("not enough disk space: {needed_mib} MiB are needed, {free_mib} MiB are free")]
    NoSpace {
        /// What it takes to build.
        needed_mib: u64,
        /// What there is.
        free_mib: u64,
    },
    /// The host's apt has no source of Debian packages.
    #[error("no Debian package source is configured on this host")]
    NoDebianSource,
    /// The keys that Debian signs with are not here.
    #[error("the keys of the Debian archive are missing: {}", path.display())]
    NoKeyring {
        /// Where they should be.
        path: PathBuf,
    },
    /// A program of the host failed.
    #[error("{doing}")]
    Tool {
        /// What it was to do: `building the root filesystem`.
        doing: &'static str,
        /// Why it did not.
        source: ToolError,
    },
    /// What came is not what it should be.
    #[error("{what}: {reason}")]
    Unexpected {
        /// What came.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What was asked for makes no sense.
    #[error("{what}: {reason}")]
    Argument {
        /// What.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A kernel lacks what guests need.
    #[error("the kernel {release} lacks what guests need")]
    Unsuitable {
        /// Which kernel.
        release: String,
        /// All that is missing, in words.
        missing: Vec<String>,
        /// The build options that provide it.
        options: Vec<String>,
        /// Whether it came with modules.
        has_modules: bool,
    },
    /// A signature is wanted where there are none.
    #[error("{name} is not an image of a registry, so nobody signed it with that key")]
    NoSignatures {
        /// The image.
        name: String,
    },
    /// What came as an image is none.
    #[error("{what} cannot become an image: {reason}")]
    Invalid {
        /// What came.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name is needed, and nothing suggests one.
    #[error("the image needs a name: {source_text} suggests none")]
    NoName {
        /// What it is made of.
        source_text: String,
    },
    /// The VM was started while its disk was read.
    #[error("{vm} has written to its disk while that was read")]
    Changed {
        /// The VM.
        vm: String,
    },
    /// A layer cannot be put on a disk.
    #[error(transparent)]
    Layer(LayerError),
    /// A registry did not do what was asked of it.
    #[error(transparent)]
    Registry(RegistryError),
    /// The library's own files failed it.
    #[error(transparent)]
    Library(#[from] LibraryError),
}

impl PullError {
    /// For `map_err`: a failed tool with what it was to do.
    pub(crate) fn tool(doing: &'static str) -> impl FnOnce(ToolError) -> Self {
        move |source| match source {
            ToolError::Cancelled { .. } => Self::Cancelled,
            source => Self::Tool { doing, source },
        }
    }

    /// For `map_err`: as [`LibraryError::io`].
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let library = LibraryError::io(action, path);
        move |source| Self::Library(library(source))
    }

    /// What came as an image is none.
    pub(crate) fn invalid(what: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Invalid { what: what.into(), reason: reason.to_string() }
    }

    /// What came is not what it should be.
    pub(crate) fn unexpected(what: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Unexpected { what: what.into(), reason: reason.to_string() }
    }

    /// The kind of failure.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown { kind, .. } => kind.not_found(),
            Self::Cancelled => ErrorCode::Cancelled,
            Self::NoSpace { .. } => ErrorCode::HostDiskFull,
            Self::NoKeyring { .. } => ErrorCode::HostProgramMissing,
            Self::Tool { source, .. } => source.code(ErrorCode::PullFailed),
            Self::NoDebianSource | Self::Unexpected { .. } => ErrorCode::PullFailed,
            Self::NoSignatures { .. } => ErrorCode::SignatureInvalid,
            Self::Argument { .. } => ErrorCode::InvalidArgument,
            Self::Unsuitable { .. } => ErrorCode::KernelUnsuitable,
            Self::Invalid { .. } => ErrorCode::ImageInvalid,
            Self::Changed { .. } => ErrorCode::VmWrongState,
            Self::NoName { .. } => ErrorCode::InvalidArgument,
            Self::Layer(error) => error.code(),
            Self::Registry(error) => error.code(),
            Self::Library(error) => error.code(),
        }
    }

    /// What to type next, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { kind, nearest, .. } => Some(not_found_hint(*kind, nearest.as_deref())),
            Self::NoSpace { .. } => Some("banger system df".to_owned()),
            Self::NoDebianSource => Some(
                "add a Debian mirror under /etc/apt/sources.list.d, then: sudo apt-get update"
                    .to_owned(),
            ),
            Self::NoKeyring { .. } => {
                Some("sudo apt-get install debian-archive-keyring".to_owned())
            }
            Self::Tool { source, .. } => source.hint(),
            Self::Layer(error) => error.hint(),
            Self::Registry(error) => error.hint(),
            Self::Library(error) => error.hint(),
            Self::Unsuitable { options, has_modules, .. } => {
                let wanted: Vec<_> = options.iter().map(|option| format!("{option}=y")).collect();
                let modules = if *has_modules { "" } else { "give its --modules DIR, or " };
                Some(format!("{modules}build the kernel with {}", wanted.join(" ")))
            }
            Self::NoName { .. } => Some("banger image register --name NAME …".to_owned()),
            Self::Changed { vm } => Some(format!("banger stop {vm}")),
            Self::Cancelled
            | Self::Unexpected { .. }
            | Self::Invalid { .. }
            | Self::NoSignatures { .. }
            | Self::Argument { .. } => None,
        }
    }
}

impl From<RegistryError> for PullError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Cancelled => Self::Cancelled,
            RegistryError::Library(error) => Self::Library(error),
            error => Self::Registry(error),
        }
    }
}

impl From<BlobError> for PullError {
    fn from(error: BlobError) -> Self {
        RegistryError::from(error).into()
    }
}

impl From<LibraryError> for Problem {
    fn from(error: LibraryError) -> Self {
        let mut problem = Self::new(error.code(), error.to_string());
        if let Some(source) = std::error::Error::source(&error) {
            problem = problem.because(source);
        }
        problem.hint = error.hint();
        problem
    }
}

impl From<PullError> for Problem {
    fn from(error: PullError) -> Self {
        let mut problem = match &error {
            PullError::Tool { doing, source } => {
                source.problem(format!("{doing} failed"), ErrorCode::PullFailed)
            }
            PullError::Unsuitable { missing, .. } => {
                let problem = Self::new(error.code(), error.to_string());
                missing.iter().fold(problem, Self::cause)
            }
            _ => Self::new(error.code(), error.to_string()),
        };
        let inner = match &error {
            PullError::Library(error) => std::error::Error::source(error),
            PullError::Layer(error) => std::error::Error::source(error),
            PullError::Registry(error) => std::error::Error::source(error),
            _ => None,
        };
        if let (Some(source), true) = (inner, problem.causes.is_empty()) {
            problem = problem.because(source);
        }
        problem.hint = error.hint();
        problem
    }
}

fn not_found_hint(kind: Kind, nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("did you mean {nearest}? (banger {kind} catalog)"),
        None => format!("banger {kind} catalog"),
    }
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io_error(kind: io::ErrorKind) -> LibraryError {
        LibraryError::io("write", Path::new("/data/x"))(kind.into())
    }

    #[test]
    fn problems_have_code_causes_and_hint() {
        let unknown = |nearest: Option<&str>| PullError::Unknown {
            kind: Kind::Image,
            name: "debian-bokworm".to_owned(),
            nearest: nearest.map(str::to_owned),
        };
        let missing = PullError::Tool {
            doing: "building the root filesystem",
            source: ToolError::Missing { program: "mmdebstrap".to_owned() },
        };
        let cases: [(Problem, ErrorCode, &str); 5] = [
            (unknown(Some("debian-bookworm")).into(), ErrorCode::ImageNotFound, "debian-bookworm"),
            (unknown(None).into(), ErrorCode::ImageNotFound, "banger image catalog"),
            (missing.into(), ErrorCode::HostProgramMissing, "sudo apt-get install mmdebstrap"),
            (io_error(io::ErrorKind::StorageFull).into(), ErrorCode::HostDiskFull, "system df"),
            (
                PullError::from(io_error(io::ErrorKind::StorageFull)).into(),
                ErrorCode::HostDiskFull,
                "system df",
            ),
        ];
        for (problem, code, hint) in cases {
            assert_eq!(problem.code, code, "{problem}");
            assert!(problem.hint.as_deref().is_some_and(|h| h.contains(hint)), "{problem:?}");
        }
    }

    #[test]
    fn a_cause_is_told_once() {
        let problem: Problem = PullError::from(io_error(io::ErrorKind::NotFound)).into();
        assert_eq!(problem.to_string(), "cannot write /data/x: entity not found");
        let problem: Problem = PullError::Tool {
            doing: "building the root filesystem",
            source: ToolError::Missing { program: "mmdebstrap".to_owned() },
        }
        .into();
        assert_eq!(
            problem.to_string(),
            "building the root filesystem failed: mmdebstrap is not installed"
        );
    }
}
