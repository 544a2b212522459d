//! `run --trace`: where the time of a start and an end went.

use banger_testkit::{Host, Output};
use serde_json::Value;

/// What a VM that begins from a template goes through, in the order in which that begins.
const WARM: [&str; 26] = [
    "cli.begin",
    "cli.daemon",
    "cli.request",
    "daemon.check",
    "daemon.row",
    "daemon.files",
    "daemon.needs",
    "daemon.template",
    "daemon.seed",
    "daemon.launch",
    "daemon.shim",
    "shim.begin",
    "shim.network",
    "shim.vmm",
    "vmm.begin",
    "vmm.load",
    "vmm.resume",
    "guest.greet",
    "guest.configure",
    "shim.up",
    "daemon.ready",
    "cli.exec",
    "command.start",
    "command.run",
    "daemon.end",
    "daemon.remove",
];

/// The stages of a run in the order in which they began, with their times.
fn stages(output: &Output) -> Vec<(String, u64, u64)> {
    let stage = |line: &str| {
        let stage: Value = serde_json::from_str(line).expect("an object per line");
        let number = |name: &str| stage[name].as_u64().expect("a number");
        let name = stage["stage"].as_str().expect("a name").to_owned();
        (name, number("began_us"), number("took_us"))
    };
    output.stderr_text().lines().map(stage).collect()
}

/// "the stages are there and in order for a warm run": of every process, on one clock.
#[test]
fn a_warm_run_tells_its_stages_in_order() {
    let host = Host::new();
    let traced = ["run", "--rm", "--trace", "--format", "json", "--", "echo", "its own"];
    let output = host.banger(traced).run().assert_ok().assert_stdout("its own\n");
    let stages = stages(&output);
    let began: Vec<u64> = WARM
        .iter()
        .map(|wanted| {
            let of_it = stages.iter().filter(|(name, ..)| name == wanted);
            let of_it: Vec<u64> = of_it.map(|(_, began_us, _)| *began_us).collect();
            assert_eq!(of_it.len(), 1, "{wanted}: {stages:?}");
            of_it[0]
        })
        .collect();
    assert!(began.is_sorted(), "{stages:?}");
    assert_eq!(began[0], 0);
    for beside in ["shim.rules", "shim.uplink", "shim.kill", "cli.end"] {
        assert!(stages.iter().any(|(name, ..)| name == beside), "{beside}: {stages:?}");
    }
    assert!(!stages.iter().any(|(name, ..)| name == "guest.boot"), "{stages:?}");
    let last = stages.iter().map(|(_, began_us, took_us)| began_us + took_us).max();
    assert!(last < Some(60_000_000), "microseconds since its beginning: {stages:?}");
    host.finish();
}

/// A boot is one stage; people get a table; who does not ask gets nothing.
#[test]
fn a_boot_is_a_stage_and_nobody_is_told_unasked() {
    let host = Host::new();
    let cold = host.banger(["run", "--rm", "--cold", "--trace", "-q", "--", "true"]).run();
    let table = cold.assert_ok().stderr_text();
    let row = |name: &str| table.lines().any(|line| line.starts_with(name));
    assert!(row("STAGE") && row("guest.boot") && !row("vmm.load"), "{table}");
    let quiet = host.banger(["run", "--rm", "-q", "--", "true"]).run().assert_ok();
    assert_eq!(quiet.stderr_text(), "");
    host.finish();
}
