//! Routes of kernels.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use banger_api::event::EventType;
use banger_api::image::PullRequest;
use banger_api::kernel::{CatalogKernel, ImportKernel, Kernel};
use banger_api::operation::Operation;
use banger_api::{ErrorCode, Problem};

use super::answer::{Accepted, Body, Failure, Named};
use crate::artifacts::{self, User};
use crate::daemon::{Daemon, blocking};
use crate::events::News;
use crate::host::Job;
use crate::jobs;

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/kernels", get(list))
        .route("/v1/kernels/catalog", get(catalog))
        .route("/v1/kernels/pull", post(pull))
        .route("/v1/kernels/import", post(import))
        .route("/v1/kernels/{name}", get(show).delete(remove))
}

/// Lists local kernels.
#[utoipa::path(get, path = "/v1/kernels", tag = "kernels",
    responses((status = 200, body = Vec<Kernel>), (status = "default", body = Problem)))]
pub(super) async fn list(State(daemon): State<Arc<Daemon>>) -> Result<Json<Vec<Kernel>>, Failure> {
    let artifacts = Arc::clone(&daemon.host.artifacts);
    Ok(Json(blocking(move || artifacts.kernels()).await?))
}

/// Lists the kernels that can be pulled by name.
#[utoipa::path(get, path = "/v1/kernels/catalog", tag = "kernels",
    responses((status = 200, body = Vec<CatalogKernel>), (status = "default", body = Problem)))]
pub(super) async fn catalog(
    State(daemon): State<Arc<Daemon>>,
) -> Result<Json<Vec<CatalogKernel>>, Failure> {
    let artifacts = Arc::clone(&daemon.host.artifacts);
    Ok(Json(blocking(move || artifacts.catalog_kernels()).await?))
}

/// Fetches or builds a kernel.
#[utoipa::path(post, path = "/v1/kernels/pull", tag = "kernels", request_body = PullRequest,
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn pull(
    State(daemon): State<Arc<Daemon>>,
    Body(request): Body<PullRequest>,
) -> Result<Accepted, Failure> {
    let (artifacts, name) = (Arc::clone(&daemon.host.artifacts), request.name.clone());
    blocking(move || artifacts::check_kernel(artifacts.as_ref(), &name)).await?;
    artifacts::check_space(&daemon).await?;
    Ok(Accepted(jobs::start(&daemon, Job::PullKernel(request))))
}

/// Makes a kernel of local files.
#[utoipa::path(post, path = "/v1/kernels/import", tag = "kernels", request_body = ImportKernel,
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn import(
    State(daemon): State<Arc<Daemon>>,
    Body(request): Body<ImportKernel>,
) -> Result<Accepted, Failure> {
    artifacts::check_space(&daemon).await?;
    Ok(Accepted(jobs::start(&daemon, Job::ImportKernel(request))))
}

/// Shows a local kernel.
#[utoipa::path(get, path = "/v1/kernels/{name}", tag = "kernels",
    params(("name" = String, Path, description = "Name or digest")),
    responses((status = 200, body = Kernel), (status = "default", body = Problem)))]
pub(super) async fn show(
    State(daemon): State<Arc<Daemon>>,
    Named(name): Named,
) -> Result<Json<Kernel>, Failure> {
    Ok(Json(find(&daemon, name).await?))
}

/// Removes a local kernel that no VM uses.
#[utoipa::path(delete, path = "/v1/kernels/{name}", tag = "kernels",
    params(("name" = String, Path, description = "Name or digest")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    Named(name): Named,
) -> Result<StatusCode, Failure> {
    let _alone = daemon.artifacts_in_use.write().await;
    let digest = find(&daemon, name.clone()).await?.digest;
    let news = News::named(EventType::KernelRemoved, &digest, &name);
    let asked = digest.clone();
    let users = daemon.store(move |store| store.users_of_kernel(&asked)).await?;
    if !users.is_empty() {
        let users = User::all(&daemon, users);
        return Err(Failure(artifacts::in_use(ErrorCode::KernelInUse, "kernel", &name, &users)));
    }
    let artifacts = Arc::clone(&daemon.host.artifacts);
    blocking(move || artifacts.remove_kernel(&digest)).await?;
    daemon.events.tell(news);
    Ok(StatusCode::NO_CONTENT)
}

async fn find(daemon: &Arc<Daemon>, name: String) -> Result<Kernel, Problem> {
    let artifacts = Arc::clone(&daemon.host.artifacts);
    blocking(move || match artifacts.find_kernel(&name)? {
        Some(found) => Ok(found.kernel),
        None => Err(artifacts::no_kernel(artifacts.as_ref(), &name)),
    })
    .await
}
