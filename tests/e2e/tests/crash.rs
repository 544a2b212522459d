//! "After a crash, a power cut or a `kill -9` nothing is lost and nothing is left over."

use std::os::unix::net::UnixListener;

use banger_e2e::{BOOT, SOON};
use banger_testkit::{Host, Seed, process, wait};

/// "VMs survive daemon restart", by `stop` and by `kill -9`
#[test]
fn vms_outlive_the_daemon() {
    let host = Host::new();
    let vm = host.running_vm("survivor");
    let boot_id = || {
        let read = ["exec", &vm, "--", "cat", "/proc/sys/kernel/random/boot_id"];
        host.banger(read).run().assert_ok().stdout_text()
    };
    let before = boot_id();
    host.kill_dash_nine(host.daemon_pid().expect("a daemon runs"));
    assert_eq!(host.state(&vm).as_deref(), Some("running"));
    assert_eq!(boot_id(), before, "the same boot");
    host.banger(["daemon", "stop"]).run().assert_ok();
    host.wait_until_gone("bangerd");
    assert_eq!(boot_id(), before);
    host.banger(["stop", &vm]).run().assert_ok();
    assert_eq!(
        host.state(&vm).as_deref(),
        Some("stopped"),
        "the new daemon follows the old machine"
    );
    host.finish();
}

/// A `wait` goes on where its daemon does not, and waits for what it can.
#[test]
fn a_wait_outlives_the_daemon() {
    let host = Host::new();
    let script = "while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 4";
    host.banger(["run", "-d", "-q", "--name", "one", "--", "sh", "-c", script]).run().assert_ok();
    let waiting = host.banger(["wait", "nosuch", "one"]).timeout(BOOT).spawn();
    host.kill_dash_nine(host.daemon_pid().expect("a daemon runs"));
    host.banger(["exec", "one", "--", "touch", "/tmp/go"]).run();
    let waited = waiting.wait().assert_code(125).assert_stdout("4\n");
    waited.assert_stderr_has("nosuch");
    host.finish();
}

/// "if it dies, even by `kill -9`, the kernel kills the VMM and pasta with it"
#[test]
fn a_killed_shim_takes_everything_along() {
    let host = Host::new();
    let vm = host.running_vm("headless");
    let sh = ["exec", &vm, "--", "sh", "-c", "echo kept > /root/note; sync /root/note /root"];
    host.banger(sh).run().assert_ok();
    let shims = host.processes_named("banger-shim");
    assert!(!shims.is_empty());
    for pid in shims {
        // The VM's inner processes may end with the first of them.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    for program in ["banger-shim", "qemu-system-x86_64", "pasta"] {
        host.wait_until_gone(program);
    }
    host.wait_for_state(&vm, "failed");
    assert_eq!(host.show(&vm)["status"]["end"]["cause"], "shim_gone");
    host.banger(["start", &vm]).run().assert_ok();
    host.banger(["exec", &vm, "--", "cat", "/root/note"]).run().assert_ok().assert_stdout("kept\n");
    host.finish();
}

/// A killed VMM is a failure with a reason, and the machine starts again.
#[test]
fn a_killed_vmm_is_a_failure_with_a_reason() {
    let host = Host::new();
    let vm = host.running_vm("brainless");
    for pid in host.processes_named("qemu-system-x86_64") {
        host.kill_dash_nine(pid);
    }
    host.wait_for_state(&vm, "failed");
    let end = host.show(&vm)["status"]["end"].clone();
    assert_eq!(end["cause"], "vmm_exited", "{end}");
    assert!(end["reason"].as_str().is_some_and(|reason| reason.contains("SIGKILL")), "{end}");
    host.banger(["start", &vm]).run().assert_ok();
    host.finish();
}

/// How often a guest is starved until it finds no timer: each boot is met as likely as not.
const ATTEMPTS: u32 = 8;

