//! Routes of images.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use banger_api::image::PullRequest;
use banger_api::image::{CatalogImage, Image};
use banger_api::operation::Operation;
use banger_api::{ErrorCode, Problem};

use super::answer::{Accepted, Body, Failure, Named};
use crate::daemon::{Daemon, blocking};
use crate::pull::{self, Kind};

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/images", get(list))
        .route("/v1/images/catalog", get(catalog))
        .route("/v1/images/pull", post(pull))
        .route("/v1/images/{name}", get(show).delete(remove))
}

/// Lists local images.
#[utoipa::path(get, path = "/v1/images", tag = "images",
    responses((status = 200, body = Vec<Image>), (status = "default", body = Problem)))]
pub(super) async fn list(State(daemon): State<Arc<Daemon>>) -> Result<Json<Vec<Image>>, Failure> {
    let artifacts = Arc::clone(&daemon.host.artifacts);
    Ok(Json(blocking(move || artifacts.images()).await?))
}

/// Lists the images that can be pulled by name.
#[utoipa::path(get, path = "/v1/images/catalog", tag = "images",
    responses((status = 200, body = Vec<CatalogImage>), (status = "default", body = Problem)))]
pub(super) async fn catalog(
    State(daemon): State<Arc<Daemon>>,
) -> Result<Json<Vec<CatalogImage>>, Failure> {
    let artifacts = Arc::clone(&daemon.host.artifacts);
    Ok(Json(blocking(move || Ok(artifacts.catalog_images())).await?))
}

/// Fetches or builds a image.
#[utoipa::path(post, path = "/v1/images/pull", tag = "images", request_body = PullRequest,
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn pull(
    State(daemon): State<Arc<Daemon>>,
    Body(request): Body<PullRequest>,
) -> Result<Accepted, Failure> {
    let PullRequest { name, refresh, .. } = request;
    pull::check_in_catalog(&daemon, Kind::Image, &name).await?;
    pull::check_space(&daemon).await?;
    let all = Arc::clone(&daemon);
    Ok(Accepted(daemon.operations.start(format!("pull image {name}"), |operation| async move {
        pull::pull(&all, Kind::Image, &name, refresh, &operation).await
    })))
}

/// Shows a local image.
#[utoipa::path(get, path = "/v1/images/{name}", tag = "images",
    params(("name" = String, Path, description = "Name or digest")),
    responses((status = 200, body = Image), (status = "default", body = Problem)))]
pub(super) async fn show(
    State(daemon): State<Arc<Daemon>>,
    Named(name): Named,
) -> Result<Json<Image>, Failure> {
    Ok(Json(find(&daemon, name).await?))
}

/// Removes a local image that no VM uses.
#[utoipa::path(delete, path = "/v1/images/{name}", tag = "images",
    params(("name" = String, Path, description = "Name or digest")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    Named(name): Named,
) -> Result<StatusCode, Failure> {
    let _alone = daemon.artifacts_in_use.write().await;
    let digest = find(&daemon, name.clone()).await?.digest;
    let asked = digest.clone();
    let users = daemon.store(move |store| store.users_of_image(&asked)).await?;
    if !users.is_empty() {
        return Err(Failure(pull::in_use(ErrorCode::ImageInUse, "image", &name, &users)));
    }
    let artifacts = Arc::clone(&daemon.host.artifacts);
    blocking(move || artifacts.remove_image(&digest)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn find(daemon: &Arc<Daemon>, name: String) -> Result<Image, Problem> {
    let host = daemon.host.clone();
    blocking(move || match host.artifacts.find_image(&name)? {
        Some(found) => Ok(found.image),
        None => Err(Kind::Image.not_found(&host, &name)),
    })
    .await
}
