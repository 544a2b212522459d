//! Where the time of a VM's end goes, if its start was to tell that.

use std::time::Duration;

use banger_api::operation::OperationEvent;
use banger_api::shim::LaunchEvent;
use banger_api::trace;
use banger_host::trace::{Began, Trace};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Report;

/// How long the last words of a shim may take that is gone.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The marks of an end.
#[derive(Debug, Default)]
pub(super) struct EndMarks {
    trace: Trace,
    line: Option<mpsc::Receiver<LaunchEvent>>,
}

impl EndMarks {
    /// Of a VM whose shim goes on telling, if it does.
    pub(super) fn new(line: Option<mpsc::Receiver<LaunchEvent>>) -> Self {
        Self { trace: Trace::new(line.is_some()), line }
    }

    /// A stage begins.
    pub(super) fn begin(&self) -> Began {
        self.trace.begin()
    }

    /// The shim is gone, and with it all that it was to tell.
    pub(super) async fn shim_gone(&mut self, began: Began) {
        self.trace.end(trace::DAEMON_END, began);
        let Some(mut line) = self.line.take() else { return };
        while let Ok(Some(event)) = timeout(LAST_WORDS, line.recv()).await {
            if let LaunchEvent::Mark(mark) = event {
                self.trace.add([mark]);
            }
        }
    }

    /// The VM is removed: tells all of it to those who wait for that.
    pub(super) fn removed(&self, began: Began, waiting: &[Report]) {
        self.trace.end(trace::DAEMON_REMOVE, began);
        for mark in self.trace.take() {
            for report in waiting {
                // Whoever waited may have gone.
                let _ = report.events.send(OperationEvent::Mark(mark.clone()));
            }
        }
    }
}
