//! The VMM's jail: what a guest that has taken over its VMM can still touch.
//!
//! The jail is its own process of one thread, started by the shim as `banger-shim jail` inside a
//! new process namespace. [`enter_and_exec`] takes it through the steps in [`STEPS`] and turns it
//! into the VMM. Afterwards it has
//!
//! - a root directory on a read-only tmpfs with nothing but the program, its libraries and firmware,
//!   three devices, and the VM's own files, the image among them read-only;
//! - no `/proc`, no `/sys`, no socket of anybody;
//! - an empty network namespace (the tap arrives as an open descriptor), empty IPC and UTS ones;
//! - a user namespace in which it is not root and has no capability, also none over the mounts and
//!   the network of the shim, which belong to the shim's user namespace;
//! - `no_new_privs`, no capability left to gain, and limits on file size and core dumps.

mod opener;
mod proc_self;
mod root;
mod user;

pub use opener::{OPENER_STEP, serve_opens};
pub use user::{NoJailUser, SYSTEM_USER, system_user};

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use banger_api::shim::JailUser;

/// What stands in a jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailSpec {
    /// An empty directory of this VM, on which the jail's root is mounted.
    pub mount_point: PathBuf,
    /// Program and arguments. The program's path is the same inside.
    pub argv: Vec<String>,
    /// What is visible, besides `/dev` with [`JailSpec::devices`].
    pub mounts: Vec<JailMount>,
    /// Devices, as absolute paths; missing ones are left out.
    pub devices: Vec<PathBuf>,
    /// The user that a jail made by root becomes.
    pub user: Option<JailUser>,
    /// The largest file that can be written.
    pub max_file_bytes: u64,
    /// A socket to whoever answers for the files that the program opens for reading and writing and
    /// may only read: see [`serve_opens`].
    #[serde(default)]
    pub opener: Option<RawFd>,
}

/// A file or directory that is visible in a jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailMount {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Where it is in the jail: an absolute path.
    pub target: PathBuf,
    /// Whether it may be written.
    pub writable: bool,
}

impl JailMount {
    /// Something to be read at the path it has on the host.
    #[must_use]
    pub fn same_path(path: impl Into<PathBuf>) -> Self {
        let source = path.into();
        Self { target: source.clone(), source, writable: false }
    }

    /// Something to be read at another path.
    #[must_use]
    pub fn read_only(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), writable: false }
    }

    /// Something to be read and written at another path.
    #[must_use]
    pub fn writable(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), writable: true }
    }
}

/// Why a jail could not be entered.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} of the VMM's jail{}", path.as_ref().map(|path| format!(" ({})", path.display())).unwrap_or_default())]
pub struct JailError {
    /// The step that failed, as a verb and its object.
    pub step: &'static str,
    /// The path it was about.
    pub path: Option<PathBuf>,
    /// Why.
    #[source]
    pub source: io::Error,
}

type Step = (&'static str, fn(&JailSpec) -> Result<(), StepError>);

/// The way into the jail. After the last step only the exec is left.
const STEPS: [Step; 9] = [
    ("separate the namespaces", separate),
    ("mount the root", root::mount_root),
    ("show the files", root::show_files),
    ("show the devices", root::show_devices),
    ("close the root", root::close),
    ("set the limits", limit),
    ("block the signals", block_signals),
    ("drop the privileges", user::drop_privileges),
    (OPENER_STEP, opener::hand_over),
];

/// An error of a step, with the path it was about.
#[derive(Debug)]
struct StepError {
    path: Option<PathBuf>,
    source: io::Error,
}

impl From<Errno> for StepError {
    fn from(errno: Errno) -> Self {
        Self { path: None, source: errno.into() }
    }
}

impl From<io::Error> for StepError {
    fn from(source: io::Error) -> Self {
        Self { path: None, source }
    }
}

/// Lets an error say which path it was about.
fn at<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> StepError {
    move |source| StepError { path: Some(path.to_owned()), source: source.into() }
}

/// Enters the jail and becomes its program.
///
/// The caller has one thread, is root of a user namespace, and shares none of its state with
/// anybody. Descriptors without close-on-exec stay open.
///
/// # Errors
/// [`JailError`] names the step. The process may then be half inside and must exit.
pub fn enter_and_exec(spec: &JailSpec) -> Result<Infallible, JailError> {
    for (step, run) in STEPS {
        run(spec).map_err(|error| JailError { step, path: error.path, source: error.source })?;
    }
    exec(&spec.argv).map_err(|errno| JailError {
        step: "execute the program",
        path: spec.argv.first().map(PathBuf::from),
        source: errno.into(),
    })
}

fn separate(_: &JailSpec) -> Result<(), StepError> {
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )?;
    Ok(())
}

fn limit(spec: &JailSpec) -> Result<(), StepError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_FSIZE, spec.max_file_bytes, spec.max_file_bytes)?;
    // A host may allow less, and root in a user namespace may not raise that.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let descriptors = most.min(256);
    setrlimit(Resource::RLIMIT_NOFILE, descriptors, descriptors)?;
    Ok(())
}

/// A host that goes down signals every process. The shim then stops its guest properly, for which
/// the VMM must live; the shim ends it with SIGKILL. A program keeps the mask that it is given.
fn block_signals(_: &JailSpec) -> Result<(), StepError> {
    crate::process::block_polite_signals()?;
    Ok(())
}

fn exec(argv: &[String]) -> Result<Infallible, Errno> {
    let argv: Vec<CString> = argv
        .iter()
        .map(|argument| CString::new(argument.as_str()).map_err(|_| Errno::EINVAL))
        .collect::<Result<_, _>>()?;
    let program = argv.first().ok_or(Errno::EINVAL)?;
    let no_environment: [CString; 0] = [];
    nix::unistd::execve(program, &argv, &no_environment)
}
