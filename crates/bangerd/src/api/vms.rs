//! Routes of VMs.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use banger_api::change::{SetVm, VmChanged};
use banger_api::fork::ForkVm;
use banger_api::operation::{Operation, OperationResult};
use banger_api::vm::{
    CreateVm, EndCause, ListVms, LogQuery, PruneVms, Pruned, RemoveVm, StartVm, StopVm, Vm, VmState,
};
use banger_api::{ErrorCode, Problem};
use banger_core::filter::Filter;
use banger_core::lifecycle::Request;
use banger_core::spec;
use banger_host::clock;
use futures_util::stream;

use super::answer::{Accepted, Body, Failure, Named, Params};
use crate::artifacts;
use crate::daemon::Daemon;
use crate::operations::Handle;
use crate::system;
use crate::vm::create::Creation;
use crate::vm::fork::Fork;
use crate::vm::{Outcome, VmHandle, Wanted, last_environment, logs};

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/vms", get(list).post(create))
        .route("/v1/vms/prune", post(prune))
        .route("/v1/vms/{vm}", get(show).patch(change).delete(remove))
        .route("/v1/vms/{vm}/start", post(start))
        .route("/v1/vms/{vm}/stop", post(stop))
        .route("/v1/vms/{vm}/restart", post(restart))
        .route("/v1/vms/{vm}/kill", post(kill))
        .route("/v1/vms/{vm}/pause", post(pause))
        .route("/v1/vms/{vm}/resume", post(resume))
        .route("/v1/vms/{vm}/fork", post(fork))
        .route("/v1/vms/{vm}/wait", get(wait))
        .route("/v1/vms/{vm}/logs", get(read_logs))
}

/// Lists VMs.
#[utoipa::path(get, path = "/v1/vms", tag = "vms",
    params(("filter" = Option<String>, Query, description =
        "Conditions that all must hold, separated by commas: `state=running`, `label=k`, \
         `label=k=v`, `name=…`, `image=…`")),
    responses((status = 200, body = Vec<Vm>), (status = "default", body = Problem)))]
pub(super) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<ListVms>,
) -> Result<Json<Vec<Vm>>, Failure> {
    let filter = Filter::parse(query.filter.as_deref().unwrap_or_default()).map_err(|error| {
        Problem::new(ErrorCode::InvalidArgument, error.to_string())
            .hint("banger ls --filter state=running")
    })?;
    Ok(Json(daemon.list(&filter)))
}

/// Makes a VM, and starts it if asked.
#[utoipa::path(post, path = "/v1/vms", tag = "vms", request_body = CreateVm,
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn create(
    State(daemon): State<Arc<Daemon>>,
    Body(request): Body<CreateVm>,
) -> Result<Accepted, Failure> {
    let creation = Creation::check(&daemon, request).await?;
    let description = creation.description();
    Ok(Accepted(daemon.operations.start(description, |operation| creation.run(operation))))
}

/// Shows a VM.
#[utoipa::path(get, path = "/v1/vms/{vm}", tag = "vms",
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id")),
    responses((status = 200, body = Vm), (status = "default", body = Problem)))]
pub(super) async fn show(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
) -> Result<Json<Vm>, Failure> {
    Ok(Json(daemon.find(&vm)?.snapshot()))
}

/// Changes what a VM is. Everything that is asked for happens, or nothing.
#[utoipa::path(patch, path = "/v1/vms/{vm}", tag = "vms", request_body = SetVm,
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id")),
    responses((status = 200, body = VmChanged), (status = "default", body = Problem)))]
pub(super) async fn change(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
    Body(wanted): Body<Option<SetVm>>,
) -> Result<Json<VmChanged>, Failure> {
    let vm = daemon.find(&vm)?;
    let set = wanted.unwrap_or_default();
    // Held here and not by the VM's task, which a reset asks to remove the VM while it holds it alone.
    let _in_use = daemon.artifacts_in_use.read().await;
    let image = match &set.image {
        Some(name) => Some(artifacts::find_image(&daemon, name).await?),
        None => None,
    };
    let changes = vm.change(Wanted { set, image }).await?;
    Ok(Json(VmChanged { vm: vm.snapshot(), changes }))
}

