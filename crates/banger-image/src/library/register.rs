//! Images out of local files.

use banger_api::image::{Image, RegisterImage};
use banger_api::operation::Progress;
use banger_host::command::Cancel;

use super::Library;
use crate::error::PullError;

impl Library {
    /// Make an image of local files.
    ///
    /// # Errors
    /// See [`PullError`]. Nothing half-made stays visible.
    pub fn register_image(
        &self,
        _request: &RegisterImage,
        _on_progress: &mut dyn FnMut(Progress),
        _cancel: &Cancel,
    ) -> Result<Image, PullError> {
        Err(PullError::unexpected("register", "not there yet"))
    }
}
