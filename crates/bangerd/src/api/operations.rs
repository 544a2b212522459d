//! Routes of operations.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use axum::{Json, Router};
use banger_api::Problem;
use banger_api::operation::{Operation, OperationEvent};
use futures_util::stream::{self, Stream};
use serde::Deserialize;

use super::answer::{Failure, Named, Params};
use crate::daemon::Daemon;

/// How often a silent event stream says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/operations", get(list))
        .route("/v1/operations/{id}", get(show).delete(cancel))
        .route("/v1/operations/{id}/events", get(events))
}

/// Lists operations: those under way, and those that ended lately.
#[utoipa::path(get, path = "/v1/operations", tag = "operations",
    responses((status = 200, body = Vec<Operation>), (status = "default", body = Problem)))]
pub(super) async fn list(State(daemon): State<Arc<Daemon>>) -> Json<Vec<Operation>> {
    Json(daemon.operations.list())
}

/// Shows an operation.
#[utoipa::path(get, path = "/v1/operations/{id}", tag = "operations",
    params(("id" = String, Path, description = "The operation's id")),
    responses((status = 200, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn show(
    State(daemon): State<Arc<Daemon>>,
    Named(id): Named,
) -> Result<Json<Operation>, Failure> {
    Ok(Json(daemon.operations.get(&id)?))
}

/// Asks an operation to end. It has ended when its events say so.
#[utoipa::path(delete, path = "/v1/operations/{id}", tag = "operations",
    params(("id" = String, Path, description = "The operation's id")),
    responses((status = 200, body = Operation), (status = "default", body = Problem)))]
pub(super) async fn cancel(
    State(daemon): State<Arc<Daemon>>,
    Named(id): Named,
) -> Result<Json<Operation>, Failure> {
    Ok(Json(daemon.operations.cancel(&id)?))
}

/// Query of `GET /v1/operations/{id}/events`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct EventQuery {
    #[serde(default)]
    lease: bool,
}

/// The events of an operation, from the first on, as server-sent events.
#[utoipa::path(get, path = "/v1/operations/{id}/events", tag = "operations",
    params(("id" = String, Path, description = "The operation's id"),
        ("lease" = Option<bool>, Query, description =
            "Cancel the operation when the last stream with a lease ends before it")),
    responses((status = 200, body = OperationEvent, content_type = "text/event-stream"),
        (status = "default", body = Problem)))]
pub(super) async fn events(
    State(daemon): State<Arc<Daemon>>,
    Named(id): Named,
    Params(query): Params<EventQuery>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let subscription = daemon.operations.subscribe(&id, query.lease)?;
    let events = stream::unfold(subscription, |mut subscription| async move {
        let event = subscription.next().await?;
        let json = serde_json::to_string(&event).expect("events have only string keys");
        Some((Ok(Event::default().data(json)), subscription))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}
