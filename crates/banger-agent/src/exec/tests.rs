//! Commands of this machine, run through a whole session: greeting, streams, HTTP, WebSocket.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_api::ErrorCode;
use banger_api::exec::{
    ClientControl, ClientFrame, ExecEnd, ExecRequest, MAX_PAYLOAD, STDIN_WINDOW, ServerControl,
    WindowSize,
};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::agent::{Agent, Settings};
use crate::exec::cgroup::Cgroups;
use crate::init::Init;
use crate::reaper::Scope;
use crate::session;
use crate::testing::{Exec, Frame, Host};

const TEN_MEGABYTES: usize = 10_000_000;

fn unconfigured() -> Arc<Agent> {
    let (_, root) = watch::channel(Some(Ok(Vec::new())));
    let agent = Agent::new(root, Init::agent(), Cgroups::by_descent());
    agent.reaper().start(Scope::Registered, agent.cgroups());
    agent
}

async fn connect(agent: &Arc<Agent>) -> Host {
    let (mut guest, host) = tokio::net::UnixStream::pair().expect("a pair");
    let agent = Arc::clone(agent);
    tokio::spawn(async move { session::serve(&mut guest, &agent).await });
    Host::connect(host).await
}

/// A host connected to a configured agent.
async fn host() -> Host {
    let agent = unconfigured();
    let env = [("OF_VM", "vm"), ("BOTH", "vm")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    agent.set_settings(Some(Settings { env: env.into(), ..Settings::default() }));
    connect(&agent).await
}

fn command(argv: &[&str]) -> ExecRequest {
    let argv = argv.iter().map(|&argument| argument.to_owned()).collect();
    ExecRequest { argv, ..ExecRequest::default() }
}

fn script(text: &str) -> ExecRequest {
    command(&["sh", "-c", text])
}

fn interactive(text: &str) -> ExecRequest {
    let tty = Some(WindowSize { rows: 24, cols: 80 });
    ExecRequest { tty, stdin: true, ..script(text) }
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Takes output until it contains `text`.
async fn output_with(exec: &mut Exec, text: &str) -> String {
    let mut output = Vec::new();
    loop {
        match exec.next().await {
            Some(Frame::Stdout(bytes)) => output.extend_from_slice(&bytes),
            other => panic!("{other:?} before {text:?} in {:?}", String::from_utf8_lossy(&output)),
        }
        let so_far = String::from_utf8_lossy(&output);
        if so_far.contains(text) {
            return so_far.into_owned();
        }
    }
}

async fn number(exec: &mut Exec) -> u32 {
    let line = output_with(exec, "\n").await;
    line.trim().parse().expect("a process id")
}

#[tokio::test]
async fn ends_arrive_exactly() {
    let host = host().await;
    let cases = [
        ("exit 0", ExecEnd::Exited(0)),
        ("exit 255", ExecEnd::Exited(255)),
        ("kill -TERM $$", ExecEnd::Signaled(15)),
        ("kill -KILL $$", ExecEnd::Signaled(9)),
        ("kill -40 $$", ExecEnd::Signaled(40)),
    ];
    for (text, want) in cases {
        assert_eq!(host.run(&script(text)).await.end, Some(want), "{text}");
    }
}

#[tokio::test]
async fn streams_are_separate_and_complete_even_when_the_program_exits_at_once() {
    let host = host().await;
    let text =
        "head -c 10000000 /dev/zero | tr '\\0' o; head -c 10000000 /dev/zero | tr '\\0' e >&2";
    let outcome = host.run(&script(text)).await;
    assert_eq!(outcome.end, Some(ExecEnd::Exited(0)));
    assert_eq!((outcome.stdout.len(), outcome.stderr.len()), (TEN_MEGABYTES, TEN_MEGABYTES));
    assert!(outcome.stdout.iter().all(|byte| *byte == b'o'));
    assert!(outcome.stderr.iter().all(|byte| *byte == b'e'));
    for _ in 0..20 {
        let outcome = host.run(&command(&["head", "-c", "60000", "/dev/zero"])).await;
        assert_eq!(outcome.stdout.len(), 60_000);
    }
}

#[tokio::test]
async fn ten_megabytes_go_both_ways() {
    let host = host().await;
    let input: Vec<u8> = (0..TEN_MEGABYTES).map(|at| (at % 251).to_le_bytes()[0]).collect();
    let request = ExecRequest { stdin: true, ..command(&["cat"]) };
    let outcome = host.exec(&request).await.feed(&input).await;
    assert_eq!(outcome.end, Some(ExecEnd::Exited(0)));
    assert!(outcome.stdout == input, "{} bytes came back", outcome.stdout.len());
}

#[tokio::test]
async fn input_is_the_null_device_unless_it_is_sent() {
    let outcome = host().await.run(&script("cat; readlink /proc/self/fd/0")).await;
    assert_eq!(outcome.stdout, b"/dev/null\n");
}

#[tokio::test]
async fn a_program_that_closes_its_input_does_not_mind_more_of_it() {
    let host = host().await;
    let request = ExecRequest { stdin: true, ..script("exec 0<&-; sleep 0.2; echo done") };
    let outcome = host.exec(&request).await.feed(&vec![0; TEN_MEGABYTES]).await;
    assert_eq!((outcome.end, &outcome.stdout[..]), (Some(ExecEnd::Exited(0)), &b"done\n"[..]));
}

#[tokio::test]
async fn a_signal_is_not_queued_behind_unread_input() {
    let host = host().await;
    let request = ExecRequest { stdin: true, ..command(&["sleep", "1000"]) };
    let mut exec = host.exec(&request).await;
    exec.started().await;
    for _ in 0..STDIN_WINDOW / MAX_PAYLOAD {
        exec.send(ClientFrame::Stdin(&[0; MAX_PAYLOAD])).await;
    }
    exec.control(ClientControl::Signal(libc::SIGTERM)).await;
    assert_eq!(exec.finish().await.end, Some(ExecEnd::Signaled(15)));
}

#[tokio::test]
async fn more_input_than_there_is_credit_for_ends_the_command() {
    let host = host().await;
    let request = ExecRequest { stdin: true, ..command(&["sleep", "1000"]) };
    let mut exec = host.exec(&request).await;
    let pid = exec.started().await;
    for _ in 0..=2 * STDIN_WINDOW / MAX_PAYLOAD {
        exec.try_send(ClientFrame::Stdin(&[0; MAX_PAYLOAD])).await;
    }
    assert_eq!(exec.next().await, None);
    until("the command is killed", || !is_alive(pid)).await;
}

#[tokio::test]
async fn a_command_ends_with_its_main_process() {
    let host = host().await;
    let before = Instant::now();
    let mut exec = host.exec(&script("sleep 1000 & echo $!")).await;
    exec.started().await;
    let background = number(&mut exec).await;
    assert_eq!(exec.finish().await.end, Some(ExecEnd::Exited(0)));
    assert!(before.elapsed() < Duration::from_secs(20));
    assert!(is_alive(background), "what is in the background lives on");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(background.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("killed");
}

#[tokio::test]
async fn background_output_neither_delays_the_end_nor_kills_its_writer() {
    let dir = tempfile::tempdir().expect("a directory");
    let (go, done) = (dir.path().join("go"), dir.path().join("done"));
    let host = host().await;
    let text = format!(
        "(yes & until [ -e {} ]; do sleep 0.05; done; kill $!; \
          echo late && echo later >&2 && touch {}) & echo now",
        go.display(),
        done.display()
    );
    let noisy = script(&text);
    let run = tokio::time::timeout(Duration::from_secs(20), host.run(&noisy));
    let outcome = run.await.expect("it ends before its background does");
    assert_eq!(outcome.end, Some(ExecEnd::Exited(0)));
    std::fs::write(&go, "").expect("go on");
    until("the background process gets past its output", || done.exists()).await;
}

#[tokio::test]
async fn a_timeout_kills_what_began_a_session_of_its_own() {
    let host = host().await;
    let limited =
        |seconds: u64, text| ExecRequest { timeout_ms: Some(seconds * 1000), ..script(text) };
    let mut exec = host.exec(&limited(3, "setsid sleep 1000 & echo $!; sleep 1000")).await;
    exec.started().await;
    let other = number(&mut exec).await;
    assert!(is_alive(other));
    assert_eq!(exec.finish().await.end, Some(ExecEnd::TimedOut));
    until("the other session is gone", || !is_alive(other)).await;
    let in_time = host.run(&limited(60, "exit 4")).await;
    assert_eq!(in_time.end, Some(ExecEnd::Exited(4)));
}

#[tokio::test]
async fn a_client_that_hangs_up_takes_its_command_along() {
    let host = host().await;
    let mut exec = host.exec(&script("setsid sleep 1000 & echo $!; sleep 1000")).await;
    let pid = exec.started().await;
    let other = number(&mut exec).await;
    drop(exec);
    until("everything is killed", || !is_alive(pid) && !is_alive(other)).await;
}

#[tokio::test]
async fn a_hang_up_is_noticed_while_output_is_stuck() {
    let host = host().await;
    let mut exec = host.exec(&command(&["yes"])).await;
    let pid = exec.started().await;
    until("output is stuck", || is_waiting(pid)).await;
    drop(exec);
    until("the command is killed", || !is_alive(pid)).await;
}

#[tokio::test]
async fn the_end_of_the_connection_ends_all_its_commands() {
    let (host, dir) = (host().await, tempfile::tempdir().expect("a directory"));
    let (mut pids, mut execs) = (Vec::new(), Vec::new());
    let end_of_input = format!("cat; touch {}/ended", dir.path().display());
    // Often: what breaks off looked like what has ended now and then.
    for text in ["sleep 1000", "yes"].into_iter().chain([end_of_input.as_str(); 20]) {
        let mut exec = host.exec(&ExecRequest { stdin: true, ..script(text) }).await;
        pids.push(exec.started().await);
        execs.push(exec);
    }
    host.hang_up();
    until("all are killed", || pids.iter().all(|pid| !is_alive(*pid))).await;
    assert!(!dir.path().join("ended").exists(), "one took it for the end of its input");
}

/// Whether a process sleeps, twice in a row.
fn is_waiting(pid: u32) -> bool {
    let sleeps = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    };
    sleeps() && {
        std::thread::sleep(Duration::from_millis(20));
        sleeps()
    }
}

#[tokio::test]
async fn a_slow_reader_slows_the_program() {
    const ALL: usize = 50_000_000;
    const IN_FLIGHT: usize = 4_000_000;
    let host = host().await;
    let mut exec = host.exec(&command(&["head", "-c", "50000000", "/dev/zero"])).await;
    let pid = exec.started().await;
    until("output is stuck", || is_waiting(pid)).await;
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("readable");
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("there");
    let written: usize = written.parse().expect("a number");
    assert!(written < IN_FLIGHT, "{written} bytes written ahead");
    let outcome = exec.finish().await;
    assert_eq!((outcome.stdout.len(), outcome.end), (ALL, Some(ExecEnd::Exited(0))));
}

#[tokio::test]
async fn a_terminal_echoes_resizes_and_interrupts() {
    let host = host().await;
    let text = "tty; stty size; while read line; do echo got $line $(stty size); done; echo over";
    let mut exec = host.exec(&interactive(text)).await;
    exec.started().await;
    assert!(output_with(&mut exec, "24 80").await.contains("/dev/pts/"));
    exec.send(ClientFrame::Stdin(b"hello\r")).await;
    let echoed = output_with(&mut exec, "got hello 24 80").await;
    assert!(echoed.contains("hello\r\n"), "{echoed:?}");
    exec.control(ClientControl::Resize(WindowSize { rows: 50, cols: 132 })).await;
    exec.send(ClientFrame::Stdin(b"again\r")).await;
    output_with(&mut exec, "got again 50 132").await;
    exec.send(ClientFrame::Stdin(b"\x04")).await;
    output_with(&mut exec, "over").await;
    assert_eq!(exec.finish().await.end, Some(ExecEnd::Exited(0)));
}

#[tokio::test]
async fn a_program_is_told_of_a_new_size() {
    let host = host().await;
    let text = "trap 'exit 7' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut exec = host.exec(&interactive(text)).await;
    exec.started().await;
    output_with(&mut exec, "ready").await;
    exec.control(ClientControl::Resize(WindowSize { rows: 50, cols: 132 })).await;
    assert_eq!(exec.finish().await.end, Some(ExecEnd::Exited(7)));
}

#[tokio::test]
async fn control_c_interrupts_the_foreground() {
    let host = host().await;
    let mut exec = host.exec(&interactive("echo ready; exec sleep 1000")).await;
    exec.started().await;
    output_with(&mut exec, "ready").await;
    exec.send(ClientFrame::Stdin(b"\x03")).await;
    assert_eq!(exec.finish().await.end, Some(ExecEnd::Signaled(2)));

    // A job of a shell with job control is in a process group of its own.
    let mut exec =
        host.exec(&interactive("set -m; sh -c 'echo ready; sleep 1000'; echo status $?")).await;
    exec.started().await;
    output_with(&mut exec, "ready").await;
    exec.control(ClientControl::Signal(libc::SIGTERM)).await;
    output_with(&mut exec, "status 143").await;
    assert_eq!(exec.finish().await.end, Some(ExecEnd::Exited(0)));
}

#[tokio::test]
async fn the_last_words_on_a_terminal_arrive() {
    let host = host().await;
    for _ in 0..30 {
        let tty = Some(WindowSize { rows: 24, cols: 80 });
        let outcome = host.run(&ExecRequest { tty, ..script("seq 500") }).await;
        assert!(outcome.stdout.ends_with(b"\r\n500\r\n"));
        assert_eq!(outcome.end, Some(ExecEnd::Exited(0)));
    }
}

#[tokio::test]
async fn the_end_of_input_reaches_a_terminal() {
    let host = host().await;
    let outcome = host.exec(&interactive("cat")).await.feed(b"line\n").await;
    assert_eq!(outcome.end, Some(ExecEnd::Exited(0)));
    assert_eq!(outcome.stdout, b"line\r\nline\r\n");
}

#[tokio::test]
async fn many_commands_run_at_once() {
    const MANY: u8 = 50;
    let host = host().await;
    let one = |code: u8| {
        let host = &host;
        async move {
            let text = format!("head -c 100000 /dev/zero; sleep 0.1; exit {code}");
            let outcome = host.run(&script(&text)).await;
            assert_eq!(outcome.end, Some(ExecEnd::Exited(code)));
            assert_eq!(outcome.stdout.len(), 100_000);
        }
    };
    futures_util::future::join_all((0..MANY).map(one)).await;
}

#[tokio::test]
async fn commands_get_a_clean_environment() {
    let mut request = command(&["env"]);
    request.env = [("BOTH".to_owned(), "request".to_owned())].into();
    let outcome = host().await.run(&request).await;
    let text = String::from_utf8(outcome.stdout).expect("text");
    let names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
    assert_eq!(names, ["BOTH", "HOME", "LOGNAME", "OF_VM", "PATH", "SHELL", "USER"]);
    assert!(text.contains("BOTH=request\n") && text.contains("OF_VM=vm\n"), "{text}");
}

#[tokio::test]
async fn commands_inherit_nothing_of_the_agent() {
    // The C library keeps the signals 32 and 33 to itself, so whoever runs this test decides them.
    let text = "ls /proc/self/fd | tr '\\n' ' '; umask; cat /proc/self/oom_score_adj; \
                grep -E 'Sig(Blk|Ign)' /proc/self/status | sed 's/[08]0000000$/00000000/'";
    let outcome = host().await.run(&script(text)).await;
    let text = String::from_utf8(outcome.stdout).expect("text");
    // 3 is the directory that `ls` itself reads.
    let want = "0 1 2 3 0022\n0\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";
    assert_eq!(text, want);
}

#[tokio::test]
async fn failures_say_what_failed() {
    let dir = tempfile::tempdir().expect("a directory");
    let plain = dir.path().join("plain");
    let orphan = dir.path().join("orphan");
    let garbage = dir.path().join("garbage");
    std::fs::write(&plain, "text").expect("written");
    std::fs::write(&orphan, "#!/no/such/interpreter\n").expect("written");
    std::fs::write(&garbage, "\x01\x02\x03").expect("written");
    for path in [&orphan, &garbage] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).expect("executable");
    }
    let at = |path: &Path| command(&[&path.to_string_lossy()]);
    let user = ExecRequest { user: Some("no-such-user".to_owned()), ..script("true") };
    let workdir = ExecRequest { workdir: Some("/no/such".to_owned()), ..script("true") };
    let cases = [
        (command(&["no-such-program"]), ErrorCode::ExecNotFound, "no program \"no-such-program\""),
        (command(&["/no/such"]), ErrorCode::ExecNotFound, "no program \"/no/such\""),
        (command(&[""]), ErrorCode::ExecNotFound, "no program \"\""),
        (at(&orphan), ErrorCode::ExecNotFound, "needs to run"),
        (at(&plain), ErrorCode::ExecNotExecutable, "cannot be executed"),
        (at(&garbage), ErrorCode::ExecNotExecutable, "cannot be executed"),
        (at(dir.path()), ErrorCode::ExecNotExecutable, "cannot be executed"),
        (user, ErrorCode::ExecFailed, "no user \"no-such-user\""),
        (workdir, ErrorCode::ExecFailed, "no directory \"/no/such\""),
        (command(&["a\0b"]), ErrorCode::InvalidArgument, "cannot be run"),
        (command(&["echo", &"x".repeat(200_000)]), ErrorCode::ExecFailed, "too long"),
    ];
    let host = host().await;
    for (request, code, words) in cases {
        let problem = host.run(&request).await.failed.expect("a failure");
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.title.contains(words), "{problem}");
        assert!(problem.hint.is_some() || code == ErrorCode::InvalidArgument, "{problem}");
    }
}

