//! Saving a running guest while it runs.
//!
//! ```text
//!   VMM ── live migration ──▶ recorder (stands still, its memory is the file that is kept)
//!    │ stands still: the disks are copied
//!    ▼
//!   goes on                   recorder ── devices ──▶ file; it ends
//! ```
//!
//! The guest's memory may be anonymous, or a private view of a template's: a file of it is made by sending
//! the guest to a second VMM, whose memory is a shared file. When that one has all of it, both stand still;
//! at that moment the disks are what the memory expects. The guest stands still for the last of its
//! memory and for the copy of what its disks hold, nothing else.

use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_api::error::{ErrorCode, Problem};
use banger_api::shim::{
    Begin, COW_FILE, Captured, DEVICES_FILE, LOCK_FILE, LaunchSpec, RUN_DIR, WORK_FILE,
};
use banger_api::step;
use banger_api::vm::PauseReason;
use banger_host::network::NetworkError;
use banger_host::process::Watched;
use banger_host::qemu::qmp::{Qmp, QmpError};
use banger_host::qemu::{self, MigrationError, SpawnError, StandsStill};
use banger_host::{connect, fault, files, sparse};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::launch::{Host, Machine};
use crate::order::Order;
use crate::supervise::Vm;
use crate::wishes::Wanted;

/// How long the second VMM may take to answer.
const RECORDER_LIMIT: Duration = Duration::from_secs(20);

/// How long QEMU may refuse to let the guest go on, and how often it is told.
const GO_ON_LIMIT: Duration = Duration::from_secs(30);
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// A guest that shall be saved.
#[derive(Debug)]
pub(crate) struct CaptureWish {
    /// Where to.
    pub(crate) dir: PathBuf,
    /// Where it is told what came of it.
    pub(crate) reply: oneshot::Sender<Result<Captured, Problem>>,
}

impl Wanted for CaptureWish {
    fn is_given_up(&self) -> bool {
        self.reply.is_closed()
    }
}

/// Grants a wish, unless an order comes or the machine dies: then there is nothing to save any more. The order
/// comes back; a guest that is to end in order runs again by then.
pub(crate) async fn grant(
    vm: &Vm,
    host: &Host,
    machine: &mut Machine,
    orders: &mut mpsc::Receiver<Order>,
    wish: CaptureWish,
) -> Option<Order> {
    let Machine { vmm, qmp, .. } = machine;
    let CaptureWish { dir, mut reply } = wish;
    let outcome = tokio::select! {
        captured = capture(vm, host, qmp, &dir) => Ok(captured),
        // What is begun ends with it.
        () = reply.closed() => {
            tracing::warn!("nobody waits any more for the guest to be saved");
            go_on(vm, qmp).await;
            return None;
        }
        // Whoever watches sees it, too, and says why.
        _ = vmm.wait() => return None,
        Some(order) = orders.recv() => Err(order),
    };
    match outcome {
        Ok(captured) => {
            let answer = captured.map_err(|error| {
                tracing::error!(%error, "the guest was not saved");
                error.problem(&vm.spec.name)
            });
            // Whoever asked may be gone; what was saved is theirs to remove.
            let _ = reply.send(answer);
            None
        }
        Err(Order::Kill) => Some(Order::Kill),
        Err(order) => {
            go_on(vm, qmp).await;
            Some(order)
        }
    }
}

