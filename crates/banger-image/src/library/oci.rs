//! Images out of registries.

use banger_api::image::{Image, PullRequest};
use banger_api::vm::InitMode;
use banger_core::reference::Reference;
use banger_host::command::Cancel;

use super::Library;
use crate::catalog::{FileImage, ImageEntry};
use crate::error::PullError;
use crate::stage::Reporter;

/// An image of a registry, and what it will be here.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) reference: Reference,
    pub(super) kernel: Option<String>,
    pub(super) init: InitMode,
}

impl Target {
    pub(super) fn of_entry(entry: &ImageEntry, reference: Reference) -> Self {
        let kernel = Some(entry.kernel.clone());
        Self { name: entry.name.clone(), reference, kernel, init: entry.init }
    }

    pub(super) fn of_reference(reference: Reference) -> Self {
        Self { name: reference.familiar(), reference, kernel: None, init: InitMode::Agent }
    }
}

impl Library {
    pub(super) fn pull_oci(
        &self,
        target: &Target,
        _request: &PullRequest,
        _reporter: &mut Reporter<'_>,
        _cancel: &Cancel,
    ) -> Result<Image, PullError> {
        Err(PullError::unexpected(&target.name, "registries are not there yet"))
    }

    pub(super) fn pull_file(
        &self,
        entry: &ImageEntry,
        _file: &FileImage,
        _request: &PullRequest,
        _reporter: &mut Reporter<'_>,
        _cancel: &Cancel,
    ) -> Result<Image, PullError> {
        Err(PullError::unexpected(&entry.name, "files are not there yet"))
    }
}
