//! Files and messages of earlier releases are read by this one, and what a later release adds is no
//! obstacle: VMs outlive the daemon that started them, and updates.
//!
//! The fixtures are as the release in their names wrote them, and are never changed.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::agent::{Configure, Hello};
use crate::error::{ErrorCode, Problem};
use crate::shim::{LaunchEvent, LaunchSpec, ShimHello};
use crate::version::DaemonVersion;
use crate::vm::{EndCause, InitMode, StopVm, VmEnd, VmStatus};

const LAUNCH: &str = include_str!("fixtures/launch-0.1.json");
const STATUS: &str = include_str!("fixtures/status-0.1.json");
const MESSAGES: &str = include_str!("fixtures/messages-0.1.json");
/// Fields whose contents are the user's own names, where one more is one more and not unknown.
const FREE: [&str; 2] = ["env", "labels"];

/// Reads what an earlier release wrote; then the same with an unknown field in every object, as a
/// later release may have it. Both mean the same.
fn read<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(value: &Value) -> T {
    let read = |value: &Value| -> T {
        serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error} in {value}"))
    };
    let old = read(value);
    let mut new = value.clone();
    add_unknown(&mut new);
    assert_ne!(&new, value);
    assert_eq!(read(&new), old, "unknown fields change nothing");
    // What this release writes, it reads.
    let again = serde_json::to_value(&old).expect("plain data");
    assert_eq!(read(&again), old);
    old
}

fn add_unknown(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                if !FREE.contains(&name.as_str()) && !is_variant(name) {
                    add_unknown(field);
                }
            }
            if !fields.keys().any(|name| is_variant(name)) {
                fields.insert("of_a_later_release".to_owned(), json!({"x": [1]}));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(add_unknown),
        _ => {}
    }
}

/// `{"exited": 3}` is an enum's variant, which has one field by its nature.
fn is_variant(name: &str) -> bool {
    matches!(name, "exited" | "signaled")
}

fn text(text: &str) -> Value {
    serde_json::from_str(text).expect("a fixture is JSON")
}

#[test]
fn files_of_earlier_releases_are_read() {
    let launch: LaunchSpec = read(&text(LAUNCH));
    assert_eq!((launch.init, launch.stop_signal, launch.main), (InitMode::Agent, None, None));
    assert_eq!(launch.jail_user.map(|user| user.uid), Some(991));
    let status: VmStatus = read(&text(STATUS));
    assert_eq!(status.end.expect("how it ended").cause, EndCause::MainExited);
}

#[test]
fn messages_of_earlier_releases_are_read() {
    let messages = text(MESSAGES);
    let daemon: DaemonVersion = read(&messages["daemon_version"]);
    assert_eq!(daemon.pid, 7);
    let shim: ShimHello = read(&messages["shim_hello"]);
    assert_eq!(shim.vm_id, "0123456789ab");
    let agent: Hello = read(&messages["agent_hello"]);
    assert!(agent.features.is_empty(), "an agent without features says none");
    let configure: Configure = read(&messages["configure"]);
    assert_eq!(configure.hostname, "web");
    let _: StopVm = read(&messages["stop_vm"]);
    let event: LaunchEvent = read(&messages["launch_event"]);
    assert!(matches!(event, LaunchEvent::Ready { .. }));
}

#[test]
fn kinds_of_later_releases_keep_their_words() {
    let end = json!({"cause": "eaten_by_the_dog", "reason": "the dog ate it"});
    let end: VmEnd = serde_json::from_value(end).expect("a kind is no obstacle");
    assert_eq!((end.cause, end.reason.as_str()), (EndCause::Other, "the dog ate it"));
    let problem = json!({"code": "dog_at_large", "title": "the dog is away"});
    let problem: Problem = serde_json::from_value(problem).expect("a kind is no obstacle");
    assert_eq!((problem.code, problem.title.as_str()), (ErrorCode::Internal, "the dog is away"));
}
