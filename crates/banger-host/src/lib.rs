//! The door to the machine.
//!
//! Every system call beyond ordinary file and socket work, every program that banger starts on the
//! host, and every question about the host is in this crate. Callers get values with meaning and
//! errors that say what failed; what they decide with them is not this crate's business.

pub mod clock;
pub mod command;
pub mod config;
pub mod connect;
pub mod cow;
pub mod daemon;
pub mod engine;
pub mod environment;
pub mod fault;
pub mod files;
pub mod http;
pub mod jail;
pub mod leftovers;
pub mod lock;
pub mod logs;
pub mod namespaces;
pub mod network;
pub mod oom;
pub mod paths;
pub mod probe;
pub mod process;
pub mod qemu;
pub mod random;
pub mod seal;
pub mod shim;
pub mod sparse;
pub mod supervisor;
pub mod systemd;
pub mod terminal;
pub mod trace;
