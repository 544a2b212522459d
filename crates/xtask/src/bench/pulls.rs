//! How long a pull takes, beside what does the same with the tools there were before.

use std::path::Path;
use std::time::{Duration, Instant};

use banger_testkit::Host;
use banger_testkit::registry::RegistryServer;

use super::Row;
use super::figures::{kib, median, millis};

/// What is pulled: Debian with some programs, about 250 MB of files, as one layer of gzip.
const IMAGE: &str = "debian-bookworm";
const NAME: &str = "bench/debian:1";
const PROGRAMS: [&str; 4] = ["docker-registry", "skopeo", "umoci", "mke2fs"];
/// How often an unchanged tag is pulled again.
const AGAIN: usize = 11;

/// Measures pulls from a registry on loopback, ours and the others' by turns.
pub(super) fn measure(host: &Host, runs: usize) -> Vec<Row> {
    if let Some(missing) = PROGRAMS.iter().find(|program| !is_installed(program)) {
        return vec![Row::new("pulls", format!("not measured: there is no {missing}"), "")];
    }
    let dir = host.scratch.join("registry");
    std::fs::create_dir_all(&dir).expect("the scratch directory is ours");
    let registry = RegistryServer::start(&dir);
    let reference = registry.reference(NAME);
    let long = Duration::from_secs(600);
    host.banger(["image", "push", IMAGE, &reference]).timeout(long).run().assert_ok();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..runs {
        // What is known of it is forgotten, and the daemon has not grown yet.
        if run > 0 {
            host.banger(["image", "rm", &reference]).run().assert_ok();
        }
        host.banger(["daemon", "stop"]).run().assert_ok();
        host.banger(["ls"]).run().assert_ok();
        ours.push(host.banger(["image", "pull", &reference]).timeout(long).run().assert_ok().took);
        theirs.push(with_other_tools(host, &reference));
    }
    let peak_kib = host.processes_named("bangerd").iter().map(peak_of).max().unwrap_or(0);
    let mut again: Vec<Duration> = (0..AGAIN)
        .map(|_| host.banger(["image", "pull", &reference]).run().assert_ok().took)
        .collect();
    host.banger(["image", "rm", &reference]).run().assert_ok();
    let (ours, theirs) = (median(&mut ours).as_secs_f64(), median(&mut theirs).as_secs_f64());
    vec![
        Row::new(
            "`skopeo copy`, `umoci unpack`, `mke2fs -d` of that",
            format!("{theirs:.2} s"),
            "",
        ),
        Row::new(
            "`image pull` of Debian, one layer, to a disk that boots",
            format!("{ours:.2} s, **{:.2} ×** the others", ours / theirs),
            "≤ 0.6 ×",
        ),
        Row::new("`image pull` of an unchanged tag", millis(median(&mut again)), "≤ 50 ms"),
        Row::new(
            "peak memory of the daemon that pulled",
            format!("{:.1} MiB", peak_kib as f64 / 1024.0),
            "≤ 100 MiB",
        ),
    ]
}

/// The same with other tools: from the registry to an ext4 disk of the same size.
fn with_other_tools(host: &Host, reference: &str) -> Duration {
    let work = host.scratch.join("other-tools");
    std::fs::create_dir_all(&work).expect("the scratch directory is ours");
    let layout = format!("oci:{}:x", work.join("layout").display());
    let source = format!("docker://{reference}");
    let image = format!("{}:x", work.join("layout").display());
    let bundle = work.join("bundle");
    let (disk, tree) = (work.join("disk"), bundle.join("rootfs"));
    let path = |path: &Path| path.display().to_string();
    let begin = Instant::now();
    tool(host, "skopeo", &["copy", "-q", "--src-tls-verify=false", &source, &layout]);
    tool(host, "umoci", &["unpack", "--image", &image, &path(&bundle)]);
    tool(host, "mke2fs", &["-q", "-F", "-t", "ext4", "-d", &path(&tree), &path(&disk), "8G"]);
    let took = begin.elapsed();
    std::fs::remove_dir_all(&work).expect("the scratch directory is ours");
    took
}

fn tool(host: &Host, program: &str, arguments: &[&str]) {
    let search = Path::new("/usr/bin/env");
    let words = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", program].into_iter();
    let words = words.chain(arguments.iter().copied());
    host.program(search, words).timeout(Duration::from_secs(600)).run().assert_ok();
}

fn is_installed(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(program).exists())
}

/// The most memory that a process ever had, in KiB.
fn peak_of(pid: &i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kib(&status, "VmHWM")
}
