//! The API over a real socket, on a simulated machine.

use std::path::Path;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use banger_api::error::PROBLEM_MEDIA_TYPE;
use banger_api::image::{Image, PullRequest};
use banger_api::operation::{Operation, OperationEvent, OperationResult, OperationState};
use banger_api::system::{DiskUse, ResetPlan, ResetRequest};
use banger_api::version::DaemonVersion;
use banger_api::vm::{EndCause, PruneVms, Pruned, Vm, VmState};
use banger_api::{ErrorCode, Problem};
use banger_host::connect;
use banger_host::http::{self, HttpError, Lines};
use banger_host::leftovers::state::SET_ASIDE;
use banger_host::paths::API_SOCKET;
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Front, refusing_router, router};
use crate::host::simulated::Manner;
use crate::operations::Operations;
use crate::serve::attend;
use crate::testing::{PATIENCE, World, eventually, request};

/// A daemon that serves, and a client of it.
struct Served {
    world: World,
    front: Front,
    server: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn new() -> Self {
        let world = World::new();
        let daemon = world.daemon().await;
        let operations = daemon.operations.clone();
        Self::with(world, operations, |front| router(front, daemon))
    }

    fn with(
        world: World,
        operations: Operations,
        make: impl FnOnce(Front) -> axum::Router,
    ) -> Self {
        let front = Front::new(&world.dirs.data, 1);
        let listener = connect::listen_async(&world.dirs.runtime, API_SOCKET).expect("bind");
        let (socket, app) = (world.dirs.api_socket(), make(front.clone()));
        let shutdown = front.shutdown.clone();
        let server = tokio::spawn(async move {
            attend(listener, &socket, app, &shutdown, &operations).await.expect("serve");
        });
        Self { world, front, server }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Problem> {
        let stream = connect::unix(&self.world.dirs.runtime, API_SOCKET).await.expect("connect");
        match http::json(stream, method, path, body).await {
            Ok(answer) => Ok(answer),
            Err(HttpError::Problem(problem)) => Err(problem),
            Err(other) => panic!("{path}: {other}"),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        self.ask(Method::POST, path, Some(body)).await
    }

    async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.ask(Method::DELETE, path, None::<&()>).await
    }

    async fn events(&self, operation: &Operation, lease: bool) -> Lines {
        let stream = connect::unix(&self.world.dirs.runtime, API_SOCKET).await.expect("connect");
        let path = format!("/v1/operations/{}/events?lease={lease}", operation.id);
        let answer = http::request(stream, Method::GET, &path, None::<&()>).await.expect("events");
        Lines::of(answer)
    }

    /// Follows an operation to its end.
    async fn finish(
        &self,
        operation: Result<Operation, Problem>,
    ) -> Result<OperationResult, Problem> {
        let operation = operation?;
        let mut lines = self.events(&operation, true).await;
        loop {
            let next = tokio::time::timeout(PATIENCE, lines.next_event()).await.expect("in time");
            let json = next.expect("a stream").expect("an end before the stream's");
            match serde_json::from_str(&json).expect("an event") {
                OperationEvent::Succeeded { result } => return Ok(result),
                OperationEvent::Failed { problem } => return Err(problem),
                OperationEvent::Progress(_)
                | OperationEvent::Warning { .. }
                | OperationEvent::Mark(_) => {}
            }
        }
    }

    async fn make(&self, name: &str, start: bool) -> Vm {
        let begun = self.post("/v1/vms", &request(name, start)).await;
        match self.finish(begun).await.expect("make") {
            OperationResult::Vm(vm) => *vm,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_vm_through_its_whole_life() {
    let served = Served::new().await;
    let made = served.make("web", false).await;
    let shown: Vm = served.get(&format!("/v1/vms/{}", &made.id[..6])).await.expect("show");
    assert_eq!(shown, made);

    served.finish(served.post("/v1/vms/web/start", &()).await).await.expect("start");
    let running: Vec<Vm> = served.get("/v1/vms?filter=state=running").await.expect("list");
    assert_eq!(running.len(), 1);
    served.finish(served.post("/v1/vms/web/restart", &()).await).await.expect("restart");
    served.finish(served.post("/v1/vms/web/stop", &()).await).await.expect("stop");
    served.finish(served.post("/v1/vms/web/stop", &()).await).await.expect("already stopped");
    let ended: Vm = served.get("/v1/vms/web/wait").await.expect("wait");
    assert_eq!(ended.status.end.map(|end| end.cause), Some(EndCause::Stopped));

    served.finish(served.delete("/v1/vms/web").await).await.expect("remove");
    let none: Vec<Vm> = served.get("/v1/vms").await.expect("list");
    assert_eq!(none, []);
    assert!(served.world.is_clean());
}

#[tokio::test]
async fn waiting_ends_with_the_vm() {
    let served = Served::new().await;
    let vm = served.make("web", true).await;
    let mut waiting = pin!(served.get::<Vm>("/v1/vms/web/wait"));
    let early = tokio::time::timeout(Duration::from_millis(50), &mut waiting).await;
    assert!(early.is_err(), "it runs, and there is no answer: {early:?}");
    served.world.machine.end(Path::new(&vm.dir), EndCause::MainExited);
    assert_eq!(waiting.await.expect("wait").status.state, VmState::Stopped);
}

#[tokio::test]
async fn nonsense_gets_a_problem() {
    let served = Served::new().await;
    served.make("web", true).await;
    let nothing = serde_json::json!({});
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    let cases = [
        (&get, "/nonsense", ErrorCode::NotFound),
        (&get, "/v1/vms/web/nonsense", ErrorCode::NotFound),
        (&delete, "/v1/version", ErrorCode::NotFound),
        (&post, "/v1/vms", ErrorCode::InvalidArgument),
        (&get, "/v1/vms?filter=colour%3Dred", ErrorCode::InvalidArgument),
        (&get, "/v1/vms/web/logs?tail=many", ErrorCode::InvalidArgument),
        (&get, "/v1/vms/weg", ErrorCode::VmNotFound),
        (&get, "/v1/vms/%FF", ErrorCode::InvalidArgument),
        (&delete, "/v1/vms/web", ErrorCode::VmWrongState),
        (&Method::PATCH, "/v1/vms/web", ErrorCode::InvalidArgument),
        (&Method::PATCH, "/v1/vms/weg", ErrorCode::VmNotFound),
        (&get, "/v1/images/debian-bokworm", ErrorCode::ImageNotFound),
        (&delete, "/v1/kernels/other", ErrorCode::KernelNotFound),
        (&delete, "/v1/images/debian-bookworm", ErrorCode::ImageInUse),
        (&delete, "/v1/kernels/debian-cloud", ErrorCode::KernelInUse),
        (&get, "/v1/operations/000000000000", ErrorCode::OperationNotFound),
        (&get, "/v1/operations/x/events", ErrorCode::OperationNotFound),
    ];
    for (method, path, code) in cases {
        let answer: Result<serde_json::Value, _> =
            served.ask(method.clone(), path, Some(&nothing)).await;
        assert_eq!(answer.expect_err(path).code, code, "{method} {path}");
    }
    let near: Result<Vm, _> = served.get("/v1/vms/weg").await;
    assert!(near.expect_err("unknown").hint.expect("hint").contains("web"));
}

#[tokio::test]
async fn a_problem_has_its_media_type_and_status() {
    let served = Served::new().await;
    let stream = connect::unix(&served.world.dirs.runtime, API_SOCKET).await.expect("connect");
    let request =
        hyper::Request::get("/v1/vms/web").body(axum::body::Body::default()).expect("request");
    let answer = http::send(stream, request).await.expect("answer");
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.headers()["content-type"], PROBLEM_MEDIA_TYPE);
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_what_it_leased() {
    let served = Served::new().await;
    served.world.machine.set_manner(Manner::Hangs);
    let operation: Operation = served.post("/v1/vms", &request("web", true)).await.expect("begin");
    let mut events = served.events(&operation, true).await;
    events.next_event().await.expect("stream").expect("the first event");
    eventually("the boot", || served.world.machine.alive() == 1).await;
    drop(events);
    eventually("the end of it all", || served.world.is_clean()).await;
    let path = format!("/v1/operations/{}", operation.id);
    // The operation ends after the last of its traces.
    let ended = async {
        loop {
            let now: Operation = served.get(&path).await.expect("known");
            match now.state {
                OperationState::Running => tokio::task::yield_now().await,
                state => break state,
            }
        }
    };
    let state = tokio::time::timeout(PATIENCE, ended).await.expect("it ends");
    let OperationState::Failed { problem } = state else { panic!("{state:?}") };
    assert_eq!(problem.code, ErrorCode::Cancelled);
}

#[tokio::test]
async fn a_daemon_that_ends_tells_its_clients_first() {
    let served = Served::new().await;
    served.make("kept", true).await;
    served.world.machine.set_manner(Manner::Hangs);
    let operation: Operation = served.post("/v1/vms", &request("web", true)).await.expect("begin");
    eventually("the boot", || served.world.machine.alive() == 2).await;
    let stop = async {
        let _: Option<()> = served.post("/v1/daemon/stop", &()).await.expect("stop");
    };
    let (ended, ()) = tokio::join!(served.finish(Ok(operation)), stop);
    assert_eq!(ended.expect_err("cancelled").code, ErrorCode::Cancelled);
    tokio::time::timeout(PATIENCE, served.server).await.expect("it ends").expect("well");
    assert_eq!(served.world.machine.alive(), 1, "VMs live on");
}

#[tokio::test]
async fn two_pulls_at_once_do_the_work_once() {
    let served = Served::new().await;
    served.world.machine.slow_pulls.store(true, Ordering::SeqCst);
    let pull =
        PullRequest { name: "debian-bookworm".into(), refresh: true, ..PullRequest::default() };
    let first: Operation = served.post("/v1/images/pull", &pull).await.expect("begin");
    let second: Operation = served.post("/v1/images/pull", &pull).await.expect("begin");
    let third: Operation = served.post("/v1/images/pull", &pull).await.expect("begin");
    let path = format!("/v1/operations/{}", third.id);
    let _: Operation = served.delete(&path).await.expect("cancel");
    let cancelled = served.finish(Ok(third)).await.expect_err("cancelled");
    assert_eq!(cancelled.code, ErrorCode::Cancelled);
    let go = async { served.world.machine.slow_pulls.store(false, Ordering::SeqCst) };
    let (first, second, ()) = tokio::join!(served.finish(Ok(first)), served.finish(Ok(second)), go);
    assert_eq!(first.expect("pulled"), second.expect("pulled"));
    assert_eq!(served.world.machine.pulls.load(Ordering::SeqCst), 1);
    let listed: Vec<Operation> = served.get("/v1/operations").await.expect("list");
    assert_eq!(listed.len(), 3, "the shared work itself is not listed");
}

#[tokio::test]
async fn unused_images_go_and_unknown_ones_are_not_pulled() {
    let served = Served::new().await;
    let images: Vec<Image> = served.get("/v1/images").await.expect("list");
    let _: Option<()> =
        served.delete(&format!("/v1/images/{}", images[0].digest)).await.expect("rm");
    let images: Vec<Image> = served.get("/v1/images").await.expect("list");
    assert_eq!(images, []);
    let pull = PullRequest { name: "nonsense".into(), refresh: false, ..PullRequest::default() };
    let refused: Result<Operation, _> = served.post("/v1/images/pull", &pull).await;
    assert_eq!(refused.expect_err("unknown").code, ErrorCode::ImageNotFound);
}

#[tokio::test]
async fn what_is_used_and_what_can_go() {
    let served = Served::new().await;
    served.world.machine.add_name("another-name");
    let ended = served.make("ended", true).await;
    served.make("running", true).await;
    served.make("created", false).await;
    served.world.machine.end(Path::new(&ended.dir), EndCause::GuestPowerOff);
    let _: Vm = served.get("/v1/vms/ended/wait").await.expect("wait");

    let used: DiskUse = served.get("/v1/system/df").await.expect("df");
    let rows: Vec<_> = used.rows.iter().map(|r| (r.kind.as_str(), r.count, r.in_use)).collect();
    assert_eq!(
        rows,
        [
            ("vms", 3, 1),
            ("images", 1, 1),
            ("kernels", 1, 1),
            ("layers", 2, 1),
            ("templates", 0, 0),
            ("cache", 0, 0)
        ]
    );

    let would: Pruned =
        served.post("/v1/vms/prune", &PruneVms { dry_run: true }).await.expect("dry run");
    assert_eq!(would.vms, ["ended"]);
    let went: Pruned = served.post("/v1/vms/prune", &()).await.expect("prune");
    assert_eq!(went, would);

    let aside = served.world.dirs.data.join(SET_ASIDE).join("web-disk");
    std::fs::create_dir_all(&aside).expect("what doctor --fix rescued");
    let plan: ResetPlan =
        served.post("/v1/system/reset", &ResetRequest { dry_run: true }).await.expect("plan");
    assert_eq!(plan.set_aside, ["web-disk"]);
    assert_eq!(plan.vms, ["created", "running"]);
    assert_eq!((plan.images.len(), plan.kernels.len()), (2, 1), "names");

    std::fs::create_dir_all(served.world.dirs.vms().join("cccccccccccc")).expect("a stranger");
    let reset = served.post("/v1/system/reset", &ResetRequest { dry_run: false }).await;
    served.finish(reset).await.expect("reset");
    assert!(served.world.is_clean());
    assert!(!aside.exists(), "it was listed");
    let images: Vec<Image> = served.get("/v1/images").await.expect("list");
    assert_eq!(images, []);
}

#[tokio::test]
async fn logs_of_an_ended_vm_are_read() {
    let served = Served::new().await;
    let vm = served.make("web", false).await;
    std::fs::write(Path::new(&vm.dir).join("console.log"), "one\n\x1b[1mtwo\n").expect("write");
    let stream = connect::unix(&served.world.dirs.runtime, API_SOCKET).await.expect("connect");
    let path = "/v1/vms/web/logs?source=console&tail=1";
    let answer = http::request(stream, Method::GET, path, None::<&()>).await.expect("logs");
    assert_eq!(http::read(answer, 1024).await.expect("text"), "two\n");
}

#[tokio::test]
async fn a_daemon_without_a_database_says_so_and_ends() {
    let problem = Problem::new(ErrorCode::DatabaseCorrupt, "damaged").hint("mend it");
    let answer = problem.clone();
    let served =
        Served::with(World::new(), Operations::default(), |front| refusing_router(&front, answer));
    let version: DaemonVersion = served.get("/v1/version").await.expect("version");
    assert_eq!(version.pid, std::process::id());
    assert!(!served.front.shutdown.is_cancelled(), "being asked who it is is no reason to end");
    assert_eq!(served.get::<Vec<Vm>>("/v1/vms").await, Err(problem));
    // The next command starts another, which tries again.
    assert!(served.front.shutdown.is_cancelled());
    tokio::time::timeout(PATIENCE, served.server).await.expect("it ends").expect("well");
    assert!(!served.world.dirs.api_socket().exists());
}

/// Who has connected cannot tell a daemon that ends from one that does what was asked and ends then.
#[tokio::test]
async fn who_came_before_the_end_is_answered() {
    let served = Served::new().await;
    let come = |_| connect::unix(&served.world.dirs.runtime, API_SOCKET);
    let came = futures_util::future::join_all((0..20).map(come)).await;
    served.front.shutdown.cancel();
    let ask = |stream: std::io::Result<_>| {
        let stream = stream.expect("it serves");
        http::json::<Vec<Vm>, _, _>(stream, Method::GET, "/v1/vms", None::<&()>)
    };
    for vms in futures_util::future::join_all(came.into_iter().map(ask)).await {
        assert_eq!(vms.expect("an answer"), []);
    }
    tokio::time::timeout(PATIENCE, served.server).await.expect("it ends").expect("well");
    assert!(!served.world.dirs.api_socket().exists());
}

#[tokio::test]
async fn a_thousand_vms_are_listed_at_once() {
    let world = World::new();
    world.add_rows(1000);
    let daemon = world.daemon().await;
    let served = Served::with(world, Operations::default(), |front| router(front, daemon));
    let _: Vec<Vm> = served.get("/v1/vms").await.expect("warm up");
    let begin = Instant::now();
    let vms: Vec<Vm> = served.get("/v1/vms").await.expect("list");
    let took = begin.elapsed();
    assert_eq!(vms.len(), 1000);
    // A debug build on a busy machine; `bench` has the figure that counts.
    assert!(took < Duration::from_millis(1500), "{took:?}");
}
