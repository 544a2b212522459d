//! Filters of lists: `state=running,label=team=web`.

use banger_api::vm::{Vm, VmState};

/// A filter of VMs: all its conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    State(VmState),
    Label { key: String, value: Option<String> },
    Name(String),
    Image(String),
}

/// Why a text is not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A condition has no `=`, or nothing on one side of it.
    #[error("{0:?} is not a condition of the form key=value")]
    NotACondition(String),
    /// There is no such key.
    #[error("there is no filter {0:?}; there are state, label, name and image")]
    UnknownKey(String),
    /// There is no such state.
    #[error(
        "{0:?} is not a state; there are created, starting, running, paused, stopping, stopped \
         and failed"
    )]
    UnknownState(String),
}

/// Every state, for reading them.
const STATES: [VmState; 7] = [
    VmState::Created,
    VmState::Starting,
    VmState::Running,
    VmState::Paused,
    VmState::Stopping,
    VmState::Stopped,
    VmState::Failed,
];

impl Filter {
    /// Reads a filter: conditions separated by commas. The empty text is the filter that lets
    /// everything through.
    ///
    /// # Errors
    /// [`FilterError`] with the condition that makes no sense.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let conditions = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(Condition::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self { conditions })
    }

    /// Whether the VM passes.
    #[must_use]
    pub fn matches(&self, vm: &Vm) -> bool {
        self.conditions.iter().all(|condition| condition.holds(vm))
    }
}

impl Condition {
    fn parse(text: &str) -> Result<Self, FilterError> {
        let (key, value) = text
            .split_once('=')
            .filter(|(key, value)| !key.is_empty() && !value.is_empty())
            .ok_or_else(|| FilterError::NotACondition(text.to_owned()))?;
        match key {
            "state" => STATES
                .into_iter()
                .find(|state| state.as_str() == value)
                .map(Self::State)
                .ok_or_else(|| FilterError::UnknownState(value.to_owned())),
            "label" => Ok(match value.split_once('=') {
                Some((key, value)) => {
                    Self::Label { key: key.to_owned(), value: Some(value.to_owned()) }
                }
                None => Self::Label { key: value.to_owned(), value: None },
            }),
            "name" => Ok(Self::Name(value.to_owned())),
            "image" => Ok(Self::Image(value.to_owned())),
            other => Err(FilterError::UnknownKey(other.to_owned())),
        }
    }

    fn holds(&self, vm: &Vm) -> bool {
        match self {
            Self::State(state) => vm.status.state == *state,
            Self::Label { key, value } => vm
                .spec
                .labels
                .get(key)
                .is_some_and(|found| value.as_ref().is_none_or(|value| value == found)),
            Self::Name(name) => vm.name == *name,
            Self::Image(image) => vm.spec.image == *image || vm.image_digest == *image,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::any_vm;

    #[test]
    fn every_condition_must_hold() {
        let mut vm = any_vm();
        vm.name = "web".into();
        vm.spec.labels.insert("team".into(), "a=b".into());
        let cases = [
            ("", true),
            (" , ", true),
            ("state=created", true),
            ("state=running", false),
            ("name=web", true),
            ("name=we", false),
            ("image=debian-bookworm", true),
            ("image=other", false),
            ("label=team", true),
            ("label=team=a=b", true),
            ("label=team=a", false),
            ("label=other", false),
            ("label=team,state=created", true),
            ("label=team, state=running", false),
        ];
        for (text, want) in cases {
            let filter = Filter::parse(text).expect(text);
            assert_eq!(filter.matches(&vm), want, "{text}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        let cases = [
            ("state", FilterError::NotACondition("state".into())),
            ("=x", FilterError::NotACondition("=x".into())),
            ("label=", FilterError::NotACondition("label=".into())),
            ("colour=red", FilterError::UnknownKey("colour".into())),
            ("state=tired", FilterError::UnknownState("tired".into())),
        ];
        for (text, want) in cases {
            assert_eq!(Filter::parse(text), Err(want));
        }
    }
}
