//! QEMU without anything around it: the kernel boots, loads banger's modules, and its first process
//! ends it.

use super::Stage;
use super::contender::{Contender, Once, Reason, Side};
use crate::bench::bare::{BareBoot, Manner};

/// With banger's kernel arguments and the kernel unpacked beforehand.
pub(super) const AS_BANGER: Contender = Contender {
    name: "bare QEMU boot, as banger does",
    side: Side::Peer,
    every: 5,
    prepare: |stage| prepare(stage, Manner::AsBanger),
};

/// What a person would type.
pub(super) const AS_PACKAGED: Contender = Contender {
    name: "bare QEMU boot, as packaged",
    side: Side::Peer,
    every: 5,
    prepare: |stage| prepare(stage, Manner::AsPackaged),
};

fn prepare(stage: &Stage, manner: Manner) -> Result<Once<'_>, Reason> {
    let bare = BareBoot::prepare(&stage.spec, &stage.host.scratch, manner)?;
    Ok(Box::new(move || Ok(bare.boot()?)))
}
