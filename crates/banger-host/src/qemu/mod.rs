//! The QEMU engine: a `microvm` machine booted straight into a kernel.

pub mod arguments;
pub mod qmp;

mod migration;
mod spawn;

pub use arguments::{Descriptors, guest_paths, sees_writes};
pub use migration::{MigrationError, StandsStill};
pub use spawn::{AGENT_SOCKET, QMP_SOCKET, SpawnError, Vmm, spawn};
