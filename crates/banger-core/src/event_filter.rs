//! Filters of events: `vm=web,type=vm.stopped`.

use banger_api::event::{Event, EventType};

/// A filter of events. Conditions with the same key are alternatives; every key must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    vms: Vec<String>,
    types: Vec<String>,
}

/// Why a text is not a filter of events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventFilterError {
    /// A condition has no `=`, or nothing on one side of it.
    #[error("{0:?} is not a condition of the form key=value")]
    NotACondition(String),
    /// There is no such key.
    #[error("there is no filter {0:?}; there are vm and type")]
    UnknownKey(String),
    /// There is no such kind of event.
    #[error("there are no events {wanted:?}; there are {}", all_types())]
    UnknownType {
        /// What was asked for.
        wanted: String,
    },
}

fn all_types() -> String {
    let words: Vec<&str> = EventType::ALL.iter().map(|kind| kind.as_str()).collect();
    words.join(", ")
}

impl EventFilter {
    /// Reads a filter: conditions separated by commas. The empty text lets everything through.
    ///
    /// # Errors
    /// [`EventFilterError`] with the condition that makes no sense.
    pub fn parse(text: &str) -> Result<Self, EventFilterError> {
        let mut filter = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part
                .split_once('=')
                .filter(|(key, value)| !key.is_empty() && !value.is_empty())
                .ok_or_else(|| EventFilterError::NotACondition(part.to_owned()))?;
            match key {
                "vm" => filter.vms.push(value.to_owned()),
                "type" if EventType::ALL.iter().any(|kind| is_of(*kind, value)) => {
                    filter.types.push(value.to_owned());
                }
                "type" => return Err(EventFilterError::UnknownType { wanted: value.to_owned() }),
                other => return Err(EventFilterError::UnknownKey(other.to_owned())),
            }
        }
        Ok(filter)
    }

    /// Whether an event passes. That some were missed passes always.
    #[must_use]
    pub fn matches(&self, event: &Event) -> bool {
        if event.kind == EventType::EventsMissed {
            return true;
        }
        let of_vm = self.vms.is_empty()
            || (is_of(event.kind, "vm") && self.vms.iter().any(|vm| is_about(event, vm)));
        of_vm && (self.types.is_empty() || self.types.iter().any(|kind| is_of(event.kind, kind)))
    }
}

/// Whether a kind of event is `wanted`, or belongs to it: `vm.stopped` is of `vm`.
fn is_of(kind: EventType, wanted: &str) -> bool {
    let rest = kind.as_str().strip_prefix(wanted);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether an event is about the VM of that name, or of an id that begins so.
fn is_about(event: &Event, vm: &str) -> bool {
    event.name.as_deref() == Some(vm) || event.id.as_deref().is_some_and(|id| id.starts_with(vm))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventType, id: &str, name: &str) -> Event {
        Event {
            number: 1,
            time_ms: 1,
            kind,
            id: Some(id.into()),
            name: Some(name.into()),
            cause: None,
            reason: None,
            exit_code: None,
            origin: None,
            next_start_ms: None,
            missed: None,
        }
    }

    #[test]
    fn conditions_of_one_key_are_alternatives() {
        let events = [
            event(EventType::VmStopped, "0123456789ab", "web"),
            event(EventType::VmRunning, "aaaaaaaaaaaa", "db"),
            event(EventType::ImagePulled, "sha256:0", "web"),
            event(EventType::EventsMissed, "", ""),
        ];
        let table = [
            ("", "srim"),
            ("vm=web", "sm"),
            ("vm=0123", "sm"),
            ("vm=web,vm=db", "srm"),
            ("type=vm", "srm"),
            ("type=vm.stopped", "sm"),
            ("type=vm.stopped,type=image", "sim"),
            ("vm=db,type=vm.stopped", "m"),
        ];
        for (text, want) in table {
            let filter = EventFilter::parse(text).expect(text);
            let found: String = events
                .iter()
                .zip("srim".chars())
                .filter(|(event, _)| filter.matches(event))
                .map(|(_, letter)| letter)
                .collect();
            assert_eq!(found, want, "{text}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        for (text, part) in [
            ("vm", "key=value"),
            ("vm=", "key=value"),
            ("state=running", "vm and type"),
            ("type=vm.sto", "vm.stopped"),
            ("type=v", "vm.stopped"),
        ] {
            let error = EventFilter::parse(text).expect_err(text);
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
