//! `banger run`: one command, one machine.

use std::time::Duration;

use banger_e2e::{BOOT, SOON};
use banger_testkit::{Host, wait};

/// "sees the output of a program that ran in a virtual machine with its own kernel"
#[test]
fn a_program_runs_on_a_kernel_of_its_own() {
    let host = Host::new();
    let guest = host.banger(["run", "--rm", "--", "uname", "-r"]).run().assert_ok();
    let here = host.program("/bin/uname".as_ref(), ["-r"]).run().assert_ok();
    assert_ne!(guest.stdout, here.stdout, "the guest's kernel is its own");
    assert_eq!(guest.stdout_text().lines().count(), 1, "nothing else is on stdout: {guest}");
    assert!(host.vm_names().is_empty(), "--rm removes the machine");
    host.finish();
}

/// "With `-- CMD` it runs CMD, passes stdin, stdout, stderr, signals and the exit code, and adds
/// nothing to stdout."
#[test]
fn run_passes_streams_and_exit_code() {
    let host = Host::new();
    let script = "cat; echo complaint >&2; exit 3";
    let output = host.banger(["run", "--rm", "-q", "--", "sh", "-c", script]).stdin("in\n").run();
    let output = output.assert_code(3).assert_stdout("in\n");
    assert_eq!(output.stderr_text(), "complaint\n", "--quiet adds nothing to stderr either");
    host.finish();
}

/// "`-e`, `-w`, `-u`, `-c`, `-m`, `--name`, `--label`"
#[test]
fn options_reach_the_guest() {
    let host = Host::new();
    let script =
        "echo $COLOUR; pwd; id -un; nproc; hostname; awk '/MemTotal/ {print $2}' /proc/meminfo";
    let options = [
        "run",
        "--name",
        "opted",
        "--label",
        "purpose=test",
        "-e",
        "COLOUR=blue grey",
        "-w",
        "/tmp",
        "-u",
        "nobody",
        "-c",
        "1",
        "-m",
        "512",
        "--",
        "sh",
        "-c",
        script,
    ];
    let output = host.banger(options).run().assert_ok();
    let text = output.stdout_text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..5], ["blue grey", "/tmp", "nobody", "1", "opted"], "{output}");
    let kib: u64 = lines[5].parse().expect("a number");
    assert!((400_000..=524_288).contains(&kib), "{kib} KiB of 512 MiB");
    assert_eq!(host.show("opted")["spec"]["labels"]["purpose"], "test");
    let filtered = host.banger(["ls", "-q", "--all", "--filter", "label=purpose=test"]).run();
    let filtered = if filtered.code == 0 {
        filtered
    } else {
        host.banger(["ls", "-q", "--filter", "label=purpose=test"]).run().assert_ok()
    };
    assert_eq!(filtered.stdout_text(), "opted\n");
    host.finish();
}

/// "in the foreground without `--rm` the VM stops and is kept when CMD ends"
#[test]
fn run_without_rm_keeps_a_stopped_machine() {
    let host = Host::new();
    host.banger(["run", "--name", "kept", "--", "sh", "-c", "echo treasure > /root/box"])
        .run()
        .assert_ok();
    host.wait_for_state("kept", "stopped");
    host.banger(["start", "kept"]).run().assert_ok();
    host.banger(["exec", "kept", "--", "cat", "/root/box"])
        .run()
        .assert_ok()
        .assert_stdout("treasure\n");
    host.finish();
}

/// "`-d` leaves it running, CMD is its main process, `logs` shows CMD"
#[test]
fn a_detached_machine_runs_its_main_process() {
    let host = Host::new();
    let script = "echo main speaks; echo main complains >&2; while [ ! -e /tmp/go ]; do sleep 0.2; done; exit 5";
    let named =
        host.banger(["run", "-d", "--name", "back", "--", "sh", "-c", script]).run().assert_ok();
    assert_eq!(named.stdout_text().trim(), "back", "-d prints the name");
    wait::until("the log", SOON, || {
        let logs = host.banger(["logs", "back"]).run().assert_ok();
        logs.stdout_text().contains("main speaks").then_some(())
    });
    let console = host.banger(["logs", "--console", "back"]).run().assert_ok();
    assert!(!console.stdout_text().contains("main speaks"), "the console is another log");
    let waiting = host.banger(["wait", "back"]).spawn();
    host.banger(["exec", "back", "--", "touch", "/tmp/go"]).run();
    waiting.wait().assert_ok().assert_stdout("5\n");
    host.wait_for_state("back", "stopped");
    assert_eq!(host.show("back")["status"]["end"]["cause"], "main_exited");
    host.banger(["logs", "back"]).run().assert_ok().assert_stdout_has("main complains");
    host.finish();
}

