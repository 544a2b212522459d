//! Kernel modules: what each needs, and the indexes by which `modprobe` finds them.
//!
//! A kernel package has the modules but not their indexes; on an installed system `depmod` makes
//! those. banger makes them itself: the result does not depend on what the host has installed, and
//! a third of `depmod` is enough, because Debian's modules name what they depend on.

mod elf;
mod index;
mod set;
mod stage;

pub(crate) use index::write_indexes;
pub(crate) use set::ModuleSet;
pub(crate) use stage::{Stage, StageError, open_plain};

/// A fuzz target: what a module says of itself.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_module(data: &[u8]) {
    if let Some(info) = elf::module_info(data) {
        assert!(info.bytes() <= data.len() * 2 + 64, "a module says more than it has bytes");
        let _ = info.wanted_before().count();
    }
}

use index::BUILT_IN_INFO;
use set::BUILT_IN;

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::elf::tests::module_file;
    pub(crate) use super::set::tests::kernel_dir;
}
