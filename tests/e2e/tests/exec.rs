//! "Exec is exact."

use std::time::{Duration, Instant};

use banger_e2e::{SOON, runs_in_guest, wait_for_guest_file};
use banger_testkit::{Host, Terminal, wait};
use nix::sys::signal::Signal;

/// 10 MB in which no two neighbouring blocks are the same.
fn ten_megabytes() -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..10_000_000).map(|_| next()).collect()
}

/// "stdout and stderr separate and complete (10 MB each way, byte for byte, also when the program
/// exits at once after writing)"
#[test]
fn ten_megabytes_each_way_arrive_byte_for_byte() {
    let host = Host::new();
    let vm = host.running_vm("pipe");
    let bytes = ten_megabytes();
    let echoed = host.banger(["exec", &vm, "--", "cat"]).stdin(bytes.clone()).run().assert_ok();
    assert!(echoed.stdout == bytes, "{} bytes came back", echoed.stdout.len());
    let script = "tee /dev/stderr";
    let both =
        host.banger(["exec", &vm, "--", "sh", "-c", script]).stdin(bytes.clone()).run().assert_ok();
    assert!(both.stdout == bytes, "stdout: {} bytes", both.stdout.len());
    assert!(both.stderr == bytes, "stderr: {} bytes", both.stderr.len());
    let burst =
        host.banger(["exec", &vm, "--", "head", "-c", "10000000", "/dev/zero"]).run().assert_ok();
    assert_eq!(burst.stdout.len(), 10_000_000, "a program that exits at once after writing");
    host.finish();
}

/// "exit code and death by signal" and "126 not executable, 127 not found"
#[test]
fn exit_codes_and_signals_pass_through() {
    let host = Host::new();
    let vm = host.running_vm("codes");
    let cases: [(&[&str], i32); 8] = [
        (&["true"], 0),
        (&["false"], 1),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
        (&["/root"], 126),
    ];
    for (command, code) in cases {
        let start = ["exec", &vm, "--"];
        host.banger(start.iter().chain(command)).run().assert_code(code);
    }
    host.finish();
}

/// "`-e -w -u`", and "stdin piped or closed"
#[test]
fn options_and_closed_stdin() {
    let host = Host::new();
    let vm = host.running_vm("options");
    let script = "echo \"$WORD\"; pwd; id -u; cat";
    host.banger([
        "exec", "-e", "WORD=a b", "-w", "/usr", "-u", "daemon", &vm, "--", "sh", "-c", script,
    ])
    .run()
    .assert_ok()
    .assert_stdout("a b\n/usr\n1\n");
    host.banger(["exec", "-u", "nobody-at-all", &vm, "--", "true"]).run().assert_code(125);
    host.banger(["exec", "-w", "/no/such/place", &vm, "--", "true"]).run().assert_code(125);
    host.finish();
}

/// "passes … signals": a signal to the CLI reaches the command.
#[test]
fn a_signal_to_the_cli_reaches_the_command() {
    let host = Host::new();
    let vm = host.running_vm("signals");
    let script = "trap 'echo caught; exit 9' TERM; touch /tmp/ready; while :; do sleep 0.1; done";
    let cli = host.banger(["exec", &vm, "--", "sh", "-c", script]).spawn();
    wait_for_guest_file(&host, &vm, "/tmp/ready");
    cli.signal(Signal::SIGTERM);
    cli.wait().assert_code(9).assert_stdout("caught\n");
    host.finish();
}

/// "`--timeout` ends everything the exec started, also what called setsid"
#[test]
fn a_timeout_ends_everything_the_command_started() {
    let host = Host::new();
    let vm = host.running_vm("limits");
    let script = "setsid sleep 1000 & sleep 1000";
    host.banger(["exec", "--timeout", "2s", &vm, "--", "sh", "-c", script]).run().assert_code(124);
    let all_gone = || (!runs_in_guest(&host, &vm, "sleep")).then_some(());
    wait::until("what called setsid is gone too", SOON, all_gone);
    host.finish();
}

/// "a CLI killed mid-exec leaves no process in the guest (background children of a finished exec
/// live on); an exec ends with its main process even if a background child holds the pipes"
#[test]
fn a_killed_cli_leaves_no_process_and_a_finished_one_does() {
    let host = Host::new();
    let vm = host.running_vm("orphans");
    let cli =
        host.banger(["exec", &vm, "--", "sh", "-c", "setsid sleep 1000 & sleep 1000"]).spawn();
    wait::until("it runs", SOON, || runs_in_guest(&host, &vm, "sleep").then_some(()));
    host.kill_dash_nine(cli.pid());
    cli.wait().assert_code(137);
    wait::until("it is gone", SOON, || (!runs_in_guest(&host, &vm, "sleep")).then_some(()));

    let script = "sleep 1000 & echo started";
    let done = host.banger(["exec", &vm, "--", "sh", "-c", script]).timeout(SOON).run();
    done.assert_ok().assert_stdout("started\n");
    assert!(runs_in_guest(&host, &vm, "sleep"), "a background child lives on");
    host.finish();
}

