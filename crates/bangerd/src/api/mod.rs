//! The daemon's API: HTTP and JSON on a unix socket, every error a problem body.

mod answer;
mod events;
mod images;
mod kernels;
pub mod openapi;
mod operations;
mod snapshots;
mod system;
mod templates;
#[cfg(test)]
mod tests;
mod vms;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use banger_api::version::{DAEMON_PROTOCOL, DaemonVersion};
use banger_api::{ErrorCode, Problem};
use tokio_util::sync::CancellationToken;

use crate::daemon::Daemon;
use answer::Failure;

/// Largest request body, in bytes.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// What every daemon can answer, whatever the state of its database.
#[derive(Debug, Clone)]
pub struct Front {
    /// Who it is.
    pub version: DaemonVersion,
    /// Set when it should end.
    pub shutdown: CancellationToken,
}

impl Front {
    /// This daemon, serving that state directory.
    #[must_use]
    pub fn new(data_dir: &std::path::Path, started_at_ms: u64) -> Self {
        Self {
            version: DaemonVersion {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                protocol: DAEMON_PROTOCOL,
                pid: std::process::id(),
                started_at_ms,
                data_dir: data_dir.display().to_string(),
            },
            shutdown: CancellationToken::new(),
        }
    }
}

/// Everything.
pub fn router(front: Front, daemon: Arc<Daemon>) -> Router {
    let routes = vms::routes()
        .merge(images::routes())
        .merge(kernels::routes())
        .merge(templates::routes())
        .merge(snapshots::routes())
        .merge(operations::routes())
        .merge(events::routes())
        .merge(system::routes())
        .with_state(daemon);
    finish(front_routes(front).merge(routes).fallback(unknown_route))
}

/// A daemon that cannot do its work: it says so to every request, and can be asked who it is and
/// told to stop. Once it has said so it ends, so that the next command tries again: by then there
/// may be space, or another database.
pub fn refusing_router(front: &Front, problem: Problem) -> Router {
    let shutdown = front.shutdown.clone();
    finish(front_routes(front.clone()).fallback(move || {
        let problem = problem.clone();
        shutdown.cancel();
        async move { Failure(problem) }
    }))
}

fn front_routes(front: Front) -> Router {
    Router::new()
        .route("/v1/version", get(system::version))
        .route("/v1/daemon/stop", post(system::stop_daemon))
        .route("/v1/openapi.json", get(openapi::serve))
        .with_state(front)
}

fn finish(router: Router) -> Router {
    router.method_not_allowed_fallback(unknown_route).layer(DefaultBodyLimit::max(MAX_BODY))
}

async fn unknown_route(request: axum::extract::Request) -> Failure {
    let (method, path) = (request.method(), request.uri().path());
    Failure(
        Problem::new(ErrorCode::NotFound, format!("there is no route {method} {path}"))
            .hint("banger version"),
    )
}
