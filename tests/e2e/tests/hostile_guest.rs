//! "Hostile guest: an agent that … answers garbage, floods logs and output": what it does to the
//! machine around it. Each single lie is tried in `crates/banger-shim/src/hostile_tests.rs`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use banger_e2e::{BOOT, SOON, lib_dir_with_agent, static_program_with};
use banger_testkit::{Host, ImageGuard, wait};

/// Most memory of a shim or a daemon, whatever a guest does. They take 10 to 20 MiB.
const MOST_MEMORY_KIB: u64 = 128 << 10;

/// A field of `/proc/PID/status` in KiB; None if the process is gone.
fn memory_kib(pid: i32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The most that any process of these programs ever had in memory.
fn peak_kib(host: &Host) -> u64 {
    let pids = ["bangerd", "banger-shim"].map(|name| host.processes_named(name)).concat();
    pids.iter().filter_map(|pid| memory_kib(*pid, "VmHWM:")).max().unwrap_or(0)
}

fn commands_a_terminal(text: &str) -> bool {
    text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t'))
}

/// All files and directories of the state but what is in a VM's own, and what the daemon keeps of the
/// agent that it starts there.
fn elsewhere(host: &Host, vm: &str) -> BTreeSet<PathBuf> {
    let (own, made) = (host.vm_dir(vm), host.data.join("cache"));
    let mut found = BTreeSet::new();
    let mut dirs = vec![host.data.clone(), host.runtime.clone(), host.config()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("it is there"));
            if path == own || path == made {
                continue;
            }
            if kind.is_dir() {
                dirs.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}

/// Puts another agent where the daemon takes it from for the next machine.
fn replace_agent(host: &Host, lib: &Path, agent: &Path) {
    let (new, there) = (lib.join("new"), lib.join("banger-agent"));
    host.program("/bin/cp".as_ref(), [agent, new.as_path()]).run().assert_ok();
    host.program("/bin/mv".as_ref(), [new.as_path(), there.as_path()]).run().assert_ok();
}

/// "the VM fails … with a clear reason, other VMs and the daemon unaffected, nothing written outside
/// the VM's directory"
#[test]
fn a_guest_of_garbage_fails_alone() {
    let host = Host::new();
    let lib = lib_dir_with_agent(&host, &host.programs().join("lib/banger-agent"));
    let start = ["run", "-d", "-q", "--name", "neighbour"];
    host.banger(start).env("BANGER_LIB_DIR", &lib).run().assert_ok();
    let daemon = host.daemon_pid();
    let images = ImageGuard::of(&host.data);
    for (mode, reason) in
        [(1, "the guest sent 4 MiB of something else"), (2, "the guest could not be configured")]
    {
        let vm = format!("hostile-{mode}");
        let agent = static_program_with(&host, "hostile_agent", &format!("MODE={mode}"));
        replace_agent(&host, &lib, &agent);
        host.banger(["create", "--name", &vm]).run().assert_ok();
        let before = elsewhere(&host, &vm);
        let mut starting = host.banger(["start", &vm]).timeout(2 * BOOT).spawn();
        let mut peak = 0;
        wait::until("the start ends", 2 * BOOT, || {
            peak = peak.max(peak_kib(&host));
            (!starting.is_running()).then_some(())
        });
        let output = starting.wait().assert_code(125);
        let text = output.stderr_text();
        assert!(text.contains(reason) && text.contains("hint: "), "{output}");
        assert!(!commands_a_terminal(&text), "{output}");
        assert!(peak < MOST_MEMORY_KIB, "{peak} KiB");
        assert_eq!(host.state(&vm).as_deref(), Some("failed"));
        let console = host.banger(["logs", "--console", &vm]).run().assert_ok().stdout_text();
        assert!(!commands_a_terminal(&console), "{console:.300}");
        assert!(!commands_a_terminal(&host.show(&vm).to_string()), "shown");
        let logs: u64 = ["console.log", "console.log.1", "shim.log"]
            .iter()
            .filter_map(|name| std::fs::metadata(host.vm_dir(&vm).join(name)).ok())
            .map(|log| log.len())
            .sum();
        assert!(logs < 9 << 20, "{logs} bytes of logs");
        let after = elsewhere(&host, &vm);
        assert_eq!(before, after, "nothing is written elsewhere");
        images.assert_unchanged(&host.data);
        host.banger(["exec", "neighbour", "--", "true"]).run().assert_ok();
    }
    assert_eq!(host.daemon_pid(), daemon, "the same daemon");
    host.finish();
}

/// "floods logs (console and main) and exec output": host memory is bounded, the machine still obeys.
#[test]
fn floods_of_a_guest_wait_or_are_dropped() {
    let host = Host::new();
    let main = "yes main >&2";
    host.banger(["run", "-d", "-q", "--name", "flood", "--", "sh", "-c", main]).run().assert_ok();
    let console = "yes \"$(printf '\\033[31mred\\033]0;x\\007')\" | head -c 100000 > /dev/console";
    host.banger(["exec", "flood", "--", "sh", "-c", console]).timeout(BOOT).run().assert_ok();
    // Nobody reads this one; the guest has to wait.
    let unread = host.banger(["exec", "flood", "--", "yes", "unread"]).spawn_unread();
    let output = host.banger(["exec", "flood", "--", "sh", "-c", "yes read | head -c 5000000"]);
    assert_eq!(output.timeout(2 * BOOT).run().assert_ok().stdout.len(), 5_000_000);
    let shown = host.banger(["logs", "--console", "flood"]).run().assert_ok().stdout_text();
    assert!(shown.contains("red") && !commands_a_terminal(&shown), "no colours");
    assert!(peak_kib(&host) < MOST_MEMORY_KIB, "{} KiB", peak_kib(&host));
    let cli = memory_kib(unread.pid(), "VmHWM:").expect("it still waits");
    assert!(cli < MOST_MEMORY_KIB, "{cli} KiB in the client");
    host.kill_dash_nine(unread.pid());
    host.banger(["stop", "flood"]).timeout(SOON).run().assert_ok();
    let dir = host.vm_dir("flood");
    for log in ["main.log", "console.log"] {
        let bytes: u64 = [log.to_owned(), format!("{log}.1")]
            .iter()
            .filter_map(|name| std::fs::metadata(dir.join(name)).ok())
            .map(|log| log.len())
            .sum();
        assert!(bytes <= 8 << 20, "{log} has {bytes} bytes");
    }
    drop(unread);
    host.finish();
}