/// A kernel that is starved just while it measures its timer finds none, and would hang.
#[test]
fn a_guest_without_a_timer_is_booted_again() {
    let host = Host::new();
    host.banger(["create", "--name", "starved"]).run().assert_ok();
    let mut has_timer_of_kvm = false;
    let met = (0..ATTEMPTS).any(|_| {
        let starting = host.banger(["start", "starved"]).timeout(2 * BOOT).spawn();
        let vmm = || host.processes_named("qemu-system-x86_64").first().copied();
        process::starve(wait::until("the VMM starts", SOON, vmm), BOOT / 2);
        starting.wait().assert_ok();
        let exec = ["exec", "starved", "--", "echo", "up"];
        host.banger(exec).run().assert_ok().assert_stdout("up\n");
        has_timer_of_kvm = host.show("starved")["status"]["engine"]["accelerator"] == "kvm";
        let log = std::fs::read_to_string(host.vm_dir("starved").join("shim.log"));
        host.banger(["kill", "starved"]).run().assert_ok();
        has_timer_of_kvm || log.expect("a VM has this log").contains("found no timer")
    });
    assert!(met, "none of {ATTEMPTS} boots was starved at the right moment");
    host.finish();
    if has_timer_of_kvm {
        banger_testkit::skip("with KVM a guest measures no timer");
    }
}

/// "lock against two at once"; "Two processes asking at once do the work once."
#[test]
fn two_at_once_start_one_daemon_and_pull_once() {
    let host = Host::builder().seed(Seed::Nothing).build();
    let running: Vec<_> =
        (0..4).map(|_| host.banger(["kernel", "pull", "debian-cloud"]).spawn()).collect();
    for cli in running {
        cli.wait().assert_ok();
    }
    assert_eq!(host.processes_named("bangerd").len(), 1, "one daemon");
    let kernels =
        std::fs::read_dir(host.data.join("kernels")).expect("kernels are there").flatten();
    let versions =
        kernels.filter(|entry| entry.file_name().to_string_lossy().starts_with("sha256-"));
    assert_eq!(versions.count(), 1, "one kernel");
    let pulled = ["events", "--since", "1h", "--no-follow", "-q", "--filter", "type=kernel.pulled"];
    let told = host.banger(pulled).run().assert_ok().stdout_text();
    assert_eq!(told.lines().count(), 1, "fetched once: {told}");
    host.finish();
}

/// "stale socket handled"
#[test]
fn a_stale_socket_is_no_obstacle() {
    let host = Host::new();
    let socket = host.runtime.join("api.sock");
    drop(UnixListener::bind(&socket).expect("the runtime directory is there"));
    let owner = Some(host.account.uid);
    std::os::unix::fs::lchown(&socket, owner, Some(host.account.gid)).expect("ours");
    host.banger(["ls", "-q"]).run().assert_ok();
    host.finish();
}

/// "a daemon of another version is reported with what to do"
#[test]
fn a_daemon_of_another_version_is_reported() {
    let host = Host::new();
    let socket = host.runtime.join("api.sock");
    let listener = UnixListener::bind(&socket).expect("the runtime directory is there");
    std::os::unix::fs::lchown(&socket, Some(host.account.uid), Some(host.account.gid))
        .expect("ours");
    let answering = std::thread::spawn(move || answer_as_the_daemon_of_the_future(&listener));
    let output = host.banger(["ls"]).run().assert_code(125);
    let text = output.stderr_text();
    assert!(text.contains("99") && text.contains("hint: "), "{output}");
    // Nobody else will connect; this ends the thread.
    let _ = std::os::unix::net::UnixStream::connect(&socket);
    std::fs::remove_file(&socket).expect("ours");
    answering.join().expect("the thread does not panic");
    host.finish();
}

fn answer_as_the_daemon_of_the_future(listener: &UnixListener) {
    use std::io::{Read, Write};
    let body = r#"{"version":"99.0.0","protocol":{"min":99,"max":99},"pid":1,"started_at_ms":0,"data_dir":"/"}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        let mut request = [0; 4096];
        // The empty connection is the test's goodbye.
        match stream.read(&mut request) {
            Ok(1..) => stream.write_all(answer.as_bytes()).expect("the client reads"),
            _ => return,
        }
    }
}
