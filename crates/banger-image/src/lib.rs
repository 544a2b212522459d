//! Where root filesystems and kernels come from.
//!
//! The [`Library`] holds the local ones and makes more from the catalog: a Debian root filesystem
//! bootstrapped from the host's own package sources, Debian's kernel taken out of its package. Both
//! become plain files that any engine can use, named by digest, whole or not there at all, and never
//! changed afterwards.
//!
//! Everything here is files: no database, no daemon. The methods block and are called from a
//! blocking pool.

mod apt;
mod archive;
mod blobs;
mod bzimage;
mod catalog;
mod cpio;
mod debian;
mod error;
mod ext4;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod initramfs;
mod kernel;
mod layer;
mod library;
mod modules;
mod oci;
mod packing;
mod registry;
mod rootfs;
mod stage;
mod store;
mod work_disk;

pub use error::{Kind, LibraryError, PullError};
pub use library::{LayerUse, Library, LocalImage, LocalKernel, VmDisk};
pub use registry::ProgressSink;
pub use work_disk::make_work_disk;
