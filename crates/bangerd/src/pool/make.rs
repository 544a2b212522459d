//! Making a guest that stands ready: what a VM gets from its template, but for nobody.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use banger_api::shim::{Begin, COW_FILE, LAUNCH_FILE, LaunchEvent, LaunchSpec, Was};
use banger_api::{ErrorCode, Problem, step};
use banger_core::id::Id;
use banger_host::{cow, files, random};

use tokio_util::sync::CancellationToken;

use super::Guest;
use super::kind::Kind;
use crate::daemon::{Daemon, blocking, failed};
use crate::host::WaitingShim;
use crate::operations::cancelled;
use crate::vm::{copy_disk, write_launch_file};
use crate::{saved, templates};

/// How much longer than the guest's own limit a shim may take before it is taken for hung.
const SLACK: Duration = Duration::from_secs(15);
/// The name of whoever stands ready, which nobody sees.
const NOBODY: &str = "ready";

/// What makes a guest of a kind.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) kind: Kind,
    pub(super) template: templates::Wanted,
}

/// Makes a guest, and waits until it stands ready. Leaves nothing if that fails.
///
/// # Errors
/// Of the first step that fails; `cancelled`.
pub(super) async fn make(
    daemon: &Arc<Daemon>,
    recipe: &Recipe,
    cancel: &CancellationToken,
) -> Result<Guest, Problem> {
    let template = templates::find(daemon, &recipe.template).await?.ok_or_else(|| {
        Problem::new(ErrorCode::TemplateNotFound, "there is no template for such guests any more")
    })?;
    let id = Id::from_bytes(random::bytes());
    let machine_id = random::hex::<16>();
    let saved = template.to_string_lossy().into_owned();
    let launch = LaunchSpec {
        vm_id: id.to_string(),
        name: NOBODY.to_owned(),
        machine_id: machine_id.clone(),
        durable: recipe.kind.is_durable,
        begin: Begin::Restore { saved, was: Was::Nobody },
        network: recipe.kind.network,
        waits: true,
        ..recipe.template.launch().clone()
    };
    // A reset removes what belongs to no VM: not while this becomes something.
    let _in_use = daemon.artifacts_in_use.read().await;
    let dir = daemon.vm_dir(&id);
    daemon.gate.pass(step::POOL_BEGIN).await?;
    let (to, begun) = (dir.clone(), saved::unfinished_dir(daemon, id.as_str()));
    let (place, spec) = (begun.clone(), launch.clone());
    let prepared = blocking(move || prepare(&template, &place, &to, &spec)).await;
    let stands = match prepared {
        Ok(()) => tokio::select! {
            biased;
            () = cancel.cancelled() => Err(cancelled()),
            stands = stand(daemon, &dir) => stands,
        },
        Err(problem) => Err(problem),
    };
    match stands {
        Ok((shim, private_bytes)) => Ok(Guest {
            id,
            machine_id,
            kind: recipe.kind.clone(),
            template: recipe.template.key().clone(),
            begin: launch.begin,
            private_bytes,
            shim,
        }),
        Err(problem) => {
            saved::discard(daemon, begun).await;
            saved::discard(daemon, dir).await;
            Err(problem)
        }
    }
}

/// Makes the directory that will be a VM's. It gets its name when its launch file says that it is nobody's.
fn prepare(template: &Path, begun: &Path, to: &Path, launch: &LaunchSpec) -> Result<(), Problem> {
    let made = files::create_private_dir(begun)
        .and_then(|()| cow::create(&begun.join(COW_FILE), launch.disk_bytes))
        .and_then(|()| copy_disk(&template.join(COW_FILE), begun, launch.durable));
    made.map_err(|error| failed("cannot begin a guest that stands ready", &error))?;
    write_launch_file(&begun.join(LAUNCH_FILE), launch)?;
    saved::publish(begun, to)
        .map_err(|error| failed("cannot give a guest that stands ready its place", &error))
}

/// Starts the shim, and waits until its guest stands ready. How much memory it takes comes, too.
async fn stand(daemon: &Arc<Daemon>, dir: &Path) -> Result<(WaitingShim, u64), Problem> {
    daemon.gate.pass(step::POOL_SPAWN).await?;
    let (shims, place) = (Arc::clone(&daemon.host.shims), dir.to_owned());
    let mut shim = blocking(move || shims.spawn_waiting(&place)).await?;
    let unready = |cause: &str| {
        Problem::new(ErrorCode::BootFailed, "the guest does not stand ready").cause(cause)
    };
    let patience = Duration::from_secs(daemon.config.boot_timeout_s) + SLACK;
    let waits = async {
        loop {
            match shim.events.recv().await {
                Some(LaunchEvent::Waits { private_bytes }) => return Ok(private_bytes),
                Some(LaunchEvent::Failed { problem }) => return Err(problem),
                Some(LaunchEvent::Progress(_) | LaunchEvent::Mark(_)) => {}
                Some(LaunchEvent::Ready { .. } | LaunchEvent::Saved) => {
                    return Err(unready("its supervisor did something else"));
                }
                None => return Err(unready("its supervisor died")),
            }
        }
    };
    let waited = tokio::time::timeout(patience, waits).await;
    let private_bytes = waited.unwrap_or_else(|_| Err(unready("it took too long")))?;
    Ok((shim, private_bytes))
}
