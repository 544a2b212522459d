//! tidy
use crate::failure::ChoreFailure;
/// a
pub fn check() -> Result<(), ChoreFailure> {
    Ok(())
}
