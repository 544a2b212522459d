//! Long work: a request is accepted as an operation, and its progress is a stream of events.
//!
//! `GET /v1/operations/{id}/events` is a server-sent event stream of [`OperationEvent`]s, each one
//! `data:` line of JSON. It always begins with what has happened so far and always ends with
//! `succeeded` or `failed`. A client that opens it with `?lease=true` is the operation's owner:
//! when the last owner hangs up before the end, the operation is cancelled.

use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::fork::Forked;
use crate::image::{Image, Pushed};
use crate::kernel::Kernel;
use crate::snapshot::{Restored, Snapshot};
use crate::template::Template;
use crate::trace::Mark;
use crate::vm::Vm;

/// An accepted piece of long work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Operation {
    /// Its id, to be used in `/v1/operations/{id}`.
    pub id: String,
    /// What it does, for people: `start vm brave-otter-7`.
    pub description: String,
    /// Where it is.
    pub state: OperationState,
}

/// Where an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum OperationState {
    /// Under way.
    Running,
    /// Done.
    Succeeded {
        /// What came of it.
        result: OperationResult,
    },
    /// Failed or cancelled.
    Failed {
        /// Why.
        problem: Problem,
    },
}

/// What an operation produced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "kind", content = "value")]
pub enum OperationResult {
    /// A VM, as it is now.
    Vm(Box<Vm>),
    /// An image, now local.
    Image(Box<Image>),
    /// A kernel, now local.
    Kernel(Kernel),
    /// An image, now in a registry.
    Pushed(Pushed),
    /// A template, now there.
    Template(Box<Template>),
    /// Copies of a VM, which run.
    Forked(Box<Forked>),
    /// A snapshot, now there.
    Snapshot(Box<Snapshot>),
    /// A VM that went back to a snapshot.
    Restored(Box<Restored>),
    /// Nothing to show.
    Nothing,
}

/// One event of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum OperationEvent {
    /// A stage began or went on.
    Progress(Progress),
    /// Something worth telling that is no failure.
    Warning {
        /// The text, one line.
        message: String,
    },
    /// Where time went: for those who asked, and no progress.
    Mark(Mark),
    /// The end: done.
    Succeeded {
        /// What came of it.
        result: OperationResult,
    },
    /// The end: failed or cancelled.
    Failed {
        /// Why.
        problem: Problem,
    },
}

/// How far a stage is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// Stable name of the stage: `image.bootstrap`, `kernel.download`, `vm.boot`.
    pub stage: String,
    /// The stage for people: `building Debian root filesystem`.
    pub message: String,
    /// Which of the things that this stage does at the same time, for people: a layer's short
    /// digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// Units done, where they can be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<u64>,
    /// Units in all, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// What is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<ProgressUnit>,
}

/// What a progress counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ProgressUnit {
    /// Bytes.
    Bytes,
    /// Packages, files or other things that are counted one by one.
    Items,
    /// Parts of a hundred.
    Percent,
}

impl Progress {
    /// A stage that just began, without a count.
    pub fn stage(stage: impl Into<String>, message: impl Into<String>) -> Self {
        let (stage, message) = (stage.into(), message.into());
        Self { stage, message, item: None, done: None, total: None, unit: None }
    }
}