/// "`--rm`: the VM dies when the CLI's stream ends, even by `kill -9` of the CLI"
#[test]
fn a_machine_to_be_removed_dies_with_its_cli() {
    let host = Host::new();
    let cli = host.banger(["run", "--rm", "--name", "brief", "--", "sleep", "1000"]).spawn();
    wait::until("the machine runs", BOOT, || (host.state("brief")? == "running").then_some(()));
    wait::until("the command runs", BOOT, || {
        let found = host.banger(["exec", "brief", "--", "pgrep", "-x", "sleep"]).run();
        (found.code == 0).then_some(())
    });
    host.kill_dash_nine(cli.pid());
    cli.wait().assert_code(137);
    wait::until("the machine is gone", SOON, || host.vm_names().is_empty().then_some(()));
    host.finish();
}

/// "`--disk` larger than the image works"
#[test]
fn a_disk_may_be_larger_than_the_image() {
    let host = Host::new();
    let script = "df -B1 --output=size / | tail -1; dd if=/dev/zero of=/big bs=1M count=8 status=none && echo written";
    let output = host.banger(["run", "--rm", "--disk", "20G", "--", "sh", "-c", script]).run();
    let text = output.assert_ok().stdout_text();
    let bytes: u64 = text.lines().next().and_then(|l| l.trim().parse().ok()).expect("a size");
    assert!(bytes > 18 << 30, "{bytes} bytes of 20 GiB");
    assert!(text.ends_with("written\n"));
    host.finish();
}

/// "124 timeout … `--timeout` limits the command"
#[test]
fn a_timeout_limits_the_command() {
    let host = Host::new();
    host.banger(["run", "--rm", "--timeout", "1s", "--", "sleep", "1000"]).run().assert_code(124);
    host.finish();
}

/// How many seconds a guest's clock may be wrong.
const CLOCK_OFF: u64 = 2;

/// "Identity never comes from the kernel command line or the disk: it is given in `configure`"
#[test]
fn every_vm_has_its_own_identity() {
    let host = Host::new();
    let script = "cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname; \
                  head -c 16 /dev/urandom | od -An -tx1; date +%s";
    let identity = |name: &str| {
        let vm = host.running_vm(name);
        let before = wait::seconds_since_1970();
        let output = host.banger(["exec", &vm, "--", "sh", "-c", script]).run().assert_ok();
        let after = wait::seconds_since_1970();
        let lines: Vec<String> = output.stdout_text().lines().map(str::to_owned).collect();
        let guest: u64 = lines[4].parse().expect("seconds");
        let right = before - CLOCK_OFF..=after + CLOCK_OFF;
        assert!(right.contains(&guest), "the guest's clock is right: {guest}, not in {right:?}");
        assert_eq!(lines[0].len(), 32, "a machine-id: {}", lines[0]);
        assert_eq!(lines[2], name);
        lines
    };
    let (one, two) = (identity("first"), identity("second"));
    for line in [0, 1, 3] {
        assert_ne!(one[line], two[line], "line {line} is the same in both");
    }
    host.finish();
}

/// "TERM, locale and window size reach the guest … Proxies … reach the guest"
#[test]
fn proxies_reach_the_guest() {
    let host = Host::new();
    host.banger(["run", "--rm", "--", "printenv", "https_proxy"])
        .env("https_proxy", "http://proxy.example:3128")
        .run()
        .assert_ok()
        .assert_stdout("http://proxy.example:3128\n");
    host.finish();
}

/// "extra CAs reach the guest": what the host trusts besides, the guest's programs trust as well.
#[test]
fn extra_authorities_reach_the_guest() {
    const LINE: &str = "YmFuZ2VyIHRlc3QgYXV0aG9yaXR5";
    let host = Host::new();
    let file = host.scratch.join("authority.pem");
    let pem = format!("-----BEGIN CERTIFICATE-----\n{LINE}\n-----END CERTIFICATE-----\n");
    std::fs::write(&file, pem).expect("the scratch directory is there");
    host.banger(["run", "--rm", "--", "grep", "-x", LINE, "/etc/ssl/certs/ca-certificates.crt"])
        .env("BANGER_EXTRA_CA_FILE", &file)
        .run()
        .assert_ok()
        .assert_stdout(&format!("{LINE}\n"));
    host.finish();
}

/// "`run` with no argument … then gives a shell": without a terminal the shell reads stdin.
#[test]
fn run_without_a_command_is_a_shell() {
    let host = Host::new();
    let output = host.banger(["run", "--rm"]).stdin("echo sum $((40 + 2))\nexit 4\n").run();
    output.assert_code(4).assert_stdout_has("sum 42");
    host.finish();
}

/// "a `--rm` VM is gone before the prompt returns" when a signal ends the CLI while it boots.
#[test]
fn an_interrupted_boot_leaves_nothing() {
    let host = Host::new();
    let cli = host.banger(["run", "--rm", "--name", "early", "--", "true"]).spawn();
    wait::until("the machine exists", BOOT, || host.state("early").map(|_| ()));
    cli.signal(nix::sys::signal::Signal::SIGINT);
    let output = cli.wait();
    assert_ne!(output.code, 0, "{output}");
    assert!(output.took < Duration::from_secs(60));
    assert!(host.vm_names().is_empty(), "it is gone before the prompt returns");
    host.finish();
}
