//! The shim's socket: what the daemon and the CLI can ask of a running VM.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use banger_api::error::{ErrorCode, PROBLEM_MEDIA_TYPE, Problem};
use banger_api::exec::MAX_REQUEST;
use banger_api::shim::{
    CONSOLE_FILE, Capture, ExecQuery, MAIN_LOG_FILE, RUN_DIR, SHIM_SOCKET, ShimHello,
};
use banger_api::version::SHIM_PROTOCOL;
use banger_api::vm::{LogQuery, LogSource, StopVm, VmState, VmStatus};
use banger_host::connect;
use banger_host::logs::{LogReader, Printer};
use futures_util::stream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::capture::CaptureWish;
use crate::exec::{self, StreamEnd};
use crate::order::Order;
use crate::standstill::Turn;
use crate::supervise::Vm;

/// How often a followed log is looked at when nothing says that it has grown.
const LOG_INTERVAL: Duration = Duration::from_millis(250);

/// How long clients may take to read what was said before the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// A socket that is being served.
#[derive(Debug)]
pub(crate) struct Server {
    close: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Server {
    /// Takes no more requests, and lets the streams of status and logs come to their ends.
    pub(crate) async fn close(self) {
        // Either it hears this, or it has closed already.
        let _ = self.close.send(());
        let _ = tokio::time::timeout(FAREWELL, self.serving).await;
    }
}

/// Serves `run/shim.sock`.
pub(crate) fn start(vm: Arc<Vm>) -> io::Result<Server> {
    let listener = connect::listen_async(&vm.dir.join(RUN_DIR), SHIM_SOCKET)?;
    let routes = Router::new()
        .route("/v1/hello", get(hello))
        .route("/v1/watch", get(watch_status))
        .route("/v1/exec", get(run_command))
        .route("/v1/logs", get(logs))
        .route("/v1/stop", post(stop))
        .route("/v1/kill", post(kill))
        .route("/v1/pause", post(async |State(vm)| turn(vm, Turn::Pause).await))
        .route("/v1/capture", post(capture))
        .route("/v1/resume", post(async |State(vm)| turn(vm, Turn::Resume).await))
        .fallback(async || refusal(&Problem::new(ErrorCode::NotFound, "no such route of a shim")))
        .with_state(vm);
    let (close, closed) = oneshot::channel();
    let serving = tokio::spawn(async move {
        let serving = axum::serve(listener, routes).with_graceful_shutdown(async {
            let _ = closed.await;
        });
        if let Err(error) = serving.await {
            tracing::error!(%error, "cannot serve");
        }
    });
    Ok(Server { close, serving })
}

async fn hello(State(vm): State<Arc<Vm>>) -> Json<ShimHello> {
    Json(ShimHello {
        protocol: SHIM_PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        vm_id: vm.spec.vm_id.clone(),
    })
}

async fn watch_status(State(vm): State<Arc<Vm>>) -> Response {
    let lines = stream::unfold((vm.board.watch(), true), async |(mut status, first)| {
        if !first {
            let over = status.borrow().end.is_some();
            if over {
                return None;
            }
            status.changed().await.ok()?;
        }
        let line = status_line(&mut status);
        Some((Ok::<_, Infallible>(line), (status, false)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn status_line(status: &mut watch::Receiver<VmStatus>) -> Bytes {
    let mut line = serde_json::to_vec(&*status.borrow_and_update()).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

async fn run_command(
    State(vm): State<Arc<Vm>>,
    Query(query): Query<ExecQuery>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let Some(guest) = vm.guest.borrow().clone() else {
        let state = vm.board.now().state;
        let title = format!("VM {} takes no commands: it is {state}", vm.spec.name);
        return refusal(&Problem::new(ErrorCode::VmWrongState, title));
    };
    let owner = query.owner && vm.ownership.owned();
    // The command that a VM is for waits until it goes on. Any other would only seem to hang.
    if vm.board.stands_still() && !owner {
        let title = format!("VM {} is paused", vm.spec.name);
        let hint = format!("banger resume {}", vm.spec.name);
        return refusal(&Problem::new(ErrorCode::VmWrongState, title).hint(hint));
    }
    upgrade
        .max_message_size(MAX_REQUEST)
        .max_frame_size(MAX_REQUEST)
        .write_buffer_size(0)
        .on_upgrade(async move |client| {
            // Only now: an owner that died while it connected has not come.
            if owner {
                vm.ownership.arrive();
            }
            let end = exec::relay(client, &guest, owner.then_some(&vm.main_pid)).await;
            if owner {
                vm.main_pid.ended();
                owner_gone(&vm, end).await;
            }
        })
}

async fn owner_gone(vm: &Vm, end: StreamEnd) {
    let end = match end {
        StreamEnd::Command(end) => Some(end),
        StreamEnd::ClientGone => None,
        StreamEnd::GuestLost => {
            // A guest that comes back has lost the command that this VM was for.
            let _ = vm.next_guest().await;
            None
        }
    };
    // A VM that does not take orders any more is ending.
    let _ = vm.orders.send(Order::OwnerGone(end)).await;
}

async fn logs(State(vm): State<Arc<Vm>>, Query(query): Query<LogQuery>) -> Response {
    let (file, printer) = match query.source {
        LogSource::Main => (MAIN_LOG_FILE, None),
        LogSource::Console => (CONSOLE_FILE, Some(Printer::default())),
    };
    let reader = match LogReader::open(&vm.dir.join(file), query.tail) {
        Ok(reader) => reader,
        Err(error) => {
            let problem = Problem::new(ErrorCode::Internal, "the log cannot be read");
            return refusal(&problem.because(&error));
        }
    };
    let status = vm.board.watch();
    let following = Following { vm, reader, printer, status, follow: query.follow };
    let pieces = stream::unfold(following, Following::next);
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(pieces))
        .into_response()
}

/// A log on its way to a client.
struct Following {
    vm: Arc<Vm>,
    reader: LogReader,
    /// Set where control characters must go.
    printer: Option<Printer>,
    status: watch::Receiver<VmStatus>,
    follow: bool,
}

impl Following {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            // Looked at before the reading: what is written before the end is then read after it.
            let over = !self.follow || self.status.borrow().end.is_some();
            match self.reader.read(&mut buffer) {
                Ok(0) if over => return None,
                Ok(0) => self.wait().await,
                Ok(count) => {
                    let piece = match &mut self.printer {
                        Some(printer) => printer.next(&buffer[..count]).into(),
                        None => Bytes::copy_from_slice(&buffer[..count]),
                    };
                    return Some((Ok(piece), self));
                }
                Err(error) => return Some((Err(error), self)),
            }
        }
    }

    async fn wait(&mut self) {
        tokio::select! {
            () = self.vm.logged.notified() => {}
            _ = self.status.changed() => {}
            () = tokio::time::sleep(LOG_INTERVAL) => {}
        }
    }
}

async fn stop(State(vm): State<Arc<Vm>>, Json(stop): Json<StopVm>) -> StatusCode {
    order(&vm, Order::Stop(Duration::from_millis(stop.grace_ms))).await
}

async fn kill(State(vm): State<Arc<Vm>>) -> StatusCode {
    order(&vm, Order::Kill).await
}

async fn turn(vm: Arc<Vm>, turn: Turn) -> Response {
    match vm.switch.wish(&vm, turn).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(problem) => refusal(&problem),
    }
}

async fn order(vm: &Vm, order: Order) -> StatusCode {
    // A VM that does not take orders any more is ending, which is what was asked for.
    let _ = vm.orders.send(order).await;
    StatusCode::ACCEPTED
}

async fn capture(State(vm): State<Arc<Vm>>, Json(wanted): Json<Capture>) -> Response {
    let state = || vm.board.now().state;
    let refused = || {
        let title = format!("VM {} cannot be saved: it is {}", vm.spec.name, state());
        refusal(&Problem::new(ErrorCode::VmWrongState, title))
    };
    if !matches!(state(), VmState::Running | VmState::Paused) {
        return refused();
    }
    let (reply, answer) = oneshot::channel();
    let wish = CaptureWish { dir: wanted.dir.into(), reply };
    vm.captures.send(wish).await;
    match answer.await {
        Ok(Ok(captured)) => Json(captured).into_response(),
        Ok(Err(problem)) => refusal(&problem),
        // The VM ended under it.
        Err(_) => refused(),
    }
}

fn refusal(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.code.http_status())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(problem).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, PROBLEM_MEDIA_TYPE)], body).into_response()
}
