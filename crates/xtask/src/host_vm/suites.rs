//! What the development machine cannot test: scripts in `tests/host-vm`, and what happens between
//! them.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::guest::{Who, in_tree};
use super::image::Kind;
use super::machine::Plan;
use super::{HostVmArgs, Session, guest};
use crate::failure::ChoreFailure;

/// A series of steps on one machine.
struct Suite {
    name: &'static str,
    /// What it shows.
    what: &'static str,
    kind: Kind,
    network: bool,
    linger: bool,
    steps: &'static [Step],
}

enum Step {
    /// A script of `tests/host-vm`, in a login session of the ordinary user.
    Script(&'static str),
    /// The same, with the machine's power cut at a moment nobody chose.
    CutDuring(&'static str),
    /// An orderly reboot.
    Reboot,
}

const SUITES: &[Suite] = &[
    Suite {
        name: "smoke",
        what: "a VM on real KVM",
        kind: Kind::Ready,
        network: false,
        linger: false,
        steps: &[Step::Script("smoke")],
    },
    Suite {
        name: "systemd",
        what: "the daemon as a user service; VMs in scopes of their own; logout; reboot",
        kind: Kind::Ready,
        network: false,
        linger: true,
        steps: &[
            Step::Script("systemd"),
            Step::Script("systemd-after-logout"),
            Step::Reboot,
            Step::Script("systemd-after-reboot"),
        ],
    },
    Suite {
        name: "apparmor",
        what: "AppArmor enforcing, and user namespaces refused",
        kind: Kind::Ready,
        network: false,
        linger: false,
        steps: &[Step::Script("apparmor")],
    },
    Suite {
        name: "reboot",
        what: "an orderly reboot with a VM running",
        kind: Kind::Ready,
        network: false,
        linger: true,
        steps: &[
            Step::Script("power-before"),
            Step::Reboot,
            Step::Script("reboot-after"),
            Step::Script("power-after"),
        ],
    },
    Suite {
        name: "power-cut",
        what: "a power cut while VMs are made, written to and removed",
        kind: Kind::Ready,
        network: false,
        linger: true,
        steps: &[
            Step::Script("power-before"),
            Step::CutDuring("power-busy"),
            Step::Script("power-after"),
        ],
    },
    Suite {
        name: "clock",
        what: "jumps of the host's clock",
        kind: Kind::Ready,
        network: false,
        linger: false,
        steps: &[Step::Script("clock")],
    },
    Suite {
        name: "blank",
        what: "script/quickstart on a machine where nothing is installed",
        kind: Kind::Blank,
        network: true,
        linger: false,
        steps: &[Step::Script("blank")],
    },
];

/// Names them.
pub(super) fn list() {
    for suite in SUITES {
        println!("{:<10} {}", suite.name, suite.what);
    }
}

/// Runs one, or all of them, and ends with a line that counts.
pub(super) fn run(name: &str, args: &HostVmArgs) -> Result<ExitCode, ChoreFailure> {
    let chosen: Vec<&Suite> =
        SUITES.iter().filter(|suite| name == "all" || suite.name == name).collect();
    if chosen.is_empty() {
        let text = format!("there is no suite {name}: cargo xtask host-vm --suite list");
        return Err(ChoreFailure::Found(text));
    }
    let (mut passed, mut failed) = (0, 0);
    for suite in chosen {
        let started = Instant::now();
        let outcome = run_twice(suite, args);
        let took = started.elapsed().as_secs();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("suite {}: passed in {took} s", suite.name);
            }
            Err(error) => {
                failed += 1;
                println!("suite {}: FAILED after {took} s: {error}", suite.name);
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a suite; once more, and says so, if the emulation hangs. Nothing in the machine can stop it
/// from answering: what fails in there is an exit code.
fn run_twice(suite: &Suite, args: &HostVmArgs) -> Result<(), ChoreFailure> {
    match run_suite(suite, args) {
        Err(ChoreFailure::Lost(reason)) => {
            println!("host-vm: RETRY of the suite: {reason}");
            run_suite(suite, args)
        }
        outcome => outcome,
    }
}

fn run_suite(suite: &Suite, args: &HostVmArgs) -> Result<(), ChoreFailure> {
    let persistent = suite.steps.iter().any(|step| !matches!(step, Step::Script(_)));
    let plan = Plan { kind: suite.kind, network: suite.network, persistent };
    let mut session = Session::begin(args, plan)?;
    session.machine.prepare(suite.linger)?;
    let outcome = suite.steps.iter().try_for_each(|step| take(step, &mut session, suite));
    if matches!(outcome, Err(ChoreFailure::Lost(_))) {
        return outcome;
    }
    // The logs of a suite that failed are wanted most.
    let ended = session.end(args.keep);
    outcome.and(ended)
}

fn take(step: &Step, session: &mut Session, suite: &Suite) -> Result<(), ChoreFailure> {
    let machine = &mut session.machine;
    match step {
        Step::Script(name) => match machine.ssh(Who::Tester, &script(name))? {
            0 => Ok(()),
            code => Err(ChoreFailure::Found(format!("{name}.sh ended with {code}"))),
        },
        Step::Reboot => {
            println!("host-vm: reboot");
            // The session ends with the machine, so what ssh says of it means nothing.
            let _ = machine.ssh(Who::Root, "systemctl reboot");
            machine.wait_for_end()?;
            machine.boot_again()?;
            machine.prepare(suite.linger)
        }
        Step::CutDuring(name) => {
            let busy = machine.ssh_in_background(Who::Tester, &script(name))?;
            let after = guest::cut_after_first_words(busy, moment())?;
            println!("host-vm: power cut {} ms after the first words", after.as_millis());
            machine.kill();
            machine.boot_again()?;
            machine.prepare(suite.linger)
        }
    }
}

fn script(name: &str) -> String {
    in_tree(&format!("bash tests/host-vm/{name}.sh"))
}

/// Up to three seconds, from the clock's last digits: a moment that nobody chose.
fn moment() -> Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Duration::from_millis(u64::from(now.map_or(0, |now| now.subsec_micros())) % 3000)
}
