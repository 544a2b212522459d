//! Long work on images and kernels: done once for all who want the same now.

use std::sync::Arc;

use banger_api::Problem;
use banger_api::operation::{Operation, OperationResult, Progress};
use banger_host::command::Cancel;
use tokio_util::sync::CancellationToken;

use crate::daemon::{Daemon, lengthy};
use crate::events::News;
use crate::host::{Host, Job, Report};
use crate::operations::{Handle, SharedKey};

/// Begins a job as an operation of its own.
pub fn start(daemon: &Arc<Daemon>, job: Job) -> Operation {
    let all = Arc::clone(daemon);
    daemon
        .operations
        .start(job.description(), |operation| async move { join(&all, job, &operation).await })
}

/// Does a job as part of an operation, together with whoever else wants the same now.
///
/// # Errors
/// Of the job; `cancelled` if the operation was.
pub async fn join(
    daemon: &Arc<Daemon>,
    job: Job,
    operation: &Handle,
) -> Result<OperationResult, Problem> {
    let request = serde_json::to_string(&job).unwrap_or_default();
    let key = SharedKey { description: job.description(), request };
    let (host, events) = (daemon.host.clone(), Arc::clone(&daemon.events));
    let work = move |handle: Handle| async move {
        let done = perform(host, job.clone(), handle).await;
        if let Some(news) = done.as_ref().ok().and_then(|result| News::of_job(&job, result)) {
            events.tell(news);
        }
        done
    };
    daemon.jobs.join(&daemon.operations, key, operation, work).await
}

async fn perform(host: Host, job: Job, handle: Handle) -> Result<OperationResult, Problem> {
    let cancel = Cancel::new();
    let watcher = tokio::spawn(pass_on(handle.cancel_token().clone(), cancel.clone()));
    let done = lengthy(move || {
        let progress = Arc::new(move |progress: Progress| handle.progress(progress));
        host.artifacts.perform(&job, Report { progress, cancel: &cancel })
    })
    .await;
    watcher.abort();
    done
}

async fn pass_on(token: CancellationToken, cancel: Cancel) {
    token.cancelled().await;
    cancel.cancel();
}