/// Starts a VM.
#[utoipa::path(post, path = "/v1/vms/{vm}/start", tag = "vms", request_body = Option<StartVm>,
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id")),
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn start(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
    Body(request): Body<Option<StartVm>>,
) -> Result<Accepted, Failure> {
    let vm = daemon.find(&vm)?;
    let request = request.unwrap_or_default();
    spec::check_environment(&request.session_env).map_err(Problem::from)?;
    artifacts::check_space(&daemon).await?;
    let outcome = vm.start(request).await?;
    let description = format!("start vm {}", vm.name);
    Ok(Accepted(daemon.operations.start(description, |operation| async move {
        follow_start(&vm, outcome, &operation).await?;
        Ok(shown(&vm))
    })))
}

async fn follow_start(vm: &VmHandle, outcome: Outcome, operation: &Handle) -> Result<(), Problem> {
    match outcome {
        Outcome::Accepted(work) => work.follow(operation).await,
        Outcome::AlreadySo => vm.started().await,
    }
}

/// Stops a VM cleanly; kills it when its grace period is over.
#[utoipa::path(post, path = "/v1/vms/{vm}/stop", tag = "vms", request_body = Option<StopVm>,
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id")),
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn stop(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
    Body(grace): Body<Option<StopVm>>,
) -> Result<Accepted, Failure> {
    end(&daemon, &vm, Request::Stop, grace.unwrap_or_default()).await
}

/// Kills a VM.
#[utoipa::path(post, path = "/v1/vms/{vm}/kill", tag = "vms",
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id")),
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn kill(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
) -> Result<Accepted, Failure> {
    end(&daemon, &vm, Request::Kill, StopVm::default()).await
}

async fn end(
    daemon: &Arc<Daemon>,
    vm: &str,
    request: Request,
    grace: StopVm,
) -> Result<Accepted, Failure> {
    let vm = daemon.find(vm)?;
    let asked_ms = clock::now_ms();
    let outcome = vm.end(request, grace).await?;
    let verb = if request == Request::Kill { "kill" } else { "stop" };
    let description = format!("{verb} vm {}", vm.name);
    Ok(Accepted(daemon.operations.start(description, |operation| async move {
        follow_end((&vm, asked_ms), outcome, &operation).await?;
        Ok(shown(&vm))
    })))
}

