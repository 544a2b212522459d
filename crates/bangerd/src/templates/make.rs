//! Making a template: a shim boots a guest in a directory beside the others and saves it there; then the
//! directory gets its name.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use banger_api::event::EventType;
use banger_api::operation::{OperationResult, Progress};
use banger_api::shim::{
    CONSOLE_FILE, COW_FILE, DEVICES_FILE, LAUNCH_FILE, LaunchEvent, LaunchSpec, MEMORY_FILE,
};
use banger_api::template::Template;
use banger_api::{ErrorCode, Problem, step};
use banger_host::{clock, cow, files};
use tokio::sync::mpsc;

use super::{Wanted, shelf};
use crate::daemon::{Daemon, blocking, failed, lengthy};
use crate::events::News;
use crate::operations::{Handle, cancelled};
use crate::saved;
use crate::vm::{end_unknown, is_locked, write_launch_file};

/// How much longer than the guest's own limit a shim may take before it is taken for hung.
const SLACK: Duration = Duration::from_secs(15);
/// How long a shim that has said its last word may take to be gone.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often to look whether it is.
const LOOK: Duration = Duration::from_millis(2);
/// What a template keeps of what its shim leaves.
const KEPT: [&str; 4] = [MEMORY_FILE, DEVICES_FILE, COW_FILE, CONSOLE_FILE];

/// Makes the template. Leaves nothing if that fails.
///
/// # Errors
/// Of the first step that fails; `cancelled`.
pub(super) async fn make(
    daemon: Arc<Daemon>,
    wanted: Wanted,
    operation: Handle,
) -> Result<OperationResult, Problem> {
    let dir = saved::unfinished_dir(&daemon, wanted.key.as_str());
    let made = save_and_publish(&daemon, &wanted, &dir, &operation).await;
    if made.is_err() {
        saved::discard(&daemon, dir).await;
    }
    made.map(|template| OperationResult::Template(Box::new(template)))
}

async fn save_and_publish(
    daemon: &Arc<Daemon>,
    wanted: &Wanted,
    dir: &Path,
    operation: &Handle,
) -> Result<Template, Problem> {
    operation
        .progress(Progress::stage(step::TEMPLATE_BEGIN.name(), "making a template for such VMs"));
    daemon.gate.pass(step::TEMPLATE_BEGIN).await?;
    let (place, launch) = (dir.to_owned(), wanted.launch.clone());
    blocking(move || begin(&place, &launch)).await?;
    operation.check_cancelled()?;
    daemon.gate.pass(step::TEMPLATE_SPAWN).await?;
    let (shims, place) = (Arc::clone(&daemon.host.shims), dir.to_owned());
    let events = blocking(move || shims.spawn(&place)).await?;
    await_saved(daemon, events, wanted, operation).await?;
    let gone = async {
        while is_locked(daemon.host.shims.as_ref(), dir) {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(FAREWELL, gone).await.is_err() {
        end_unknown(daemon, dir).await;
    }
    daemon.gate.pass(step::TEMPLATE_PUBLISH).await?;
    let (from, to) = (dir.to_owned(), wanted.dir(daemon));
    blocking(move || {
        publish(&from, &to).map_err(|error| failed("cannot keep the template", &error))
    })
    .await?;
    Ok(describe(wanted))
}

/// Makes the directory with all that the shim needs to find.
fn begin(dir: &Path, launch: &LaunchSpec) -> Result<(), Problem> {
    files::create_private_dir(dir)
        .and_then(|()| cow::create(&dir.join(COW_FILE), launch.disk_bytes))
        .map_err(|error| failed("cannot begin a template", &error))?;
    write_launch_file(&dir.join(LAUNCH_FILE), launch)
}

async fn await_saved(
    daemon: &Daemon,
    mut events: mpsc::Receiver<LaunchEvent>,
    wanted: &Wanted,
    operation: &Handle,
) -> Result<(), Problem> {
    let patience = Duration::from_secs(daemon.config.boot_timeout_s) + SLACK;
    let deadline = tokio::time::sleep(patience);
    tokio::pin!(deadline);
    let unmade = |cause: &str| {
        let title = format!("no template could be made of {}", wanted.image);
        Problem::new(ErrorCode::TemplateFailed, title).cause(cause)
    };
    loop {
        let event = tokio::select! {
            biased;
            () = operation.cancel_token().cancelled() => return Err(cancelled()),
            event = events.recv() => event,
            () = &mut deadline => return Err(unmade("its guest was not saved in time")),
        };
        match event {
            Some(LaunchEvent::Progress(progress)) => operation.progress(progress),
            // Of whoever waits for it, not of the template.
            Some(LaunchEvent::Mark(_)) => {}
            Some(LaunchEvent::Saved) => return Ok(()),
            Some(LaunchEvent::Failed { problem }) => return Err(problem),
            Some(LaunchEvent::Ready { .. } | LaunchEvent::Waits { .. }) => {
                return Err(unmade("its supervisor is too old"));
            }
            None => return Err(unmade("its supervisor died")),
        }
    }
}

/// Leaves of the directory what a template is, makes it read-only, and gives it its name.
fn publish(from: &Path, to: &Path) -> io::Result<()> {
    saved::keep_only(from, &KEPT)?;
    files::remove_tree(to)?;
    std::fs::rename(from, to)
}

fn describe(wanted: &Wanted) -> Template {
    let launch = &wanted.launch;
    let now_ms = clock::now_ms();
    Template {
        id: wanted.key.to_string(),
        image: wanted.image.clone(),
        image_digest: wanted.image_digest.clone(),
        kernel_digest: wanted.kernel_digest.clone(),
        cpus: launch.cpus,
        memory_mib: launch.memory_mib,
        disk_bytes: launch.disk_bytes,
        init: launch.init,
        engine: launch.engine.in_use(),
        cpu: wanted.cpu.clone(),
        created_at_ms: now_ms,
        used_at_ms: now_ms,
        allocated_bytes: 0,
        ready: 0,
    }
}

/// Seals a template that was just made, so that the next daemon uses it too, and makes room.
pub(super) async fn seal(daemon: Arc<Daemon>, wanted: Wanted, template: Template) {
    let sealed = async {
        daemon.gate.pass(step::TEMPLATE_SEAL).await?;
        let dir = wanted.dir(&daemon);
        lengthy(move || {
            shelf::seal(&dir, template)
                .map_err(|error| failed("the template cannot be sealed", &error))
        })
        .await
    };
    match sealed.await {
        Ok(()) => {
            daemon.templates.settle(&wanted.key);
            daemon.events.tell(News::named(
                EventType::TemplateMade,
                wanted.key.as_str(),
                &wanted.image,
            ));
            super::make_room(&daemon).await;
        }
        Err(problem) => {
            tracing::warn!(template = %wanted.key, "{problem}");
            // Without a seal nobody knows tomorrow what is in it.
            super::discard(&daemon, &wanted).await;
        }
    }
}
