//! Exit codes of the `banger` command: the guest's own, and a few of banger's.

/// The command ran out of its `--timeout`.
pub const TIMEOUT: u8 = 124;
/// banger itself failed; the code in `--format json` says how.
pub const BANGER_FAILED: u8 = 125;
/// The program exists in the guest and cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// No such program in the guest.
pub const NOT_FOUND: u8 = 127;
/// A command killed by signal N exits with this plus N.
pub const SIGNAL_BASE: u8 = 128;

/// The exit code for death by signal `number`, as shells have it.
#[must_use]
pub fn for_signal(number: i32) -> u8 {
    u8::try_from(number).map_or(BANGER_FAILED, |n| SIGNAL_BASE.saturating_add(n))
}
