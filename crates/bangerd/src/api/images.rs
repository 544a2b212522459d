//! Routes of images.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as Stream;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use banger_api::event::EventType;
use banger_api::image::{
    CatalogImage, Image, PromoteVm, PruneImages, PrunedImages, PullRequest, PushImage,
    RegisterImage, RegisterSource, Upload,
};
use banger_api::operation::Operation;
use banger_api::{ErrorCode, Problem};
use banger_host::files;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;

use super::answer::{Accepted, Body, Failure, Named};
use crate::artifacts::{self, User};
use crate::daemon::{Daemon, blocking, failed};
use crate::events::News;
use crate::host::{Job, Promotion};
use crate::store::Store;
use crate::{jobs, snapshots, uploads};

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/images", get(list))
        .route("/v1/images/catalog", get(catalog))
        .route("/v1/images/pull", post(pull))
        .route("/v1/images/uploads", post(upload).layer(DefaultBodyLimit::disable()))
        .route("/v1/images/register", post(register))
        .route("/v1/images/promote", post(promote))
        .route("/v1/images/push", post(push))
        .route("/v1/images/prune", post(prune))
        .route("/v1/images/{name}", get(show).delete(remove))
}

/// Lists local images.
#[utoipa::path(get, path = "/v1/images", tag = "images",
    responses((status = 200, body = Vec<Image>), (status = "default", body = Problem)))]
pub(super) async fn list(State(daemon): State<Arc<Daemon>>) -> Result<Json<Vec<Image>>, Failure> {
    let artifacts = Arc::clone(&daemon.host.artifacts);
    Ok(Json(blocking(move || artifacts.images()).await?))
}

/// Lists the images that can be pulled by a short name.
#[utoipa::path(get, path = "/v1/images/catalog", tag = "images",
    responses((status = 200, body = Vec<CatalogImage>), (status = "default", body = Problem)))]
pub(super) async fn catalog(
    State(daemon): State<Arc<Daemon>>,
) -> Result<Json<Vec<CatalogImage>>, Failure> {
    let artifacts = Arc::clone(&daemon.host.artifacts);
    Ok(Json(blocking(move || artifacts.catalog_images()).await?))
}

/// Fetches or builds an image.
#[utoipa::path(post, path = "/v1/images/pull", tag = "images", request_body = PullRequest,
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn pull(
    State(daemon): State<Arc<Daemon>>,
    Body(request): Body<PullRequest>,
) -> Result<Accepted, Failure> {
    let (artifacts, name) = (Arc::clone(&daemon.host.artifacts), request.name.clone());
    blocking(move || artifacts.check_image(&name)).await?;
    artifacts::check_space(&daemon).await?;
    Ok(Accepted(jobs::start(&daemon, Job::PullImage(request))))
}

/// Takes a file from which an image can be made: the body, as it is.
#[utoipa::path(post, path = "/v1/images/uploads", tag = "images",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Upload), (status = "default", body = Problem)))]
pub(super) async fn upload(
    State(daemon): State<Arc<Daemon>>,
    body: Stream,
) -> Result<Json<Upload>, Failure> {
    artifacts::check_space(&daemon).await?;
    let cache = daemon.dirs.cache();
    let file = blocking(move || {
        files::nameless(&cache).map_err(|error| failed("cannot keep what is sent", &error))
    })
    .await?;
    let mut file = tokio::fs::File::from_std(file);
    let mut chunks = body.into_data_stream();
    let mut bytes = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            Problem::new(ErrorCode::InvalidArgument, "the upload broke off").because(&error)
        })?;
        bytes += chunk.len() as u64;
        let written = file.write_all(&chunk).await;
        written.map_err(|error| failed("cannot keep what is sent", &error))?;
    }
    file.flush().await.map_err(|error| failed("cannot keep what is sent", &error))?;
    let id = daemon.uploads.keep(file.into_std().await, Instant::now())?;
    Ok(Json(Upload { id, bytes }))
}

/// Makes an image of local files.
#[utoipa::path(post, path = "/v1/images/register", tag = "images", request_body = RegisterImage,
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn register(
    State(daemon): State<Arc<Daemon>>,
    Body(mut request): Body<RegisterImage>,
) -> Result<Accepted, Failure> {
    artifacts::check_space(&daemon).await?;
    if let Some(kernel) = request.kernel.clone() {
        let artifacts = Arc::clone(&daemon.host.artifacts);
        blocking(move || artifacts::check_kernel(artifacts.as_ref(), &kernel)).await?;
    }
    let RegisterSource::Upload { id } = &request.source else {
        return Ok(Accepted(jobs::start(&daemon, Job::RegisterImage(request))));
    };
    let file = daemon.uploads.take(id)?;
    request.source = RegisterSource::Path { path: uploads::path_of(&file) };
    // It must stay open.
    Ok(Accepted(start_with(&daemon, Job::RegisterImage(request), file)))
}

