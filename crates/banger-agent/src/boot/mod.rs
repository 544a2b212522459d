//! From the kernel's hand-over to a guest with its own `/`.
//!
//! The agent mounts what it needs to see devices, then a thread loads the modules of the
//! initramfs and joins the root disk, while the main thread opens the port to the host and begins
//! to serve. The two meet once: the thread leaves the initramfs only after the port is open,
//! because the port is found through the initramfs's `/dev` and `/sys`.
//!
//! A boot that fails leaves an agent that answers `hello`; `configure` then tells the reason.

pub mod arguments;
mod device_mapper;
pub mod disks;
mod modules;
mod mounts;
mod root;
mod uevents;

use std::sync::mpsc;

use banger_api::agent::INIT_ARG;
use banger_api::vm::InitMode;
use banger_api::{ErrorCode, Problem, step};
use tokio::sync::watch;

pub use uevents::Uevents;

use crate::{console, fault};

/// What came of the root disk: warnings, or the reason why there is none.
pub type RootOutcome = Result<Vec<String>, Problem>;

/// A boot under way.
#[derive(Debug)]
pub struct Boot {
    port_open: mpsc::Sender<()>,
    root: watch::Receiver<Option<RootOutcome>>,
}

/// Mounts what everything else needs, and says what the host wants as the first process.
pub fn wanted_init() -> InitMode {
    mounts::mount_initial();
    match arguments::value(INIT_ARG) {
        Some(mode) if mode == InitMode::System.as_str() => InitMode::System,
        _ => InitMode::Agent,
    }
}

/// Prepares this process and begins the boot. To be called after [`wanted_init`].
pub fn begin() -> Boot {
    prepare_process();
    let (port_open, port_opened) = mpsc::channel();
    let (done, root) = watch::channel(None);
    let thread = std::thread::Builder::new().name("boot".to_owned()).spawn({
        let done = done.clone();
        move || done.send_replace(Some(boot(&port_opened)))
    });
    if let Err(error) = thread {
        let problem = Problem::new(ErrorCode::BootFailed, "The guest could not boot");
        done.send_replace(Some(Err(problem.because(&error))));
    }
    Boot { port_open, root }
}

impl Boot {
    /// Lets the boot leave the initramfs.
    pub fn port_is_open(&self) {
        // Without a receiver the boot has failed before; its outcome says so.
        let _ = self.port_open.send(());
    }

    /// Where the outcome will be.
    pub fn into_root(self) -> watch::Receiver<Option<RootOutcome>> {
        self.root
    }
}

/// Settings that the agent's own process needs and that commands must not inherit.
fn prepare_process() {
    // Without the agent there is no guest: nothing else may be killed later than it.
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        console::say(&format!("the agent may be killed when memory runs out: {error}"));
    }
    const OPEN_FILES: u64 = 65_536;
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let _ = nix::sys::resource::setrlimit(limit, OPEN_FILES, OPEN_FILES * 8);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
}

fn boot(port_opened: &mpsc::Receiver<()>) -> RootOutcome {
    let step_failed = |error: std::io::Error| {
        Problem::new(ErrorCode::BootFailed, "The guest's root disk cannot be set up")
            .because(&error)
    };
    fault::pass(step::GUEST_MODULES).map_err(step_failed)?;
    let failed_modules = modules::load_all();
    for failure in &failed_modules {
        console::say(failure);
    }
    fault::pass(step::GUEST_ROOT).map_err(step_failed)?;
    root::set_up(port_opened).map_err(|error| {
        let problem = Problem::new(ErrorCode::BootFailed, "The guest's root disk cannot be set up")
            .because(&error);
        console::say(&problem.to_string());
        failed_modules.into_iter().fold(problem, Problem::cause)
    })
}
