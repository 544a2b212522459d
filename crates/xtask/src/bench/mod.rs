//! `cargo xtask bench`: how fast and how small, as ratios taken in the same run.
//!
//! `bench/README.md` says what each figure is.

mod bare;
mod crowds;
mod figures;
mod pulls;
mod starts;

use std::path::Path;
use std::time::Duration;

use banger_testkit::Host;

use crate::failure::{ChoreFailure, on_file};
use crate::{dist, tree};
use figures::{Machine, median, millis, percentile};

const EXECS: usize = 100;
const MANY_VMS: usize = 1000;
/// Between these lines of README.md stands the table.
const MARKS: [&str; 2] = ["<!-- bench:begin -->\n", "<!-- bench:end -->"];

/// One line of the table.
struct Row {
    what: String,
    measured: String,
    wanted: String,
}

impl Row {
    fn new(what: &str, measured: impl Into<String>, wanted: &str) -> Self {
        Self { what: what.into(), measured: measured.into(), wanted: wanted.into() }
    }
}

/// Measures everything and prints the table.
///
/// # Errors
/// If the programs cannot be built, or README.md cannot be changed.
pub fn run(runs: usize, readme: bool) -> Result<(), ChoreFailure> {
    dist::build(dist::Kind::Release)?;
    let host = Host::new();
    let vm = host.running_vm("bench");
    let spec = starts::launch_spec(&host, &vm)?;
    let mut rows = memory(&host, &vm);
    rows.extend(exec(&host, &vm));
    host.banger(["rm", "-f", &vm]).run().assert_ok();
    rows.splice(0..0, starts::measure(&host, &spec, runs)?);
    rows.extend(pulls::measure(&host, runs.min(3)));
    rows.push(many(&host));
    rows.extend(crowds::measure());
    host.banger(["system", "reset", "--yes"]).timeout(Duration::from_secs(600)).run().assert_ok();
    host.finish();
    let table = table(&Machine::this(&spec), &rows);
    println!("{table}");
    if readme { write_readme(&table) } else { Ok(()) }
}

fn exec(host: &Host, vm: &str) -> Vec<Row> {
    let command = || host.banger(["exec", vm, "--", "true"]).run().assert_ok();
    command();
    let servers = [host.processes_named("bangerd"), host.processes_named("banger-shim")].concat();
    let before = figures::cpu_of(&servers);
    let outputs: Vec<_> = (0..EXECS).map(|_| command()).collect();
    let per_exec = |total: Duration| total / u32::try_from(EXECS).expect("a small number");
    let servers = per_exec(figures::cpu_of(&servers).saturating_sub(before));
    let cli = per_exec(outputs.iter().map(|output| output.cpu).sum());
    let mut times: Vec<Duration> = outputs.iter().map(|output| output.took).collect();
    let (p50, p95) = (percentile(&mut times, 50), percentile(&mut times, 95));
    vec![
        Row::new("`exec` of `true`, p50 / p95", format!("{} / {}", millis(p50), millis(p95)), ""),
        Row::new(
            "host CPU per exec: CLI + daemon and shim",
            format!("{} + {}", millis(cli), millis(servers)),
            "≤ 15 ms",
        ),
    ]
}

fn memory(host: &Host, vm: &str) -> Vec<Row> {
    let of = |name: &str| {
        let pids = host.processes_named(name);
        // The shim's processes share their memory; the largest one is the shim.
        let status = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/status")).ok();
        pids.iter().filter_map(status).max_by_key(|text| figures::kib(text, "VmRSS"))
    };
    let row = |what: &str, status: Option<String>, wanted: &str| {
        let text = status.unwrap_or_default();
        let mib = |field| figures::kib(&text, field) as f64 / 1024.0;
        let measured = format!("{:.1} MiB ({:.1} MiB its own)", mib("VmRSS"), mib("RssAnon"));
        Row::new(what, measured, wanted)
    };
    let agent = host.banger(["exec", vm, "--", "cat", "/proc/1/status"]).run().assert_ok();
    let binary = std::fs::metadata(host.programs().join("lib/banger-agent")).map_or(0, |m| m.len());
    vec![
        row("memory of the daemon, idle", of("bangerd"), "≤ 15 MiB"),
        row("memory of a shim", of("banger-shim"), "≤ 8 MiB"),
        row("memory of the agent in the guest", Some(agent.stdout_text()), "≤ 4 MiB"),
        Row::new(
            "size of the agent",
            format!("{:.2} MiB", binary as f64 / f64::from(1 << 20)),
            "≤ 2.5 MiB",
        ),
    ]
}

fn many(host: &Host) -> Row {
    let names: Vec<String> = (0..MANY_VMS).map(|number| format!("many-{number}")).collect();
    for batch in names.chunks(8) {
        let create = |name: &String| host.banger(["create", "-q", "--name", name]).spawn();
        let running: Vec<_> = batch.iter().map(create).collect();
        for cli in running {
            cli.wait().assert_ok();
        }
    }
    let mut times: Vec<Duration> =
        (0..11).map(|_| host.banger(["ls"]).run().assert_ok().took).collect();
    Row::new("`ls` with 1,000 VMs", millis(median(&mut times)), "≤ 50 ms")
}

fn table(machine: &Machine, rows: &[Row]) -> String {
    let mut text = format!("{machine}\n\n| | measured | wanted |\n|---|---|---|\n");
    for row in rows {
        text.push_str(&format!("| {} | {} | {} |\n", row.what, row.measured, row.wanted));
    }
    text
}

fn write_readme(table: &str) -> Result<(), ChoreFailure> {
    let path = tree::root().join("README.md");
    let text = std::fs::read_to_string(&path).map_err(on_file("read", &path))?;
    let Some(fresh) = with_table(&text, table) else {
        return Err(ChoreFailure::Found("README.md has no place for the table".to_owned()));
    };
    write(&path, &fresh)
}

fn write(path: &Path, text: &str) -> Result<(), ChoreFailure> {
    std::fs::write(path, text).map_err(on_file("write", path))
}

fn with_table(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(MARKS[0])?;
    let (_, after) = rest.split_once(MARKS[1])?;
    Some([before, MARKS[0], table, MARKS[1], after].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_replaces_the_one_before() {
        let text = "a\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nb\n";
        let fresh = with_table(text, "new\n").unwrap();
        assert_eq!(fresh, "a\n<!-- bench:begin -->\nnew\n<!-- bench:end -->\nb\n");
        assert_eq!(with_table("nothing", "new"), None);
    }
}
