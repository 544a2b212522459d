//! bench
use crate::failure::ChoreFailure;
/// a
pub fn run(_runs: usize) -> Result<(), ChoreFailure> {
    Ok(())
}
