//! The agent's HTTP interface, as [`banger_api::agent`] lists it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use banger_api::agent::{
    AwaitSystem, COPY_FEATURE, Configure, Configured, Hello, MAX_BODY, PARK_FEATURE, Park,
    SYSTEM_INIT_FEATURE, SetClock, Shutdown, SystemStatus, WORK_DISK_FEATURE,
};
use banger_api::error::PROBLEM_MEDIA_TYPE;
use banger_api::exec::{MAX_PAYLOAD, MAX_REQUEST};
use banger_api::version::AGENT_PROTOCOL;
use banger_api::{ErrorCode, Problem};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::agent::Agent;
use crate::{configure, exec, park, shutdown};

/// Notified when everything this connection had to say has been sent.
#[derive(Debug, Clone)]
pub struct Delivered(pub Arc<Notify>);

/// An error answer.
#[derive(Debug)]
struct Failure(Problem);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        response
    }
}

/// All routes, for one connection.
pub fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/v1/hello", get(hello))
        .route("/v1/configure", post(configure))
        .route("/v1/park", post(park))
        .route("/v1/await-system", post(await_system))
        .route("/v1/clock", post(clock))
        .route("/v1/exec", get(exec))
        .route("/v1/sync", post(sync))
        .route("/v1/shutdown", post(shut_down))
        .fallback(no_route)
        .method_not_allowed_fallback(no_route)
        .with_state(agent)
}

async fn hello(State(agent): State<Arc<Agent>>) -> Json<Hello> {
    Json(Hello {
        protocol: AGENT_PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: [SYSTEM_INIT_FEATURE, WORK_DISK_FEATURE, PARK_FEATURE, COPY_FEATURE]
            .map(str::to_owned)
            .to_vec(),
        kernel_release: kernel_release(),
        configured: agent.settings().is_some(),
    })
}

async fn configure(
    State(agent): State<Arc<Agent>>,
    request: Request,
) -> Result<Json<Configured>, Failure> {
    let body: Configure = read(request).await?;
    // In a task of its own: a host that hangs up must not leave the guest half configured.
    let done = tokio::spawn(async move { configure::run(&agent, body).await });
    Ok(Json(done.await.map_err(interrupted)??))
}

async fn park(
    State(agent): State<Arc<Agent>>,
    Extension(Delivered(delivered)): Extension<Delivered>,
    request: Request,
) -> Result<Response, Failure> {
    let body: Park = read(request).await?;
    park::run(&agent, body).await?;
    tokio::spawn(async move {
        delivered.notified().await;
        agent.hang_up();
    });
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(response)
}

async fn await_system(
    State(agent): State<Arc<Agent>>,
    request: Request,
) -> Result<Json<SystemStatus>, Failure> {
    let body: AwaitSystem = read(request).await?;
    let state = agent.init().await_up(Duration::from_millis(body.limit_ms)).await;
    Ok(Json(SystemStatus { state }))
}

async fn clock(request: Request) -> Result<StatusCode, Failure> {
    let body: SetClock = read(request).await?;
    configure::clock::set(body.time_unix_ns).map_err(|error| {
        Problem::new(ErrorCode::Internal, "the guest's clock could not be set").because(&error)
    })?;
    Ok(StatusCode::NO_CONTENT)
}

async fn exec(
    State(agent): State<Arc<Agent>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let upgrade = upgrade.map_err(|rejection| {
        Problem::new(ErrorCode::InvalidArgument, "Commands run over a WebSocket")
            .cause(rejection.body_text())
    })?;
    if agent.is_stopping() {
        return Err(going_down());
    }
    let Some(settings) = agent.settings() else {
        return Err(Failure(Problem::new(
            ErrorCode::VmWrongState,
            "the guest is not configured yet",
        )));
    };
    Ok(upgrade
        .max_message_size(MAX_REQUEST)
        .max_frame_size(MAX_REQUEST)
        // Small, because there are many; a frame larger than this is read in pieces.
        .read_buffer_size(MAX_PAYLOAD / 4)
        .write_buffer_size(0)
        .on_upgrade(move |socket| async move { exec::serve(socket, &agent, &settings).await }))
}

async fn sync() -> Result<StatusCode, Failure> {
    tokio::task::spawn_blocking(nix::unistd::sync).await.map_err(interrupted)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn shut_down(
    State(agent): State<Arc<Agent>>,
    Extension(Delivered(delivered)): Extension<Delivered>,
    request: Request,
) -> Result<Response, Failure> {
    let body: Shutdown = read(request).await?;
    if !agent.begin_shutdown() {
        return Err(going_down());
    }
    let mut response = match shutdown::spawn(agent, body, delivered).await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(error)) => Failure(
            Problem::new(ErrorCode::Internal, "the guest's disks are synced but still in use")
                .because(&error),
        )
        .into_response(),
        Err(error) => interrupted(error).into_response(),
    };
    // With the connection's end the machine goes down.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(response)
}

async fn no_route(request: Request) -> Failure {
    let title = format!("the guest agent has no {} {}", request.method(), request.uri().path());
    Failure(Problem::new(ErrorCode::NotFound, title))
}

fn going_down() -> Failure {
    Failure(Problem::new(ErrorCode::VmWrongState, "the guest is going down"))
}

fn interrupted(error: impl std::error::Error) -> Failure {
    Failure(Problem::new(ErrorCode::Internal, "the guest agent was interrupted").because(&error))
}

/// Reads a body of bounded size as JSON.
async fn read<T: DeserializeOwned>(request: Request) -> Result<T, Failure> {
    let bytes = to_bytes(request.into_body(), MAX_BODY).await.map_err(|error| {
        Problem::new(ErrorCode::InvalidArgument, "The request's body cannot be read")
            .because(&error)
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure(
            Problem::new(ErrorCode::InvalidArgument, "The request's body makes no sense")
                .because(&error),
        )
    })
}

fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}
