//! What happens, as a stream: `GET /v1/events` is a server-sent event stream of [`Event`]s, each one
//! `data:` line of JSON.
//!
//! The daemon remembers the last few thousand since its own start. It never waits for a reader: one
//! that falls behind is told with `events.missed` how many it did not get.

use serde::{Deserialize, Serialize};

use crate::vm::{EndCause, Origin};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Counts the events of this daemon, from 1 on.
    pub number: u64,
    /// When, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// What.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// Of a VM its id, of an image or a kernel its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The name of the VM, image or kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of an end: its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<EndCause>,
    /// Why, one line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of an end: the exit code of the main command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Of a guest that is up: how it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Of an end: when the VM's restart policy starts it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start_ms: Option<u64>,
    /// Of `events.missed`: how many were not delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
}

macro_rules! event_types {
    ($($(#[doc = $doc:literal])* $name:ident = $word:literal,)*) => {
        /// The kinds of events.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum EventType {
            $($(#[doc = $doc])* #[serde(rename = $word)] $name,)*
        }

        impl EventType {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The kind in one word: `vm.stopped`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

event_types! {
    /// A VM was made.
    VmCreated = "vm.created",
    /// It begins to start.
    VmStarting = "vm.starting",
    /// Its guest is up.
    VmRunning = "vm.running",
    /// It stands still; the reason is `requested` or `host-disk-full`.
    VmPaused = "vm.paused",
    /// It goes on.
    VmResumed = "vm.resumed",
    /// It is being stopped.
    VmStopping = "vm.stopping",
    /// It ended as somebody or it itself wished.
    VmStopped = "vm.stopped",
    /// It ended as nobody wished.
    VmFailed = "vm.failed",
    /// Its restart policy starts it again.
    VmRestarting = "vm.restarting",
    /// Its time to live is over.
    VmExpired = "vm.expired",
    /// Somebody changed what it is.
    VmChanged = "vm.changed",
    /// It is no more.
    VmRemoved = "vm.removed",
    /// A daemon that started found it running.
    VmAdopted = "vm.adopted",
    /// An image was fetched.
    ImagePulled = "image.pulled",
    /// An image was made of local files or of a VM.
    ImageRegistered = "image.registered",
    /// An image lost its name, or is gone.
    ImageRemoved = "image.removed",
    /// An image that nobody needed is gone.
    ImagePruned = "image.pruned",
    /// An image was sent to a registry.
    ImagePushed = "image.pushed",
    /// A kernel was fetched.
    KernelPulled = "kernel.pulled",
    /// A kernel was made of local files.
    KernelRegistered = "kernel.registered",
    /// A kernel is gone.
    KernelRemoved = "kernel.removed",
    /// A snapshot of a VM was made; the name is the VM's, the reason the snapshot's.
    SnapshotMade = "snapshot.made",
    /// A snapshot of a VM is gone.
    SnapshotRemoved = "snapshot.removed",
    /// A VM went back to a snapshot.
    SnapshotRestored = "snapshot.restored",
    /// A template was made.
    TemplateMade = "template.made",
    /// A template is gone.
    TemplateRemoved = "template.removed",
    /// The daemon began.
    DaemonStarted = "daemon.started",
    /// The reader was too slow for this many events.
    EventsMissed = "events.missed",
}

impl std::fmt::Display for EventType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Query of `GET /v1/events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventQuery {
    /// First those remembered from this moment on; None begins with what comes next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Conditions, separated by commas: `vm=web`, `type=vm.stopped`, `type=vm`. Those of one key are
    /// alternatives; all keys must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Go on with what comes. Without it the stream ends after what is remembered.
    #[serde(default = "yes")]
    pub follow: bool,
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_short_json() {
        let event = Event {
            number: 7,
            time_ms: 5,
            kind: EventType::VmStopped,
            id: Some("0123456789ab".into()),
            name: Some("web".into()),
            cause: Some(EndCause::MainExited),
            reason: Some("the command exited with 3".into()),
            exit_code: Some(3),
            origin: None,
            next_start_ms: None,
            missed: None,
        };
        let json = serde_json::to_string(&event).expect("plain data");
        assert_eq!(
            json,
            r#"{"number":7,"time_ms":5,"type":"vm.stopped","id":"0123456789ab","name":"web","cause":"main_exited","reason":"the command exited with 3","exit_code":3}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&json).expect("the same"), event);
    }

    #[test]
    fn every_kind_is_the_word_on_the_wire() {
        for kind in EventType::ALL {
            let json = serde_json::to_string(kind).expect("a word");
            assert_eq!(json, format!("\"{kind}\""));
        }
    }
}
