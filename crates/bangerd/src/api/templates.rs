//! Routes of templates.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use banger_api::Problem;
use banger_api::operation::Operation;
use banger_api::template::{MakeTemplate, PruneTemplates, PrunedTemplates, Template};

use super::answer::{Accepted, Body, Failure, Named};
use crate::daemon::Daemon;
use crate::{artifacts, templates};

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/templates", get(list).post(make))
        .route("/v1/templates/prune", post(prune))
        .route("/v1/templates/{id}", get(show).delete(remove))
}

/// Lists templates, the one used last first.
#[utoipa::path(get, path = "/v1/templates", tag = "templates",
    responses((status = 200, body = Vec<Template>), (status = "default", body = Problem)))]
pub(super) async fn list(
    State(daemon): State<Arc<Daemon>>,
) -> Result<Json<Vec<Template>>, Failure> {
    Ok(Json(templates::list(&daemon).await?))
}

/// Makes the template that VMs of a specification begin from.
#[utoipa::path(post, path = "/v1/templates", tag = "templates", request_body = MakeTemplate,
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn make(
    State(daemon): State<Arc<Daemon>>,
    Body(request): Body<MakeTemplate>,
) -> Result<Accepted, Failure> {
    artifacts::check_space(&daemon).await?;
    let order = templates::Order::check(&daemon, request).await?;
    Ok(Accepted(daemon.operations.start(order.description(), |handle| order.run(handle))))
}

/// Shows a template.
#[utoipa::path(get, path = "/v1/templates/{id}", tag = "templates",
    params(("id" = String, Path, description = "Id, or the unique beginning of one")),
    responses((status = 200, body = Template), (status = "default", body = Problem)))]
pub(super) async fn show(
    State(daemon): State<Arc<Daemon>>,
    Named(id): Named,
) -> Result<Json<Template>, Failure> {
    Ok(Json(templates::show(&daemon, &id).await?))
}

/// Removes a template. VMs that began from it go on.
#[utoipa::path(delete, path = "/v1/templates/{id}", tag = "templates",
    params(("id" = String, Path, description = "Id, or the unique beginning of one")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    Named(id): Named,
) -> Result<StatusCode, Failure> {
    templates::remove(&daemon, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes the templates that are of no use, or all, or says which.
#[utoipa::path(post, path = "/v1/templates/prune", tag = "templates", request_body = PruneTemplates,
    responses((status = 200, body = PrunedTemplates), (status = "default", body = Problem)))]
pub(super) async fn prune(
    State(daemon): State<Arc<Daemon>>,
    Body(request): Body<PruneTemplates>,
) -> Result<Json<PrunedTemplates>, Failure> {
    Ok(Json(templates::prune(&daemon, request).await?))
}
