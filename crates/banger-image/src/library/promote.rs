//! Images out of the disks of VMs.

use std::path::Path;

use banger_api::image::{Image, PushImage, Pushed};
use banger_api::operation::Progress;
use banger_host::command::Cancel;

use super::Library;
use crate::error::PullError;

/// The disk of a VM that has stopped.
#[derive(Debug, Clone, Copy)]
pub struct VmDisk<'a> {
    /// The VM's name.
    pub vm: &'a str,
    /// Digest of the VM's image.
    pub image_digest: &'a str,
    /// The VM's directory.
    pub vm_dir: &'a Path,
    /// Size of its root disk.
    pub bytes: u64,
}

impl Library {
    /// Make an image of a VM's disk.
    ///
    /// # Errors
    /// See [`PullError`]. Nothing half-made stays visible.
    pub fn promote(
        &self,
        _name: &str,
        _disk: &VmDisk<'_>,
        _on_progress: &mut dyn FnMut(Progress),
        _cancel: &Cancel,
    ) -> Result<Image, PullError> {
        Err(PullError::unexpected("promote", "not there yet"))
    }

    /// Send an image to a registry.
    ///
    /// # Errors
    /// See [`PullError`].
    pub fn push_image(
        &self,
        _request: &PushImage,
        _on_progress: &mut dyn FnMut(Progress),
        _cancel: &Cancel,
    ) -> Result<Pushed, PullError> {
        Err(PullError::unexpected("push", "not there yet"))
    }
}
