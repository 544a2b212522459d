//! What machines write: kept small, and followed to its end.

use banger_e2e::{BOOT, SOON, configure};
use banger_testkit::{Host, wait};

const MIB: u64 = 1024 * 1024;
/// How many lines the main process writes, of 64 bytes each: almost four times the limit.
const LINES: u64 = 60_000;

/// The numbers of whole lines, in their order.
fn numbers(text: &str) -> Vec<u64> {
    text.lines().filter_map(|line| line.strip_suffix(" flood")?.trim().parse().ok()).collect()
}

/// What a log and its older half take.
fn bytes(host: &Host, vm: &str, log: &str) -> u64 {
    let length =
        |name: String| std::fs::metadata(host.vm_dir(vm).join(name)).map_or(0, |found| found.len());
    length(log.to_owned()) + length(format!("{log}.1"))
}

/// "logs with rotation and limits" and "a guest that floods logs and output"
#[test]
fn a_flood_is_kept_small_and_is_followed_to_its_end() {
    let host = Host::new();
    configure(&host, "config.toml", "[logs]\nmax_size_mib = 1\n");
    let script = format!("sleep 2; seq -f '%57.0f flood' 1 {LINES}; echo END; exec sleep infinity");
    host.banger(["run", "-d", "-q", "--name", "loud", "--", "sh", "-c", &script]).run().assert_ok();
    let follower = host.banger(["logs", "-f", "loud"]).timeout(BOOT).spawn();
    let tail = |lines: &str| {
        host.banger(["logs", "--tail", lines, "loud"]).run().assert_ok().stdout_text()
    };
    wait::until("the end of the flood", SOON, || (tail("1") == "END\n").then_some(()));
    assert!(bytes(&host, "loud", "main.log") <= MIB + 128 * 1024);
    // More lines than the newer half holds, which depends on where it turned: the tail goes over the
    // boundary, without a gap.
    let newer = std::fs::read_to_string(host.vm_dir("loud").join("main.log")).unwrap();
    let wanted = newer.lines().count() as u64 + 1_000;
    let kept = numbers(&tail(&wanted.to_string()));
    assert_eq!(kept, ((LINES + 2 - wanted)..=LINES).collect::<Vec<_>>());

    let flood = "yes floodfloodflood | head -c 1200000 > /dev/ttyS0";
    host.banger(["exec", "loud", "--", "sh", "-c", flood]).timeout(BOOT).run().assert_ok();
    let console = bytes(&host, "loud", "console.log");
    assert!((MIB / 2..=MIB + 128 * 1024).contains(&console), "{console}");

    host.banger(["stop", "loud"]).run().assert_ok();
    let followed = follower.wait().stdout_text();
    assert!(followed.contains("\nEND\n"), "it went on across the turns");
    let seen = numbers(&followed);
    assert!(seen.is_sorted(), "and in order");
    assert_eq!(seen.last(), Some(&LINES));
    host.finish();
}

/// "a clear refusal" of settings that cannot be
#[test]
fn a_limit_that_cannot_be_is_named() {
    let host = Host::new();
    configure(&host, "config.toml", "[logs]\nmax_size_mib = 0\n");
    let refused = host.banger(["ls"]).run();
    assert_eq!(refused.code, 125, "{refused}");
    let text = refused.stderr_text();
    assert!(text.contains("logs.max_size_mib is 0; from 1 to 1024 are possible"), "{text}");
    // Nor does it look as if all were well to those that only ask after the daemon.
    let started = host.banger(["daemon", "start"]).run().assert_code(125);
    started.assert_stderr_has("logs.max_size_mib is 0");
    let doctor = host.banger(["doctor"]).run();
    assert_ne!(doctor.code, 0, "{doctor}");
    assert!(doctor.stdout_text().contains("logs.max_size_mib is 0"), "{doctor}");
    configure(&host, "config.toml", "[logs]\nmax_size_mib = 2\n");
    host.banger(["ls"]).run().assert_ok();
    host.finish();
}
