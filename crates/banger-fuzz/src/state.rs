//! Files that processes of ours write for each other; a crash or a disk may have changed them.

use banger_api::shim::{LaunchEvent, LaunchSpec};
use banger_api::vm::{Vm, VmStatus};
use banger_host::jail::JailSpec;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// `launch.json`, `status.json`, what the jail is told, and what a shim tells while it starts.
pub(crate) fn files(data: &[u8]) {
    round_trip::<LaunchSpec>(data);
    round_trip::<LaunchEvent>(data);
    round_trip::<VmStatus>(data);
    round_trip::<Vm>(data);
    let _ = serde_json::from_slice::<JailSpec>(data);
}

/// What can be read is read alike after it was written again.
fn round_trip<T: Serialize + DeserializeOwned>(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(data) else { return };
    let written = serde_json::to_vec(&value).expect("it was read from JSON");
    let again: T = serde_json::from_slice(&written).expect("we wrote it");
    assert_eq!(serde_json::to_vec(&again).expect("it was read"), written);
}
