//! Simulated shims that start: at once a VM, or a guest that stands ready first.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use banger_api::operation::Progress;
use banger_api::shim::{
    Begin, DEVICES_FILE, LAUNCH_FILE, LaunchEvent, LaunchSpec, MEMORY_FILE, Was,
};
use banger_api::vm::{EndCause, Origin, VmState, VmStatus};
use banger_api::{ErrorCode, Problem};
use banger_core::lifecycle::fresh;
use banger_host::clock::now_ms;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Manner, Simulation, write_status};
use crate::host::{WaitingShim, Word};

/// What a guest takes that stands ready.
pub const PRIVATE_BYTES: u64 = 64 << 20;

/// A shim that starts a VM.
pub(super) fn spawn(machine: &Arc<Simulation>, vm_dir: &Path) -> mpsc::Receiver<LaunchEvent> {
    let (events, receiver) = mpsc::channel(8);
    events.try_send(LaunchEvent::Progress(Progress::stage("vm.boot", "booting"))).unwrap();
    let launch = read(vm_dir);
    // The test goes on as soon as something is alive, and may then want another manner.
    let manner = manner(machine, &launch);
    begin(machine, vm_dir);
    come_up(machine, vm_dir, &launch, manner, events);
    receiver
}

/// A shim whose guest waits for the word.
pub(super) fn spawn_waiting(machine: &Arc<Simulation>, vm_dir: &Path) -> WaitingShim {
    let (events, receiver) = mpsc::channel(8);
    let (give, told) = oneshot::channel::<()>();
    let manner = machine.manner();
    let mut alive = begin(machine, vm_dir).subscribe();
    let (all, dir) = (Arc::clone(machine), vm_dir.to_owned());
    match manner {
        Manner::Fails => {
            let problem = Problem::new(ErrorCode::TemplateFailed, "it does not go on");
            events.try_send(LaunchEvent::Failed { problem }).unwrap();
            machine.vanish(vm_dir);
        }
        Manner::Dies => machine.vanish(vm_dir),
        _ => {
            events.try_send(LaunchEvent::Waits { private_bytes: PRIVATE_BYTES }).unwrap();
            let untold = Untold(Arc::clone(machine), vm_dir.to_owned());
            tokio::spawn(async move {
                tokio::select! {
                    word = told => match word {
                        Ok(()) => {
                            std::mem::forget(untold);
                            let launch = read(&dir);
                            let manner = self::manner(&all, &launch);
                            come_up(&all, &dir, &launch, manner, events);
                        }
                        Err(_) => drop(untold),
                    },
                    _ = alive.wait_for(Option::is_none) => {}
                }
            });
        }
    }
    let gone = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    WaitingShim { events: receiver, word: Word::new(move || give.send(()).map_err(|()| gone())) }
}

/// A shim that waits for the word, and ends with whoever would give it.
struct Untold(Arc<Simulation>, PathBuf);

impl Drop for Untold {
    fn drop(&mut self) {
        self.0.vanish(&self.1);
    }
}

/// A shim that is alive.
fn begin(machine: &Arc<Simulation>, vm_dir: &Path) -> watch::Sender<Option<VmStatus>> {
    let starting = fresh(VmState::Starting, now_ms());
    write_status(vm_dir, &starting);
    let shim = watch::Sender::new(Some(starting));
    machine.shims.lock().unwrap().insert(vm_dir.to_owned(), shim.clone());
    shim
}

fn read(vm_dir: &Path) -> LaunchSpec {
    let launch = std::fs::read(vm_dir.join(LAUNCH_FILE)).expect("the launch file is there");
    serde_json::from_slice(&launch).expect("a launch spec")
}

fn manner(machine: &Simulation, launch: &LaunchSpec) -> Manner {
    let is_bad = machine.bad_templates.load(Ordering::SeqCst);
    match (&launch.begin, machine.manner()) {
        (Begin::Restore { .. }, Manner::Good) if is_bad => Manner::Forgets,
        (_, manner) => manner,
    }
}

/// What becomes of a shim that is alive.
fn come_up(
    machine: &Arc<Simulation>,
    vm_dir: &Path,
    launch: &LaunchSpec,
    manner: Manner,
    events: mpsc::Sender<LaunchEvent>,
) {
    let fail = |code, title: &str, cause| {
        let problem = Problem::new(code, title);
        events.try_send(LaunchEvent::Failed { problem }).unwrap();
        machine.end(vm_dir, cause);
    };
    match manner {
        Manner::Good | Manner::Old | Manner::Deaf | Manner::Ignores | Manner::Offline => {
            if launch.begin == Begin::Save {
                return save(machine, vm_dir, &events);
            }
            let status = up(launch, manner);
            if machine.say(vm_dir, &status) {
                events.try_send(LaunchEvent::Ready { status }).unwrap();
            }
        }
        Manner::Hangs | Manner::Mute => {
            let mut alive = machine.shims.lock().unwrap()[vm_dir].subscribe();
            // Keeps the pipe open as long as the shim lives.
            tokio::spawn(async move {
                let _ = alive.wait_for(Option::is_none).await;
                drop(events);
            });
        }
        Manner::Ends(cause) => fail(ErrorCode::BootFailed, "the VM ended as it started", cause),
        Manner::Fails => {
            fail(ErrorCode::GuestPanic, "the guest's kernel panicked", EndCause::GuestPanic);
        }
        Manner::Forgets => {
            fail(ErrorCode::TemplateFailed, "it does not go on", EndCause::LaunchFailed);
        }
        Manner::Dies => machine.vanish(vm_dir),
    }
}

fn save(machine: &Simulation, vm_dir: &Path, events: &mpsc::Sender<LaunchEvent>) {
    for name in [MEMORY_FILE, DEVICES_FILE] {
        std::fs::write(vm_dir.join(name), name).expect("a file");
    }
    machine.saves.fetch_add(1, Ordering::SeqCst);
    events.try_send(LaunchEvent::Saved).unwrap();
    machine.vanish(vm_dir);
}

/// The status of a VM that is up.
fn up(launch: &LaunchSpec, manner: Manner) -> VmStatus {
    let warnings = match manner {
        Manner::Offline => vec!["the VM has no network".to_owned()],
        _ => Vec::new(),
    };
    let origin = match launch.begin {
        Begin::Restore { was: Was::Nobody, .. } => Origin::Template,
        Begin::Restore { was: Was::Another, .. } => Origin::Fork,
        Begin::Restore { was: Was::Itself, .. } => Origin::Snapshot,
        Begin::Boot | Begin::Save | Begin::Receive => Origin::Boot,
    };
    VmStatus {
        warnings,
        resources: Some(launch.resources()),
        engine: Some(launch.engine.in_use()),
        origin: Some(origin),
        ..fresh(VmState::Running, now_ms())
    }
}
