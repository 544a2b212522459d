//! `bangerd`: the daemon that owns one user's VMs, images and kernels.
//!
//! The CLI starts it when it is needed. It orders things: what a VM *is* stands in the database
//! ([`store`]), what is *true* of it is observed ([`reconcile`], [`vm`]), and what it does to the
//! machine goes through [`host`]. VMs outlive it.

mod api;
mod artifacts;
mod daemon;
mod events;
mod gate;
mod host;
mod jobs;
mod listener;
mod operations;
mod pool;
#[cfg(test)]
mod power_cut_tests;
mod reconcile;
mod saved;
mod serve;
mod snapshots;
mod store;
mod system;
mod templates;
#[cfg(test)]
mod testing;
mod uploads;
mod vm;

use std::io::Write;
use std::process::ExitCode;

use banger_host::environment;
use banger_host::logs::{DEFAULT_CAP_BYTES, ErrorLog};
use banger_host::paths::StateDirs;
use serve::ServeError;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Another daemon serves this user.
const ALREADY_RUNNING: u8 = 3;
/// The command line makes no sense.
const USAGE: u8 = 2;

const HELP: &str = "\
bangerd: banger's daemon, one per user

The banger command starts it when it is needed, and it serves until
`banger daemon stop`. It stays in the foreground and logs to stderr.

Usage: bangerd [--foreground | --print-openapi | --version | --help]

Environment:
  BANGER_LOG   what to log: error, warn, info (the default), debug, trace
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (None | Some("--foreground"), None) => serve(),
        (Some("--print-openapi"), None) => say(&api::openapi::document()),
        (Some("--version"), None) => say(concat!("bangerd ", env!("CARGO_PKG_VERSION"), "\n")),
        (Some("--help" | "-h"), None) => say(HELP),
        _ => {
            let _ = std::io::stderr().write_all(HELP.as_bytes());
            ExitCode::from(USAGE)
        }
    }
}

fn say(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> ExitCode {
    begin_log();
    match serve::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes = banger_api::Problem::new(banger_api::ErrorCode::Internal, "bangerd")
                .because(&error);
            tracing::error!("{causes}");
            match error {
                ServeError::AlreadyRunning(_) => ExitCode::from(ALREADY_RUNNING),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn begin_log() {
    let wanted = environment::get("BANGER_LOG").unwrap_or_default();
    let levels = wanted.parse::<Targets>().unwrap_or_default();
    let levels =
        if wanted.is_empty() { Targets::new().with_default(tracing::Level::INFO) } else { levels };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(error_log)
        .with_ansi(false)
        // On a full disk there is nowhere to complain, and complaining would abort.
        .log_internal_errors(false);
    tracing_subscriber::registry().with(levels).with(lines).init();
}

/// Standard error, which a client that starts the daemon has made its log; it may serve for years.
fn error_log() -> Box<dyn Write> {
    static LOG: std::sync::OnceLock<Option<ErrorLog>> = std::sync::OnceLock::new();
    let find = || {
        let dirs = StateDirs::locate().ok()?;
        Some(ErrorLog::new(dirs.daemon_log(), DEFAULT_CAP_BYTES))
    };
    match LOG.get_or_init(find) {
        Some(log) => Box::new(log.clone()),
        None => Box::new(std::io::stderr()),
    }
}
