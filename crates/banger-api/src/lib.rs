//! The words that banger's processes say to each other.
//!
//! Everything here is plain data: what the CLI asks the daemon ([`vm`], [`image`], [`kernel`],
//! [`operation`], [`system`]), what the daemon hands a shim ([`shim`]), what a shim asks the guest
//! agent ([`agent`]), and the one stream format all of them share ([`exec`]). Nothing in this crate
//! performs input or output, so every process, the guest's included, can depend on it.
//!
//! Two conventions hold throughout. Units are the last word of a field's name (`timeout_ms`,
//! `memory_mib`), and times are milliseconds since the Unix epoch. Unknown fields are ignored when
//! read, so that a newer process can talk to an older one, and so are the kinds of failures and ends,
//! which have words for people beside them; a change that an older reader must not miss raises the
//! protocol version in [`version`] instead.

pub mod agent;
pub mod change;
pub mod end;
pub mod error;
pub mod event;
pub mod exec;
pub mod exit;
pub mod fork;
pub mod image;
pub mod kernel;
pub mod operation;
#[cfg(test)]
mod released;
pub mod shim;
pub mod snapshot;
pub mod step;
pub mod system;
pub mod template;
pub mod trace;
pub mod version;
pub mod vm;

pub use error::{ErrorCode, Problem};
