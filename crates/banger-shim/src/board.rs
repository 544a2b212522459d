//! The VM's status: one value that this process keeps, writes down and shows.

use std::path::{Path, PathBuf};

use banger_api::change::Resources;
use banger_api::shim::STATUS_FILE;
use banger_api::step;
use banger_api::vm::{EngineInUse, Origin, PauseReason, VmEnd, VmState, VmStatus};
use banger_host::{clock, fault, files};
use tokio::sync::watch;

/// Most warnings of one run. A guest has a say in them at each of its boots, and may boot for ever.
const MAX_WARNINGS: usize = 32;
/// Stands in the place of those that are more.
const MORE_WARNINGS: &str = "there were more warnings than are kept";

/// Keeper of the status.
#[derive(Debug)]
pub(crate) struct Board {
    path: PathBuf,
    status: watch::Sender<VmStatus>,
}

impl Board {
    /// A VM that starts.
    pub(crate) fn new(vm_dir: &Path, engine: EngineInUse, resources: Resources) -> Self {
        let status = VmStatus {
            state: VmState::Starting,
            since_ms: clock::now_ms(),
            paused: Vec::new(),
            end: None,
            engine: Some(engine),
            boot_ms: None,
            origin: None,
            resources: Some(resources),
            warnings: Vec::new(),
            // The daemon knows.
            restarts: 0,
            next_start_ms: None,
        };
        let path = vm_dir.join(STATUS_FILE);
        let board = Self { path, status: watch::Sender::new(status.clone()) };
        board.write_down(&status);
        board
    }

    /// Who stood ready is a VM that starts from now on. What was to be warned of still is.
    pub(crate) fn begin_anew(&self) {
        self.enter(VmState::Starting);
    }

    /// The status and its changes.
    pub(crate) fn watch(&self) -> watch::Receiver<VmStatus> {
        self.status.subscribe()
    }

    /// The status now.
    pub(crate) fn now(&self) -> VmStatus {
        self.status.borrow().clone()
    }

    /// The VM is in another state.
    pub(crate) fn enter(&self, state: VmState) {
        self.change(|status| {
            status.state = state;
            status.since_ms = clock::now_ms();
            status.paused.clear();
        });
    }

    /// The VM stands still for these reasons; with none it runs.
    pub(crate) fn stand(&self, reasons: Vec<PauseReason>) {
        if self.status.borrow().paused == reasons {
            return;
        }
        self.change(|status| {
            let state = if reasons.is_empty() { VmState::Running } else { VmState::Paused };
            if status.state != state {
                status.state = state;
                status.since_ms = clock::now_ms();
            }
            status.paused = reasons;
        });
    }

    /// Whether the VM stands still.
    pub(crate) fn stands_still(&self) -> bool {
        self.status.borrow().state == VmState::Paused
    }

    /// The guest is up for the first time.
    pub(crate) fn up(&self, boot_ms: u64, origin: Origin) {
        self.change(|status| {
            status.origin = Some(origin);
            status.state = VmState::Running;
            status.since_ms = clock::now_ms();
            status.boot_ms = Some(boot_ms);
        });
    }

    /// The guest is up again, after it rebooted.
    pub(crate) fn up_again(&self) {
        self.change(|status| {
            status.state = VmState::Running;
            status.since_ms = clock::now_ms();
            status.origin = Some(Origin::Boot);
        });
    }

    /// Something a person should know. Said once.
    pub(crate) fn warn(&self, text: String) {
        let kept = self.now().warnings;
        let text = match kept.len() {
            MAX_WARNINGS.. => return,
            count if count + 1 == MAX_WARNINGS => MORE_WARNINGS.to_owned(),
            _ => text,
        };
        // The shim's log grows with it: what was said is not said again there either.
        if !kept.contains(&text) {
            tracing::warn!("{text}");
            self.change(|status| status.warnings.push(text));
        }
    }

    /// The VM has ended.
    pub(crate) fn end(&self, end: VmEnd) {
        self.change(|status| {
            status.state = end.cause.state();
            status.since_ms = clock::now_ms();
            status.paused.clear();
            status.end = Some(end);
        });
    }

    fn change(&self, change: impl FnOnce(&mut VmStatus)) {
        let mut next = self.now();
        change(&mut next);
        // Written down first: who sees a status may rely on its being in the file.
        self.write_down(&next);
        self.status.send_replace(next);
    }

    /// Without fsync: after a power cut no VM runs, and a status that is lost or old says the same.
    fn write_down(&self, status: &VmStatus) {
        let written = fault::pass(step::SHIM_STATUS)
            .and_then(|()| serde_json::to_vec(status).map_err(std::io::Error::from))
            .and_then(|json| files::write_replacing(&self.path, &json));
        if let Err(error) = written {
            tracing::error!(%error, "cannot write {}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_api::vm::Accelerator;

    /// Hostile guest: one that boots for ever, and warns of something new each time.
    #[test]
    fn warnings_are_bounded_and_said_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = EngineInUse {
            name: "qemu".to_owned(),
            version: "7".to_owned(),
            accelerator: Accelerator::Tcg,
        };
        let resources = crate::testing::launch_spec("agent", "").resources();
        let board = Board::new(dir.path(), engine, resources);
        for number in 0..10_000 {
            board.warn(format!("warning {}", number / 2));
        }
        let warnings = board.now().warnings;
        assert_eq!(warnings.len(), MAX_WARNINGS);
        assert_eq!(warnings[..2], ["warning 0", "warning 1"]);
        assert_eq!(warnings.last().map(String::as_str), Some(MORE_WARNINGS));
        let written = std::fs::metadata(dir.path().join(STATUS_FILE)).expect("written").len();
        assert!(written < 4096, "{written}");
    }
}
