//! Daemons that are absent, slow, broken, or started by somebody else at the same time.
//!
//! The daemon is a shell script that leaves a mark; what serves the socket is in this process.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::client::Client;

struct Place {
    _tmp: tempfile::TempDir,
    dirs: StateDirs,
    binary: PathBuf,
}

/// State directories, and a `bangerd` that does this.
fn place(script: &str) -> Place {
    let tmp = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| tmp.path().join(name);
    let dirs = StateDirs { data: path("data"), runtime: path("run"), config: path("config") };
    std::fs::create_dir_all(&dirs.data).expect("writable");
    std::fs::create_dir_all(&dirs.runtime).expect("writable");
    let binary = path("bangerd");
    std::fs::write(&binary, format!("#!/bin/sh\n{script}\n")).expect("writable");
    std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o755)).expect("ours");
    Place { dirs, binary, _tmp: tmp }
}

impl Place {
    async fn connect(&self) -> Result<UnixStream, Failure> {
        let binary = self.binary.clone();
        connect_or_start(&self.dirs, &move || Ok(binary.clone())).await
    }

    fn starts(&self) -> usize {
        std::fs::read_to_string(self.dirs.data.join("starts"))
            .map_or(0, |text| text.lines().count())
    }
}

/// Leaves a line in `starts`, then lives for as long as the test's directory.
const MARK_AND_LIVE: &str = "echo x >> $BANGER_DATA_DIR/starts
while [ -d $BANGER_DATA_DIR ]; do sleep 0.05; done";

/// Serves the socket once the mark is there, as the daemon would.
fn serve_after_mark(dirs: &StateDirs) -> tokio::task::JoinHandle<()> {
    let (mark, runtime) = (dirs.data.join("starts"), dirs.runtime.clone());
    tokio::spawn(async move {
        // The shell makes the file first and fills it then.
        while std::fs::metadata(&mark).map_or(0, |mark| mark.len()) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let listener = banger_host::connect::listen_async(&runtime, "api.sock").expect("bind");
        loop {
            let _ = listener.accept().await;
        }
    })
}

fn problem(failure: Failure) -> Problem {
    match failure {
        Failure::Problem(problem) => *problem,
        Failure::Quiet(code) => panic!("quiet with {code}"),
    }
}

#[tokio::test]
async fn a_daemon_that_serves_is_not_started() {
    let place = place(MARK_AND_LIVE);
    let _listener =
        banger_host::connect::listen_async(&place.dirs.runtime, "api.sock").expect("bind");
    place.connect().await.expect("it serves");
    assert_eq!(place.starts(), 0);
}

#[tokio::test]
async fn an_absent_daemon_is_started_and_waited_for() {
    let place = place(MARK_AND_LIVE);
    let serving = serve_after_mark(&place.dirs);
    place.connect().await.expect("it serves in the end");
    assert_eq!(place.starts(), 1);
    serving.abort();
}

#[tokio::test]
async fn a_stale_socket_is_no_daemon() {
    let place = place(MARK_AND_LIVE);
    drop(std::os::unix::net::UnixListener::bind(place.dirs.api_socket()).expect("bind"));
    assert!(place.dirs.api_socket().exists());
    let serving = serve_after_mark(&place.dirs);
    place.connect().await.expect("it serves in the end");
    assert_eq!(place.starts(), 1);
    serving.abort();
}

#[tokio::test]
async fn many_at_once_start_one() {
    let place = place(MARK_AND_LIVE);
    let serving = serve_after_mark(&place.dirs);
    let all = (0..8).map(|_| place.connect());
    for result in futures_util::future::join_all(all).await {
        result.expect("it serves in the end");
    }
    assert_eq!(place.starts(), 1);
    serving.abort();
}

#[tokio::test]
async fn a_daemon_that_dies_leaves_its_last_words() {
    let place = place("echo 'error: the database is damaged' >&2; exit 3");
    std::fs::write(place.dirs.daemon_log(), "an older line\n").expect("writable");
    let problem = problem(place.connect().await.expect_err("it does not start"));
    assert_eq!(problem.code, ErrorCode::DaemonUnavailable);
    let causes = ["bangerd ended with exit status: 3", "error: the database is damaged"];
    assert_eq!(problem.causes, causes);
    assert!(problem.hint.is_some());
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_an_error() {
    let mut place = place("");
    place.binary = Path::new("/no/such/bangerd").to_owned();
    let problem = problem(place.connect().await.expect_err("it does not start"));
    assert_eq!(problem.title, "the daemon cannot be started");
}

#[tokio::test]
async fn a_daemon_on_its_way_is_waited_for_and_not_doubled() {
    let place = place(MARK_AND_LIVE);
    let _alive = OfdLock::try_acquire(&place.dirs.daemon_lock()).expect("a lock").expect("free");
    let (runtime, turn) = (place.dirs.runtime.clone(), place.dirs.daemon_start_lock());
    let serving = tokio::spawn(async move {
        // Whoever waits for the daemon holds this one.
        while OfdLock::try_acquire(&turn).expect("a lock").is_some() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let listener = banger_host::connect::listen_async(&runtime, "api.sock").expect("bind");
        loop {
            let _ = listener.accept().await;
        }
    });
    place.connect().await.expect("it serves in the end");
    assert_eq!(place.starts(), 0, "another one holds the lock");
    serving.abort();
}

/// Leaves this many connections without an answer, as a daemon does that is being killed, and answers
/// the next one with this.
async fn answer_after(listener: tokio::net::UnixListener, unanswered: usize, body: &str) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for _ in 0..unanswered {
        drop(listener.accept().await);
    }
    let (mut stream, _) = listener.accept().await.expect("one more");
    stream.read_u8().await.expect("a question");
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.expect("it listens");
}

