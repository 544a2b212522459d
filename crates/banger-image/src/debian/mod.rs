//! Images and kernels out of the Debian archive.

pub(crate) mod bootstrap;
pub(crate) mod deb;
pub(crate) mod package;
mod progress;
