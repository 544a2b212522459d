//! What a warm start cannot go below: QEMU alone, started with `-incoming` from what banger keeps of
//! a booted VM, and one command given to its agent.

use super::Stage;
use super::contender::{Contender, Once, Reason, Side};

/// Without daemon, shim, jail and network.
pub(super) const FLOOR: Contender =
    Contender { name: "bare QEMU, restored", side: Side::Floor, every: 1, prepare };

fn prepare(_stage: &Stage) -> Result<Once<'_>, Reason> {
    Err(Reason::new("banger keeps no booted VM to restore"))
}
