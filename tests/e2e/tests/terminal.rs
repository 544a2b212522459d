//! "TTY with resize, Ctrl-C, Ctrl-D, full-screen programs"; "after any failure the terminal is sane".

use std::time::Duration;

use banger_e2e::{BOOT, SOON};
use banger_testkit::{Host, Seed, wait};

/// "TERM, locale and window size reach the guest"; "TTY with resize, Ctrl-C, Ctrl-D"
#[test]
fn a_shell_in_a_terminal() {
    let host = Host::new();
    let vm = host.running_vm("desk");
    let mut terminal = host.banger(["shell", &vm]).in_terminal(30, 100);
    terminal.wait_for("#", SOON);
    // The words are put together by the shell, so that the echo of what is typed is no answer.
    terminal.send("echo size=$(stty size) term=$TERM\r");
    terminal.wait_for("size=30 100 term=xterm-256color", SOON);
    terminal.resize(40, 120);
    terminal.send("until [ \"$(stty size)\" = '40 120' ]; do :; done; echo now=$(stty size)\r");
    terminal.wait_for("now=40 120", SOON);
    terminal.send("sleep 1000\r");
    wait::until("sleep runs", SOON, || {
        banger_e2e::runs_in_guest(&host, &vm, "sleep").then_some(())
    });
    terminal.send("\x03");
    terminal.send("echo still $((20 + 3))\r");
    terminal.wait_for("still 23", SOON);
    terminal.send("exit 6\r");
    let end = terminal.wait_exit(SOON);
    assert_eq!(end.code, 6, "{}", end.text);
    assert!(end.sane, "the terminal is as it was");
    host.finish();
}

/// Ctrl-D ends a shell, and a program that turned echo off leaves a sane terminal.
#[test]
fn control_d_ends_the_shell() {
    let host = Host::new();
    let vm = host.running_vm("quit");
    let mut terminal = host.banger(["exec", "-it", &vm, "--", "sh"]).in_terminal(24, 80);
    terminal.wait_for("#", SOON);
    terminal.send("stty -echo raw; stty sane; printf '\\033[?1049h%s' full$((1 + 1))\r");
    terminal.wait_for("full2", SOON);
    terminal.send("\x04");
    let end = terminal.wait_exit(SOON);
    assert_eq!(end.code, 0, "{}", end.text);
    assert!(end.sane);
    host.finish();
}

/// "after any failure the terminal is sane"
#[test]
fn the_terminal_is_sane_after_the_machine_died() {
    let host = Host::new();
    let vm = host.running_vm("doomed");
    let mut terminal = host.banger(["shell", &vm]).in_terminal(24, 80);
    terminal.wait_for("#", SOON);
    host.banger(["kill", &vm]).run().assert_ok();
    let end = terminal.wait_exit(SOON);
    assert_ne!(end.code, 0, "{}", end.text);
    assert!(end.sane, "{}", end.text);
    host.finish();
}

/// "Ctrl-C during a boot … cancels, and a `--rm` VM is gone before the prompt returns"
#[test]
fn control_c_during_a_boot() {
    let host = Host::new();
    let mut terminal = host.banger(["run", "--rm", "--name", "early"]).in_terminal(24, 80);
    wait::until("the machine exists", BOOT, || host.state("early").map(|_| ()));
    terminal.send("\x03");
    let end = terminal.wait_exit(SOON);
    assert_ne!(end.code, 0, "{}", end.text);
    assert!(end.sane, "{}", end.text);
    assert!(host.vm_names().is_empty(), "it is gone before the prompt returns");
    host.finish();
}

/// "Ctrl-C during … a pull cancels"; "nothing half-made stays visible"
#[test]
fn a_cancelled_pull_leaves_nothing() {
    let host = Host::builder().seed(Seed::Nothing).build();
    let mut terminal = host.banger(["image", "pull", "debian-bookworm"]).in_terminal(24, 80);
    wait::until("the build began", Duration::from_secs(60), || {
        (!host.processes_named("mmdebstrap").is_empty()
            || has_entry_starting_with(&host.data.join("images"), "tmp-"))
        .then_some(())
    });
    terminal.send("\x03");
    let end = terminal.wait_exit(Duration::from_secs(60));
    assert_ne!(end.code, 0, "{}", end.text);
    assert!(end.sane, "{}", end.text);
    host.banger(["image", "ls", "-q"]).run().assert_ok().assert_stdout("");
    wait::until("the unfinished build is gone", SOON, || {
        (!has_entry_starting_with(&host.data.join("images"), "tmp-")).then_some(())
    });
    host.finish();
}

fn has_entry_starting_with(dir: &std::path::Path, prefix: &str) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
}
