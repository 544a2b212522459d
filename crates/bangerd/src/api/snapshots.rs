//! Routes of snapshots.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use banger_api::Problem;
use banger_api::operation::Operation;
use banger_api::snapshot::{CreateSnapshot, ListSnapshots, RestoreSnapshot, Snapshot};

use super::answer::{Accepted, Body, Failure, Named, Params};
use crate::daemon::Daemon;
use crate::snapshots::{self, GoingBack, Taking};

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/snapshots", get(list))
        .route("/v1/vms/{vm}/snapshots", post(create))
        .route("/v1/vms/{vm}/snapshots/{name}", get(show).delete(remove))
        .route("/v1/vms/{vm}/snapshots/{name}/restore", post(restore))
}

/// Lists the snapshots of a VM, or of all.
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots",
    params(("vm" = Option<String>, Query, description = "Name, id, or unique beginning of an id")),
    responses((status = 200, body = Vec<Snapshot>), (status = "default", body = Problem)))]
pub(super) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<ListSnapshots>,
) -> Result<Json<Vec<Snapshot>>, Failure> {
    Ok(Json(snapshots::list(&daemon, query.vm.as_deref()).await?))
}

/// Makes a snapshot of a VM: of one that runs memory and disks, of another the disks.
#[utoipa::path(post, path = "/v1/vms/{vm}/snapshots", tag = "snapshots",
    request_body = Option<CreateSnapshot>,
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id")),
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn create(
    State(daemon): State<Arc<Daemon>>,
    Named(vm): Named,
    Body(request): Body<Option<CreateSnapshot>>,
) -> Result<Accepted, Failure> {
    let vm = daemon.find(&vm)?;
    let taking = Taking::check(&daemon, vm, request.unwrap_or_default()).await?;
    Ok(Accepted(daemon.operations.start(taking.description(), |handle| taking.run(handle))))
}

/// Shows a snapshot.
#[utoipa::path(get, path = "/v1/vms/{vm}/snapshots/{name}", tag = "snapshots",
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id"),
        ("name" = String, Path, description = "Name of the snapshot")),
    responses((status = 200, body = Snapshot), (status = "default", body = Problem)))]
pub(super) async fn show(
    State(daemon): State<Arc<Daemon>>,
    Path((vm, name)): Path<(String, String)>,
) -> Result<Json<Snapshot>, Failure> {
    let vm = daemon.find(&vm)?;
    Ok(Json(snapshots::show(&daemon, &vm, &name).await?))
}

/// Removes a snapshot. A VM that went on from it goes on.
#[utoipa::path(delete, path = "/v1/vms/{vm}/snapshots/{name}", tag = "snapshots",
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id"),
        ("name" = String, Path, description = "Name of the snapshot")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    Path((vm, name)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    let vm = daemon.find(&vm)?;
    snapshots::remove(&daemon, &vm, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a VM what it was. What it is now is kept as an automatic snapshot.
#[utoipa::path(post, path = "/v1/vms/{vm}/snapshots/{name}/restore", tag = "snapshots",
    request_body = Option<RestoreSnapshot>,
    params(("vm" = String, Path, description = "Name, id, or unique beginning of an id"),
        ("name" = String, Path, description = "Name of the snapshot")),
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn restore(
    State(daemon): State<Arc<Daemon>>,
    Path((vm, name)): Path<(String, String)>,
    Body(request): Body<Option<RestoreSnapshot>>,
) -> Result<Accepted, Failure> {
    let vm = daemon.find(&vm)?;
    let back = GoingBack::check(&daemon, vm, &name, request.unwrap_or_default()).await?;
    Ok(Accepted(daemon.operations.start(back.description(), |handle| back.run(handle))))
}