#[tokio::test]
async fn nothing_runs_before_the_guest_is_configured() {
    let agent = unconfigured();
    let host = connect(&agent).await;
    let (status, hello) = host.request("GET", "/v1/hello", "").await;
    assert_eq!(status, 200);
    assert!(hello.contains("\"configured\":false"), "{hello}");
    let mut stream = host.open().await;
    let (upgrade, _) = tokio::join!(
        tokio_tungstenite::client_async("ws://agent/v1/exec", &mut stream),
        sleep(Duration::ZERO)
    );
    let error = upgrade.expect_err("refused").to_string();
    assert!(error.contains("409"), "{error}");
}

#[tokio::test]
async fn odd_requests_are_answered() {
    let host = host().await;
    let large = format!("\"{}\"", "x".repeat(banger_api::agent::MAX_BODY));
    let cases = [
        ("GET", "/v1/exec", "", 400),
        ("GET", "/v1/nothing", "", 404),
        ("DELETE", "/v1/hello", "", 404),
        ("POST", "/v1/configure", "{", 400),
        ("POST", "/v1/configure", &large, 400),
        ("POST", "/v1/clock", "[]", 400),
        ("POST", "/v1/shutdown", "{\"action\":\"explode\",\"grace_ms\":0}", 400),
    ];
    for (method, path, body, want) in cases {
        let (status, answer) = host.request(method, path, body).await;
        assert_eq!(status, want, "{method} {path}: {answer}");
        let problem: banger_api::Problem = serde_json::from_str(&answer).expect("a problem");
        assert!(!problem.title.is_empty());
    }
}

#[tokio::test]
async fn a_stream_that_is_not_http_harms_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let host = host().await;
    let mut stream = host.open().await;
    let _ = stream.write_all(&[0xff; 100_000]).await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
    assert_eq!(host.run(&script("exit 5")).await.end, Some(ExecEnd::Exited(5)));
}

#[tokio::test]
async fn the_first_message_must_be_a_request() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    let host = host().await;
    for first in [Message::binary(b"\x00abc".to_vec()), Message::text("{\"argv\":3}")] {
        let stream = host.open().await;
        let (mut socket, _) =
            tokio_tungstenite::client_async("ws://agent/v1/exec", stream).await.expect("upgraded");
        socket.send(first).await.expect("sent");
        let answer = socket.next().await.expect("an answer").expect("a message").into_data();
        let failed = banger_api::exec::ServerFrame::decode(&answer).expect("a frame");
        let banger_api::exec::ServerFrame::Control(ServerControl::Failed(problem)) = failed else {
            panic!("{failed:?}");
        };
        assert_eq!(problem.code, ErrorCode::InvalidArgument);
    }
}
