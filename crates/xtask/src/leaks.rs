//! `cargo xtask leaks`: nothing of ours may be on the machine after a test run that was not there
//! before: no process, mount, network namespace, network device, firewall rule, or file outside the
//! state directories that tests made and removed.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::failure::{ChoreFailure, on_file};

/// How long what is ending may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Programs that run only because of us, as `/proc/PID/comm` has them (15 characters).
const OUR_PROGRAMS: [&str; 13] = [
    "banger",
    "bangerd",
    "banger-shim",
    "banger-agent",
    "qemu-system-x86",
    "pasta",
    "pasta.avx2",
    "passt",
    "passt.avx2",
    "mmdebstrap",
    "mke2fs",
    "buildah",
    "docker-registry",
];
/// Places where something of ours could be forgotten.
const PLACES: [&str; 9] = [
    "/tmp",
    "/var/tmp",
    "/run",
    "/run/banger",
    "/run/netns",
    "/dev/shm",
    "/var/lib",
    "/var/lib/banger",
    "/var/lib/banger/vms",
];

/// Writes down what is on the machine.
///
/// # Errors
/// If the file cannot be written.
pub fn snapshot(file: &Path) -> Result<(), ChoreFailure> {
    let lines: Vec<String> = observe().into_iter().collect();
    std::fs::write(file, lines.join("\n")).map_err(on_file("write", file))
}

/// Compares what is on the machine with what `snapshot` wrote down.
///
/// # Errors
/// If anything is there that was not there before, and does not go by itself.
pub fn compare(file: &Path) -> Result<(), ChoreFailure> {
    let before = std::fs::read_to_string(file).map_err(on_file("read", file))?;
    let before: BTreeSet<String> = before.lines().map(str::to_owned).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: Vec<String> = observe().difference(&before).cloned().collect();
        if left.is_empty() {
            println!("nothing was left over");
            return Ok(());
        }
        if Instant::now() > deadline {
            for line in &left {
                println!("left over: {line}");
            }
            return Err(ChoreFailure::Found(format!("{} things were left over", left.len())));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Everything that could be a leak, one line each.
fn observe() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    lines.extend(processes());
    lines.extend(mounts());
    lines.extend(names_in("/sys/class/net").map(|name| format!("network device {name}")));
    lines.extend(firewall().map(|line| format!("firewall {line}")));
    for place in PLACES {
        let ours = |name: &String| {
            place.contains("banger")
                || place.contains("netns")
                || name.contains("banger")
                || name.contains("mmdebstrap")
        };
        lines.extend(names_in(place).filter(ours).map(|name| format!("file {place}/{name}")));
    }
    lines
}

/// Our processes, and every network namespace that some process is in.
fn processes() -> Vec<String> {
    let mut lines = Vec::new();
    for pid in names_in("/proc").filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let proc = Path::new("/proc").join(&pid);
        let comm = std::fs::read_to_string(proc.join("comm")).unwrap_or_default();
        // Names of kernel threads cannot be ours, and a process that just ended has none.
        if OUR_PROGRAMS.contains(&comm.trim()) {
            lines.push(format!("process {pid} {}", comm.trim()));
        }
        if let Ok(namespace) = std::fs::read_link(proc.join("ns/net")) {
            lines.push(format!("network namespace {}", namespace.display()));
        }
    }
    lines
}

fn mounts() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The fifth word is the mount point.
    text.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| format!("mount {point}"))
        .collect()
}

/// Rules in the host's own network namespace, where none of ours belongs.
fn firewall() -> impl Iterator<Item = String> {
    let output = Command::new("nft").args(["list", "tables"]).stderr(Stdio::null()).output().ok();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

fn names_in(dir: &str) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(dir).ok().into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}