/// "many execs at once": more than the stream to the guest has places for
#[test]
fn many_execs_at_once() {
    let host = Host::new();
    let vm = host.running_vm("many");
    let running: Vec<_> = (0..80)
        .map(|n| {
            (n, host.banger(["exec", &vm, "--", "sh", "-c", &format!("cat; echo {n}")]).spawn())
        })
        .collect();
    for (n, mut cli) in running {
        cli.send(b"word ");
        cli.close_stdin();
        cli.wait().assert_ok().assert_stdout(&format!("word {n}\n"));
    }
    host.finish();
}

/// "A slow reader slows the program instead of filling memory."
#[test]
fn a_slow_reader_slows_the_program() {
    const MIB: u64 = 1 << 20;
    let host = Host::new();
    let vm = host.running_vm("slow");
    let script = "echo $$ > /tmp/pid; exec dd if=/dev/zero bs=64k count=2048 status=none";
    let cli = host.banger(["exec", &vm, "--", "sh", "-c", script]).spawn_unread();
    wait_for_guest_file(&host, &vm, "/tmp/pid");
    let written = || {
        let script = "awk '/wchar/ {print $2}' /proc/$(cat /tmp/pid)/io";
        let output = host.banger(["exec", &vm, "--", "sh", "-c", script]).run().assert_ok();
        output.stdout_text().trim().parse::<u64>().expect("a number")
    };
    let mut last = 0;
    let stalled = wait::until("the program stands still", Duration::from_secs(60), || {
        let now = written();
        let still = now > 0 && now == last;
        last = now;
        still.then_some(now)
    });
    assert!(stalled < 64 * MIB, "{stalled} bytes went ahead of a reader that reads nothing");
    let output = cli.wait().assert_ok();
    assert_eq!(output.stdout.len() as u64, 128 * MIB, "and all of it arrives in the end");
    host.finish();
}

/// "for streams … the CLI … talks to the shim directly, so … a daemon restart breaks no running exec"
#[test]
fn an_exec_goes_on_while_the_daemon_restarts() {
    let host = Host::new();
    let vm = host.running_vm("steady");
    let mut cli = host.banger(["exec", &vm, "--", "cat"]).spawn();
    cli.send(b"before ");
    wait::until("it runs, and answers", SOON, || (cli.stdout_so_far() == b"before ").then_some(()));
    host.kill_dash_nine(host.daemon_pid().expect("a daemon runs"));
    assert_eq!(host.vm_names(), [vm], "a new daemon finds the machine");
    cli.send(b"after");
    cli.close_stdin();
    cli.wait().assert_ok().assert_stdout("before after");
    host.finish();
}

/// "a `kill -9` of the daemon costs a running exec nothing": every answer comes as quickly as before.
#[test]
fn a_killed_daemon_costs_a_running_exec_nothing() {
    const ROUNDS: usize = 40;
    let host = Host::new();
    let vm = host.running_vm("echo");
    // What comes back is the guest's answer, not a terminal's echo.
    let script = "stty -echo; echo ready; exec cat";
    let exec = host.banger(["exec", "-t", &vm, "--", "sh", "-c", script]);
    let mut terminal = exec.in_terminal(24, 80);
    terminal.wait_for("ready", SOON);
    let mut number = 0;
    let mut rounds = |terminal: &mut Terminal| {
        let mut times: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                number += 1;
                let (line, begun) = (format!("<{number}>"), Instant::now());
                terminal.send(&format!("{line}\n"));
                terminal.wait_for(&line, SOON);
                begun.elapsed()
            })
            .collect();
        times.sort();
        (times[ROUNDS / 2], times[ROUNDS - 1])
    };
    rounds(&mut terminal);
    let with = rounds(&mut terminal);
    host.kill_dash_nine(host.daemon_pid().expect("a daemon runs"));
    let without = rounds(&mut terminal);
    let starting = host.banger(["ls", "-q"]).spawn();
    let again = rounds(&mut terminal);
    starting.wait().assert_ok().assert_stdout("echo\n");
    eprintln!(
        "median and longest: {with:?}, without a daemon {without:?}, as one starts {again:?}"
    );
    for (median, longest) in [without, again] {
        assert!(median < 3 * with.0 + Duration::from_millis(50), "{median:?}, before {with:?}");
        assert!(longest < Duration::from_secs(6), "{longest:?}");
    }
    terminal.send("\u{4}");
    assert_eq!(terminal.wait_exit(SOON).code, 0);
    host.finish();
}
