//! `cargo xtask leaks`: what is on the machine.
use crate::failure::ChoreFailure;
use std::path::Path;
/// a
pub fn snapshot(_f: &Path) -> Result<(), ChoreFailure> {
    Ok(())
}
/// a
pub fn compare(_f: &Path) -> Result<(), ChoreFailure> {
    Ok(())
}