#[tokio::test]
async fn a_daemon_that_dies_under_the_first_question_is_asked_again() {
    let place = place(MARK_AND_LIVE);
    let listener =
        banger_host::connect::listen_async(&place.dirs.runtime, "api.sock").expect("bind");
    let body =
        r#"{"version":"9","protocol":{"min":1,"max":1},"pid":1,"started_at_ms":0,"data_dir":""}"#;
    let serving = tokio::spawn(answer_after(listener, 2, body));
    let binary = place.binary.clone();
    let locate = move || Ok(binary.clone());
    let version = crate::client::greet(&place.dirs, &locate).await.expect("the third answer");
    assert_eq!(version.version, "9");
    serving.await.expect("no panic");
}

/// The daemon that answered the greeting may be the one that ends.
#[tokio::test]
async fn only_a_question_that_changes_nothing_is_asked_again() {
    let place = place(MARK_AND_LIVE);
    let client = Client::of(place.dirs.clone());
    let listen = || banger_host::connect::listen_async(&place.dirs.runtime, "api.sock");
    let serving = tokio::spawn(answer_after(listen().expect("bind"), 2, r#"["web"]"#));
    let names: Vec<String> = client.get("/v1/vms").await.expect("the third answer");
    assert_eq!(names, ["web"]);
    serving.await.expect("no panic");

    let serving = tokio::spawn(answer_after(listen().expect("bind"), 1, "[]"));
    let made = client.post::<Vec<String>>("/v1/vms", &()).await;
    let problem = problem(made.expect_err("it may have been done"));
    assert_eq!(problem.title, "the daemon did not answer");
    assert!(!serving.is_finished(), "it was asked once");
    serving.abort();
}

/// Nothing was asked of it yet: a connection that cannot be made has no effects.
#[tokio::test]
async fn a_daemon_that_is_gone_after_the_greeting_is_started_again() {
    static BINARY: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let place = place(MARK_AND_LIVE);
    BINARY.set(place.binary.clone()).expect("only this test");
    let locate = || Ok(BINARY.get().expect("set").clone());
    let client = Client { locate: Some(locate), ..Client::of(place.dirs.clone()) };
    let serving = serve_after_mark(&place.dirs);
    client.connect().await.expect("it serves in the end");
    assert_eq!(place.starts(), 1);
    serving.abort();
}

/// "the next command tries again": it may meet the daemon that just ends.
#[tokio::test]
async fn a_daemon_that_ends_by_itself_meanwhile_is_stopped() {
    let place = place(MARK_AND_LIVE);
    let lock = OfdLock::try_acquire(&place.dirs.daemon_lock()).expect("a lock").expect("free");
    let listener =
        banger_host::connect::listen_async(&place.dirs.runtime, "api.sock").expect("bind");
    let ending = tokio::spawn(async move {
        drop(listener.accept().await);
        drop((listener, lock));
    });
    assert_eq!(stop_daemon(&place.dirs).await.expect("it ended"), Stopped::Now);
    ending.await.expect("no panic");
}

#[tokio::test]
async fn stopping_what_does_not_run_is_fine() {
    let place = place(MARK_AND_LIVE);
    assert_eq!(stop_daemon(&place.dirs).await.expect("fine"), Stopped::Already);
}

#[tokio::test]
async fn a_daemon_without_a_socket_cannot_be_asked_to_stop() {
    let place = place(MARK_AND_LIVE);
    let _alive = OfdLock::try_acquire(&place.dirs.daemon_lock()).expect("a lock").expect("free");
    let problem = problem(stop_daemon(&place.dirs).await.expect_err("it cannot be asked"));
    let kill = format!("kill {}", std::process::id());
    assert!(problem.hint.is_some_and(|hint| hint.starts_with(&kill)), "by its number alone");
}

/// "two daemons over one data dir (refused at once with the cause)"
#[tokio::test]
async fn a_daemon_with_another_runtime_directory_is_told_at_once() {
    let ours = place(MARK_AND_LIVE);
    let theirs = place(MARK_AND_LIVE);
    let alive = OfdLock::try_acquire(&ours.dirs.daemon_lock()).expect("a lock").expect("free");
    alive.leave_note(theirs.dirs.runtime.as_os_str().as_encoded_bytes()).expect("writable");
    let _socket = banger_host::connect::listen(&theirs.dirs.runtime, "api.sock").expect("bind");
    let begin = Instant::now();
    let binary = ours.binary.clone();
    let refused = connect_or_start(&ours.dirs, &move || Ok(binary.clone())).await;
    let told = problem(refused.expect_err("it is elsewhere"));
    assert!(begin.elapsed() < START_LIMIT / 2, "at once: {:?}", begin.elapsed());
    let runtime = theirs.dirs.runtime.display().to_string();
    assert!(told.causes[0].contains(&runtime), "{told}");
    assert!(told.hint.is_some_and(|hint| hint.contains(&runtime)), "with what to type");
    let stop = problem(stop_daemon(&ours.dirs).await.expect_err("it is elsewhere"));
    assert!(stop.title.starts_with("another daemon serves"), "{stop}");
}

#[tokio::test]
async fn what_the_doctor_sees() {
    use banger_core::doctor::DaemonFacts;
    let place = place(MARK_AND_LIVE);
    let observed = crate::client::observe_daemon(&place.dirs).await;
    assert_eq!(observed, DaemonFacts::Down);
    let _alive = OfdLock::try_acquire(&place.dirs.daemon_lock()).expect("a lock").expect("free");
    let observed = crate::client::observe_daemon(&place.dirs).await;
    assert_eq!(observed, DaemonFacts::Silent);
}
