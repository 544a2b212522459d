//! Routes of the daemon itself and of the state as a whole.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use banger_api::Problem;
use banger_api::operation::Operation;
use banger_api::system::{DiskUse, ResetPlan, ResetRequest, VmIds};
use banger_api::version::DaemonVersion;

use super::Front;
use super::answer::{Accepted, Body, Failure};
use crate::daemon::Daemon;
use crate::system;

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/system/df", get(disk_use))
        .route("/v1/system/reset", post(reset))
        .route("/v1/system/vm-ids", get(vm_ids))
}

/// Who the daemon is. Always answered.
#[utoipa::path(get, path = "/v1/version", tag = "system",
    responses((status = 200, body = DaemonVersion)))]
pub(super) async fn version(State(front): State<Front>) -> Json<DaemonVersion> {
    Json(front.version)
}

/// Ends the daemon. VMs live on.
#[utoipa::path(post, path = "/v1/daemon/stop", tag = "system", responses((status = 204)))]
pub(super) async fn stop_daemon(State(front): State<Front>) -> StatusCode {
    front.shutdown.cancel();
    StatusCode::NO_CONTENT
}

/// What the state takes on the host's disk.
#[utoipa::path(get, path = "/v1/system/df", tag = "system",
    responses((status = 200, body = DiskUse), (status = "default", body = Problem)))]
pub(super) async fn disk_use(State(daemon): State<Arc<Daemon>>) -> Result<Json<DiskUse>, Failure> {
    Ok(Json(system::disk_use(&daemon).await?))
}

/// The ids of all VMs, those being removed included: whose directories are in use.
#[utoipa::path(get, path = "/v1/system/vm-ids", tag = "system",
    responses((status = 200, body = VmIds), (status = "default", body = Problem)))]
pub(super) async fn vm_ids(State(daemon): State<Arc<Daemon>>) -> Result<Json<VmIds>, Failure> {
    // The rows and not the handles: a directory is there as long as its row is.
    let rows = daemon.store(crate::store::Store::all).await?;
    Ok(Json(VmIds { ids: rows.into_iter().map(|row| row.id.to_string()).collect() }))
}

/// Stops and removes everything, or says what would go.
#[utoipa::path(post, path = "/v1/system/reset", tag = "system",
    request_body = Option<ResetRequest>,
    responses((status = 200, body = ResetPlan), (status = 202, body = Operation),
        (status = "default", body = Problem)))]
pub(super) async fn reset(
    State(daemon): State<Arc<Daemon>>,
    Body(request): Body<ResetRequest>,
) -> Result<Response, Failure> {
    if request.dry_run {
        return Ok(Json(system::plan_reset(&daemon).await?).into_response());
    }
    let all = Arc::clone(&daemon);
    let work = |operation| system::reset(all, operation);
    Ok(Accepted(daemon.operations.start("reset", work)).into_response())
}