/// Why a guest could not be saved. It goes on all the same.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    /// The second VMM could not be started.
    #[error("a second VMM could not be started")]
    Spawn(#[from] SpawnError),
    /// It has no network device.
    #[error("a second VMM has no network device")]
    Network(#[from] NetworkError),
    /// A VMM cannot be controlled.
    #[error("the VMM cannot be controlled")]
    Control(#[from] QmpError),
    /// The guest could not be sent from one to the other, or saved.
    #[error("the guest could not be saved")]
    Migration(#[from] MigrationError),
    /// The second VMM does not answer.
    #[error("a second VMM does not answer")]
    Silent,
    /// A file of the host.
    #[error("cannot {what}")]
    File {
        /// The step, as a verb and its object.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn file(what: &'static str) -> impl FnOnce(std::io::Error) -> CaptureError {
    move |source| CaptureError::File { what, source }
}

impl CaptureError {
    /// The error as it travels.
    pub(crate) fn problem(&self, vm: &str) -> Problem {
        let code = match self {
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                ErrorCode::HostDiskFull
            }
            _ => ErrorCode::Internal,
        };
        let problem = Problem::new(code, format!("VM {vm} could not be saved")).because(self);
        match code {
            ErrorCode::HostDiskFull => problem.hint("banger system df"),
            _ => problem.hint(format!("it goes on; try again, or see: banger show {vm}")),
        }
    }
}

/// Saves the guest to a directory. Whatever comes of it, the guest goes on, if it ran.
pub(crate) async fn capture(
    vm: &Vm,
    host: &Host,
    source: &mut Qmp,
    dir: &Path,
) -> Result<Captured, CaptureError> {
    let began = Instant::now();
    fault::reach(step::SHIM_CAPTURE).await.map_err(file("save the guest"))?;
    let when = match qemu::sees_writes(&vm.spec.engine) {
        _ if vm.board.stands_still() => StandsStill::Throughout,
        true => StandsStill::ForTheRest,
        false => StandsStill::BeforeTheSecondPass,
    };
    let captured = match record(vm, host, source, dir, when).await {
        // It was begun too late, or did not go on, for whatever reason: now slowly, and surely.
        Err(CaptureError::Migration(why @ (MigrationError::TooLate | MigrationError::Timeout))) => {
            tracing::warn!(%why, "the guest is saved again while it stands still");
            record(vm, host, source, dir, StandsStill::Throughout).await
        }
        captured => captured,
    };
    let (recorder, stood_still) = captured?;
    recorder.write_down(dir).await?;
    tracing::info!("the guest is saved");
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Ok(Captured { paused_ms: millis(stood_still), took_ms: millis(began.elapsed()) })
}

/// Sends the guest to a second VMM, and copies its disks. How long it stood still comes back.
async fn record(
    vm: &Vm,
    host: &Host,
    source: &mut Qmp,
    dir: &Path,
    when: StandsStill,
) -> Result<(Recorder, Duration), CaptureError> {
    if vm.board.stands_still() {
        let_it_be_saved(source).await?;
    }
    let mut recorder = Recorder::start(vm, host, dir).await?;
    tracing::info!(?when, "the guest is being saved");
    let sent = send(vm, source, &mut recorder, dir, when).await;
    tracing::info!(sent = sent.is_ok(), "the guest was sent");
    go_on(vm, source).await;
    match sent {
        Ok(since) => Ok((recorder, since.elapsed())),
        Err(error) => {
            // Another one may want its place.
            recorder.end().await?;
            Err(error)
        }
    }
}

/// QEMU saves no guest twice that has not run in between. One that stands still does so for a moment, now and
/// not after it was saved: what it is then is what is kept.
async fn let_it_be_saved(source: &mut Qmp) -> Result<(), QmpError> {
    let status = source.execute("query-status", json!({})).await?;
    if status["status"] == "postmigrate" {
        source.execute("cont", json!({})).await?;
        source.execute("stop", json!({})).await?;
    }
    Ok(())
}

/// Ends what may be under way still and has the guest go on, if it shall. QEMU refuses that as long as it has
/// not come to an end, which is told a little too early.
async fn go_on(vm: &Vm, source: &mut Qmp) {
    if vm.board.stands_still() {
        if let Err(error) = source.execute("migrate_cancel", json!({})).await {
            tracing::error!(%error, "what is under way does not end");
        }
        return;
    }
    let runs = async {
        loop {
            let _ = source.execute("migrate_cancel", json!({})).await;
            let _ = source.execute("cont", json!({})).await;
            let status = source.execute("query-status", json!({})).await;
            if status.is_ok_and(|status| status["running"] == true) {
                break;
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    };
    if tokio::time::timeout(GO_ON_LIMIT, runs).await.is_err() {
        tracing::error!("the guest does not go on");
        vm.board.warn("it stood still after it was saved".to_owned());
        vm.board.stand(vec![PauseReason::Requested]);
    }
}

/// Sends the guest over, and copies its disks while it stands still. Since when it does comes back.
async fn send(
    vm: &Vm,
    source: &mut Qmp,
    recorder: &mut Recorder,
    dir: &Path,
    when: StandsStill,
) -> Result<tokio::time::Instant, CaptureError> {
    let (ours, theirs) = UnixStream::pair().map_err(file("make a pair of sockets"))?;
    recorder.qmp.receive(theirs.as_fd()).await?;
    drop(theirs);
    let since = source.send(ours.as_fd(), when).await?;
    tracing::info!("the guest stands still, and all of it is on its way");
    drop(ours);
    recorder.qmp.received().await?;
    let (from, to, work) = (vm.dir.clone(), dir.to_owned(), vm.spec.work_disk_bytes.is_some());
    let copied = tokio::task::spawn_blocking(move || copy_disks(&from, &to, work)).await;
    copied.map_err(|error| file("copy the disks")(std::io::Error::other(error)))??;
    Ok(since)
}

fn copy_disks(from: &Path, to: &Path, work: bool) -> Result<(), CaptureError> {
    let disks = [Some(COW_FILE), work.then_some(WORK_FILE)];
    for name in disks.into_iter().flatten() {
        sparse::copy(&from.join(name), &to.join(name)).map_err(file("copy the disks"))?;
    }
    Ok(())
}

/// The second VMM.
struct Recorder {
    vmm: Mortal,
    qmp: Qmp,
}

/// A process that ends with whoever has it: a capture may be given up at any moment. Nothing else depends on
/// that; it ends with the shim in any case.
struct Mortal(Watched);

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

impl Recorder {
    async fn start(vm: &Vm, host: &Host, dir: &Path) -> Result<Self, CaptureError> {
        let spec = LaunchSpec { begin: Begin::Receive, ..vm.spec.clone() };
        files::create_private_dir(&dir.join(RUN_DIR)).map_err(file("make a directory"))?;
        // It says that somebody may write what lies there.
        std::fs::File::create(dir.join(LOCK_FILE)).map_err(file("make a lock"))?;
        let tap = host.network.spare_tap()?;
        let started = qemu::spawn(&spec, dir, tap.as_fd())?;
        let vmm = Mortal(Watched::new(started.child).map_err(file("watch a second VMM"))?);
        let connected = async {
            let stream = connect::unix(&dir.join(RUN_DIR), qemu::QMP_SOCKET).await;
            let (qmp, _) = Qmp::connect(stream.map_err(file("reach a second VMM"))?).await?;
            Ok::<_, CaptureError>(qmp)
        };
        let connected = tokio::time::timeout(RECORDER_LIMIT, connected).await;
        Ok(Self { vmm, qmp: connected.map_err(|_| CaptureError::Silent)?? })
    }

    /// Writes processors and devices beside the memory, and ends it.
    async fn write_down(mut self, dir: &Path) -> Result<(), CaptureError> {
        let devices = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(dir.join(DEVICES_FILE))
            .map_err(file("create the file for the saved devices"))?;
        self.qmp.save(devices.as_fd()).await?;
        self.end().await
    }

    async fn end(mut self) -> Result<(), CaptureError> {
        self.vmm.0.kill().map_err(file("end a second VMM"))?;
        self.vmm.0.wait().await.map_err(file("wait for a second VMM"))?;
        Ok(())
    }
}
