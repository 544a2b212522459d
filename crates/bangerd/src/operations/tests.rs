use std::sync::atomic::{AtomicUsize, Ordering};

use banger_api::operation::{OperationEvent, OperationState, Progress};
use tokio::sync::oneshot;

use super::*;

fn counted(stage: &str, done: u64) -> Progress {
    Progress { done: Some(done), ..Progress::stage(stage, stage) }
}

async fn collect(mut subscription: Subscription) -> Vec<OperationEvent> {
    let mut events = Vec::new();
    while let Some(event) = subscription.next().await {
        events.push(event);
    }
    events
}

async fn wait_for_cancel(handle: Handle) -> Result<OperationResult, Problem> {
    handle.cancel_token().cancelled().await;
    Err(cancelled())
}

#[tokio::test]
async fn a_late_listener_sees_every_stage_once_and_the_end() {
    let operations = Operations::default();
    let operation = operations.start("test", |handle| async move {
        for done in 0..1000 {
            handle.progress(counted("a", done));
        }
        handle.progress(Progress::stage("b", "b"));
        handle.warn("careful");
        Ok(OperationResult::Nothing)
    });
    tokio::task::yield_now().await;
    let events = collect(operations.subscribe(&operation.id, false).expect("known")).await;
    assert_eq!(
        events,
        [
            OperationEvent::Progress(counted("a", 999)),
            OperationEvent::Progress(Progress::stage("b", "b")),
            OperationEvent::Warning { message: "careful".into() },
            OperationEvent::Succeeded { result: OperationResult::Nothing },
        ]
    );
    let ended = operations.get(&operation.id).expect("known").state;
    assert_eq!(ended, OperationState::Succeeded { result: OperationResult::Nothing });
}

fn layer(item: &str, done: u64) -> Progress {
    Progress { item: Some(item.to_owned()), ..counted("layers", done) }
}

#[tokio::test]
async fn a_late_listener_sees_the_last_word_about_every_thing_of_a_stage() {
    let operations = Operations::default();
    let operation = operations.start("test", |handle| async move {
        for done in 0..=1000 {
            // Things that come at the same time take turns, and the stage counts all of them.
            handle.progress(layer("first", done));
            handle.progress(counted("layers", 3 * done));
            handle.progress(layer("second", 2 * done));
        }
        handle.progress(Progress::stage("disk", "disk"));
        handle.progress(counted("layers", 3000));
        Ok(OperationResult::Nothing)
    });
    tokio::task::yield_now().await;
    let events = collect(operations.subscribe(&operation.id, false).expect("known")).await;
    let want = [
        layer("first", 1000),
        counted("layers", 3000),
        layer("second", 2000),
        Progress::stage("disk", "disk"),
        counted("layers", 3000),
    ];
    let want = want.into_iter().map(OperationEvent::Progress);
    let end = OperationEvent::Succeeded { result: OperationResult::Nothing };
    assert_eq!(events, want.chain([end]).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_last_lease_cancels_and_a_mere_listener_does_not() {
    let operations = Operations::default();
    let operation = operations.start("test", wait_for_cancel);
    let subscribe = |lease| operations.subscribe(&operation.id, lease).expect("known");
    let (first, second, listener) = (subscribe(true), subscribe(true), subscribe(false));
    drop(first);
    tokio::task::yield_now().await;
    assert_eq!(operations.get(&operation.id).expect("known").state, OperationState::Running);
    drop(second);
    let events = collect(listener).await;
    assert_eq!(events, [OperationEvent::Failed { problem: cancelled() }]);
}

#[tokio::test]
async fn work_that_panics_is_not_waited_for_for_ever() {
    let operations = Operations::default();
    let operation = operations.start("test", |_| async { panic!("expected by the test") });
    let events = collect(operations.subscribe(&operation.id, false).expect("known")).await;
    let [OperationEvent::Failed { problem }] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(problem.code, ErrorCode::Internal);
}

#[tokio::test]
async fn ended_operations_are_forgotten_in_the_end() {
    let operations = Operations::default();
    for _ in 0..REMEMBERED_COUNT + 10 {
        operations.start("test", |_| async { Ok(OperationResult::Nothing) });
    }
    while operations.with_entries(|entries| entries.values().any(|entry| entry.is_running())) {
        tokio::task::yield_now().await;
    }
    let running = operations.start("test", wait_for_cancel);
    assert_eq!(operations.list().len(), REMEMBERED_COUNT + 1);
    operations.with_entries(|entries| {
        let later = clock::now_ms() + 2 * u64::try_from(REMEMBERED.as_millis()).expect("small");
        forget_old(entries, later);
    });
    assert_eq!(operations.list(), [running], "what runs is never forgotten");
    let missing = operations.get("000000000000").expect_err("unknown");
    assert_eq!(missing.code, ErrorCode::OperationNotFound);
}

fn key() -> SharedKey {
    SharedKey { description: "pull image debian".into(), request: "debian".into() }
}

/// An operation that joins the shared work, which counts its runs and waits to be let go.
fn join(
    operations: &Operations,
    shared: &Arc<Shared>,
    runs: &Arc<AtomicUsize>,
    go: oneshot::Receiver<()>,
) -> Operation {
    let (all, shared, runs) = (operations.clone(), Arc::clone(shared), Arc::clone(runs));
    operations.start("waiter", |waiter| async move {
        let work = |handle: Handle| async move {
            runs.fetch_add(1, Ordering::SeqCst);
            handle.progress(Progress::stage("pull", "pull"));
            tokio::select! {
                _ = go => Ok(OperationResult::Nothing),
                () = handle.cancel_token().cancelled() => Err(cancelled()),
            }
        };
        shared.join(&all, key(), &waiter, work).await
    })
}

#[tokio::test]
async fn two_who_want_the_same_get_it_from_one_work() {
    let (operations, shared, runs) = (Operations::default(), Arc::default(), Arc::default());
    let (go, going) = oneshot::channel();
    let (_never, unused) = oneshot::channel();
    let first = join(&operations, &shared, &runs, going);
    tokio::task::yield_now().await;
    let second = join(&operations, &shared, &runs, unused);
    tokio::task::yield_now().await;

    operations.cancel(&first.id).expect("known");
    let events = collect(operations.subscribe(&first.id, false).expect("known")).await;
    assert_eq!(events.last(), Some(&OperationEvent::Failed { problem: cancelled() }));

    go.send(()).expect("the work goes on for the second waiter");
    let events = collect(operations.subscribe(&second.id, false).expect("known")).await;
    assert_eq!(
        events,
        [
            OperationEvent::Progress(Progress::stage("pull", "pull")),
            OperationEvent::Succeeded { result: OperationResult::Nothing },
        ]
    );
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_last_waiter_cancels_the_work_and_the_next_one_begins_anew() {
    let (operations, shared, runs) = (Operations::default(), Arc::default(), Arc::default());
    let (_never, unused) = oneshot::channel();
    let first = join(&operations, &shared, &runs, unused);
    tokio::task::yield_now().await;
    operations.cancel(&first.id).expect("known");
    let (go, going) = oneshot::channel();
    let second = join(&operations, &shared, &runs, going);
    collect(operations.subscribe(&first.id, false).expect("known")).await;
    go.send(()).expect("still wanted");
    let events = collect(operations.subscribe(&second.id, false).expect("known")).await;
    assert_eq!(
        events.last(),
        Some(&OperationEvent::Succeeded { result: OperationResult::Nothing })
    );
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}