/// Waits for an end that was asked for then. Warns if it was none in order; an older one is no news.
async fn follow_end(
    (vm, asked_ms): (&VmHandle, u64),
    outcome: Outcome,
    operation: &Handle,
) -> Result<(), Problem> {
    if let Outcome::Accepted(work) = outcome {
        work.follow(operation).await?;
    }
    let ended = vm.ended_since(asked_ms).await;
    let end_of_now = ended.status.end.filter(|_| ended.status.since_ms >= asked_ms);
    if let Some(end) = end_of_now {
        let name = ended.name;
        match end.cause {
            EndCause::StopTimedOut => {
                operation.warn(format!("VM {name} did not stop in time: {}", end.reason));
            }
            cause if cause.state() == VmState::Failed => {
                operation.warn(format!("VM {name} did not stop in order: {}", end.reason));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Stops a VM cleanly and starts it again; starts one that does not run.
#[utoipa::path(post, path = "/v1/vms/{vm}/restart", tag = "vms", request_body = Option<StopVm>,
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id")),
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn restart(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
    Body(grace): Body<Option<StopVm>>,
) -> Result<Accepted, Failure> {
    let vm = daemon.find(&vm)?;
    let again = last_environment(&daemon, &vm.id).await;
    let asked_ms = clock::now_ms();
    let outcome = vm.end(Request::Restart, grace.unwrap_or_default()).await?;
    let description = format!("restart vm {}", vm.name);
    Ok(Accepted(daemon.operations.start(description, |operation| async move {
        follow_end((&vm, asked_ms), outcome, &operation).await?;
        operation.check_cancelled()?;
        follow_start(&vm, vm.start(again).await?, &operation).await?;
        Ok(shown(&vm))
    })))
}

/// Has a VM's virtual CPUs stand still. Its memory stays.
#[utoipa::path(post, path = "/v1/vms/{vm}/pause", tag = "vms",
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id")),
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn pause(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
) -> Result<Accepted, Failure> {
    turn(&daemon, &vm, Request::Pause).await
}

/// Has a paused VM go on, with its clock set.
#[utoipa::path(post, path = "/v1/vms/{vm}/resume", tag = "vms",
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id")),
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn resume(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
) -> Result<Accepted, Failure> {
    turn(&daemon, &vm, Request::Resume).await
}

async fn turn(daemon: &Arc<Daemon>, vm: &str, request: Request) -> Result<Accepted, Failure> {
    let vm = daemon.find(vm)?;
    let outcome = vm.turn(request).await?;
    let verb = if request == Request::Pause { "pause" } else { "resume" };
    let description = format!("{verb} vm {}", vm.name);
    Ok(Accepted(daemon.operations.start(description, |operation| async move {
        if let Outcome::Accepted(work) = outcome {
            work.follow(&operation).await?;
        }
        Ok(shown(&vm))
    })))
}

/// Makes running copies of a running VM.
#[utoipa::path(post, path = "/v1/vms/{vm}/fork", tag = "vms", request_body = ForkVm,
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id")),
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn fork(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
    Body(request): Body<ForkVm>,
) -> Result<Accepted, Failure> {
    let fork = Fork::check(&daemon, daemon.find(&vm)?, request).await?;
    let description = fork.description();
    Ok(Accepted(daemon.operations.start(description, |operation| fork.run(operation))))
}

/// Removes a VM.
#[utoipa::path(delete, path = "/v1/vms/{vm}", tag = "vms",
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id"),
        ("force" = Option<bool>, Query, description = "Kill it first if it runs")),
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
    Params(query): Params<RemoveVm>,
) -> Result<Accepted, Failure> {
    let vm = daemon.find(&vm)?;
    let outcome = vm.remove(query.force).await?;
    let description = format!("remove vm {}", vm.name);
    Ok(Accepted(daemon.operations.start(description, |operation| async move {
        if let Outcome::Accepted(work) = outcome {
            work.follow(&operation).await?;
        }
        Ok(OperationResult::Nothing)
    })))
}

/// Answers when the VM is not running: at once, or when it has ended.
#[utoipa::path(get, path = "/v1/vms/{vm}/wait", tag = "vms",
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id")),
    responses((status = 200, body = Vm), (status = "default", body = Problem)))]
pub(super) async fn wait(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
) -> Result<Json<Vm>, Failure> {
    Ok(Json(daemon.find(&vm)?.ended().await))
}

/// A log of a VM as plain text, as far as it is written. A running VM's shim can follow it.
#[utoipa::path(get, path = "/v1/vms/{vm}/logs", tag = "vms",
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id"),
        ("source" = Option<String>, Query, description = "`main` or `console`"),
        ("tail" = Option<u32>, Query, description = "Only that many last lines")),
    responses((status = 200, body = String, content_type = "text/plain"),
        (status = "default", body = Problem)))]
pub(super) async fn read_logs(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
    Params(query): Params<LogQuery>,
) -> Result<Response, Failure> {
    let vm = daemon.find(&vm)?;
    let pieces = logs::read(&daemon.vm_dir(&vm.id), query.source, query.tail);
    let pieces = stream::unfold(pieces, |mut pieces| async move {
        pieces.recv().await.map(|piece| (piece, pieces))
    });
    let media_type = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((media_type, HttpBody::from_stream(pieces)).into_response())
}

/// Removes the VMs that have ended.
#[utoipa::path(post, path = "/v1/vms/prune", tag = "vms", request_body = Option<PruneVms>,
    responses((status = 200, body = Pruned), (status = "default", body = Problem)))]
pub(super) async fn prune(
    State(daemon): State<Arc<Daemon>>,
    Body(request): Body<Option<PruneVms>>,
) -> Result<Json<Pruned>, Failure> {
    Ok(Json(system::prune(&daemon, request.unwrap_or_default().dry_run).await?))
}

fn shown(vm: &VmHandle) -> OperationResult {
    OperationResult::Vm(Box::new(vm.snapshot()))
}