/// Begins a job that needs something to be kept until it is done.
fn start_with(daemon: &Arc<Daemon>, job: Job, kept: impl Send + 'static) -> Operation {
    let all = Arc::clone(daemon);
    daemon.operations.start(job.description(), |operation| async move {
        let done = jobs::join(&all, job, &operation).await;
        drop(kept);
        done
    })
}

/// Makes an image of a stopped VM's disk.
#[utoipa::path(post, path = "/v1/images/promote", tag = "images", request_body = PromoteVm,
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn promote(
    State(daemon): State<Arc<Daemon>>,
    Body(request): Body<PromoteVm>,
) -> Result<Accepted, Failure> {
    let vm = daemon.find(&request.vm)?;
    let lent = vm.lend_root().await?;
    artifacts::check_space(&daemon).await?;
    let promotion = Promotion {
        vm: vm.name.clone(),
        name: request.name,
        image_digest: lent.row.image_digest.clone(),
        vm_dir: daemon.vm_dir(&vm.id),
        disk_bytes: lent.row.disk_bytes,
    };
    Ok(Accepted(start_with(&daemon, Job::PromoteVm(promotion), lent)))
}

/// Sends an image to a registry.
#[utoipa::path(post, path = "/v1/images/push", tag = "images", request_body = PushImage,
    responses((status = 202, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn push(
    State(daemon): State<Arc<Daemon>>,
    Body(request): Body<PushImage>,
) -> Result<Accepted, Failure> {
    find(&daemon, request.name.clone()).await?;
    Ok(Accepted(jobs::start(&daemon, Job::PushImage(request))))
}

/// Removes the images that nobody needs, and the layers that no image needs.
#[utoipa::path(post, path = "/v1/images/prune", tag = "images", request_body = PruneImages,
    responses((status = 200, body = PrunedImages), (status = "default", body = Problem)))]
pub(super) async fn prune(
    State(daemon): State<Arc<Daemon>>,
    Body(request): Body<Option<PruneImages>>,
) -> Result<Json<PrunedImages>, Failure> {
    let _alone = daemon.artifacts_in_use.write().await;
    let mut used = daemon.store(Store::images_in_use).await?;
    used.extend(snapshots::images_in_use(&daemon).await?);
    let artifacts = Arc::clone(&daemon.host.artifacts);
    let request = request.unwrap_or_default();
    let dry_run = request.dry_run;
    let pruned = blocking(move || artifacts.prune_images(request, &used)).await?;
    for image in pruned.images.iter().filter(|_| !dry_run) {
        daemon.events.tell(News::named(EventType::ImagePruned, &image.digest, &image.name));
    }
    Ok(Json(pruned))
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

/// Removes a local image that no VM uses. One that has other names only loses this one.
#[utoipa::path(delete, path = "/v1/images/{name}", tag = "images",
    params(("name" = String, Path, description = "Name or digest")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    Named(name): Named,
) -> Result<StatusCode, Failure> {
    let _alone = daemon.artifacts_in_use.write().await;
    let digest = find(&daemon, name.clone()).await?.digest;
    let has_other_names = has_other_names(&daemon, name.clone(), digest.clone()).await?;
    let news = News::named(EventType::ImageRemoved, &digest, &name);
    let asked = digest.clone();
    let users = daemon.store(move |store| store.users_of_image(&asked)).await?;
    // After the rows: a VM that goes back to another image has kept what it was before its row changes.
    let snapshots = snapshots::users_of_image(&daemon, &digest).await?;
    if !users.is_empty() && !has_other_names {
        let users = User::all(&daemon, users);
        return Err(Failure(artifacts::in_use(ErrorCode::ImageInUse, "image", &name, &users)));
    }
    if let Some(vm) = snapshots.first().filter(|_| !has_other_names) {
        return Err(Failure(artifacts::in_use_by_snapshots(&name, vm)));
    }
    let artifacts = Arc::clone(&daemon.host.artifacts);
    blocking(move || artifacts.remove_image(&name)).await?;
    daemon.events.tell(news);
    Ok(StatusCode::NO_CONTENT)
}

/// Whether the image stays under another name when it loses this one.
async fn has_other_names(
    daemon: &Arc<Daemon>,
    wanted: String,
    digest: String,
) -> Result<bool, Problem> {
    let artifacts = Arc::clone(&daemon.host.artifacts);
    blocking(move || {
        // Asked for by its digest it goes with all its names.
        let is_name =
            !digest.trim_start_matches("sha256:").starts_with(wanted.trim_start_matches("sha256:"));
        let names = artifacts.images()?.into_iter().filter(|image| image.digest == digest).count();
        Ok(is_name && names > 1)
    })
    .await
}

async fn find(daemon: &Arc<Daemon>, name: String) -> Result<Image, Problem> {
    let artifacts = Arc::clone(&daemon.host.artifacts);
    blocking(move || match artifacts.find_image(&name)? {
        Some(found) => Ok(found.image),
        None => Err(artifacts::no_image(artifacts.as_ref(), &name)),
    })
    .await
}

#[cfg(test)]
mod tests;
