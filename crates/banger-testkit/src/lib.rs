//! Tests of the programs as a user has them.
//!
//! A [`Host`] is one user's banger: state directories of its own, the programs of `target/dist`, an
//! image and a kernel that were really pulled, once for all tests. What a test does reads like what
//! a person would type; what it waits for has a bound; and [`Host::finish`] fails the test if
//! anything is left over.
//!
//! ```no_run
//! use banger_testkit::Host;
//!
//! let host = Host::new();
//! host.banger(["run", "--rm", "--", "sh", "-c", "exit 7"]).run().assert_code(7);
//! host.finish();
//! ```
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests start programs, read the environment and say why they skip"
)]

mod account;
mod api;
pub mod crowd;
pub mod fixtures;
pub mod fsync_log;
mod host;
mod image_guard;
mod invocation;
mod leftovers;
pub mod manifest;
pub mod model;
mod prepared;
pub mod process;
pub mod registry;
mod terminal;
pub mod torture;
pub mod wait;

pub use account::Account;
pub use api::Api;
pub use banger_host::sparse;
pub use host::{Host, HostBuilder, Seed};
pub use image_guard::ImageGuard;
pub use invocation::{Invocation, Output, Running};
pub use leftovers::Leftovers;
pub use terminal::{Terminal, TerminalEnd};

/// Says why a test, or a part of it, did not run.
pub fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// Says how far a long test is; seen when it fails.
pub fn say(text: &str) {
    eprintln!("{text}");
}
