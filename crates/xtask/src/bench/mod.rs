//! `cargo xtask bench`: how fast and how small, as ratios taken in the same run; with `--instant`, how
//! quickly a VM comes and goes beside others.
//!
//! `bench/README.md` says what each figure is.

mod bare;
mod crowds;
mod figures;
mod instant;
mod pulls;
mod readme;
mod starts;

use std::time::Duration;

use banger_testkit::Host;
use clap::Args;

use crate::dist;
use crate::failure::ChoreFailure;
use figures::{Machine, median, millis, percentile};

const EXECS: usize = 100;
const MANY_VMS: usize = 1000;
/// How often each start is measured unless something else is said.
const STARTS: usize = 7;

/// What is measured.
#[derive(Debug, Args)]
pub struct Selection {
    /// How often each start is measured [default: 7; 50 with --instant, for slow peers less].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    runs: Option<u16>,
    /// Put the table into README.md.
    #[arg(long)]
    readme: bool,
    /// Only how long it takes until a VM has run `true` and is gone, beside others that do the same,
    /// and what many at once take; installs those others. With --readme also draws docs/instant-start.svg.
    #[arg(long)]
    instant: bool,
}

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

    fn line(&self) -> String {
        format!("| {} | {} | {} |\n", self.what, self.measured, self.wanted)
    }
}

/// Measures what was selected and prints the table.
///
/// # Errors
/// If the programs cannot be built, or README.md cannot be changed.
pub fn run(selection: &Selection) -> Result<(), ChoreFailure> {
    let runs = |default| selection.runs.map_or(default, usize::from);
    match selection.instant {
        true => instant::run(runs(instant::RUNS), selection.readme),
        false => everything(runs(STARTS), selection.readme),
    }
}

fn everything(runs: usize, into_readme: bool) -> Result<(), ChoreFailure> {
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
    if into_readme { readme::write(readme::EVERYTHING, &table) } else { Ok(()) }
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
    rows.iter().for_each(|row| text.push_str(&row.line()));
    text
}
