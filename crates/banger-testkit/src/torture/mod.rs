//! Breaking real machines: every step × every process × every way, one case at a time.
//!
//! A case does an operation with programs that have fail points, breaks one process at one step,
//! ends the daemon by `kill -9`, and looks: what was reported as done is still done, the operation
//! can be repeated and works, and nothing is left over. A process breaks at its own steps by its
//! fail point; at a step of another process that step is held meanwhile, and the process gets a
//! signal: SIGKILL for a crash, SIGTERM for a failure, SIGSTOP for a stall.

mod doing;
mod promises;
mod props;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use banger_api::shim::SHIM_LOG_FILE;
use banger_api::step::{self, Effect, Failing, Process, Step, Who};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::Host;
use crate::invocation::{Output, Running};
use crate::wait;
use doing::{Doing, Props};
use promises::DONE;

/// How long a command may take that need not hang, and a step to be reached.
const END: Duration = Duration::from_secs(120);
/// How long a process that was started may take to become the program that it shall run.
const COMES: Duration = Duration::from_secs(1);
/// The exit code of what is banger's own failure.
const BANGERS_OWN: i32 = 125;
/// How long a command is watched that has every right to hang.
const HANG: Duration = Duration::from_secs(2);

/// How it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// It ends at once.
    Crash,
    /// It fails.
    Fail,
    /// It does not go on.
    Stall,
}

/// One thing that breaks at one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Where.
    pub step: Step,
    /// Who.
    pub who: Who,
    /// How.
    pub what: What,
}

/// What came of a case whose promises held. One that did not hold panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It broke, and every promise held.
    Held,
    /// The process does not live at that step.
    Nobody,
}

/// Every way to break.
pub const WAYS: [What; 3] = [What::Crash, What::Fail, What::Stall];

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Crash => "crash",
            Self::Fail => "fail",
            Self::Stall => "stall",
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.step, self.who, self.what)
    }
}

/// The full product.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (_, step) in step::ALL {
        for who in Who::EVERYBODY {
            cases.extend(WAYS.map(|what| Case { step: *step, who, what }));
        }
    }
    cases
}

/// The case of that name, as [`Case`] prints it.
#[must_use]
pub fn case(name: &str) -> Option<Case> {
    cases().into_iter().find(|case| case.to_string() == name)
}

impl Case {
    /// Whether the process breaks by its own fail point.
    fn is_own(self) -> bool {
        self.who.is(self.step.process())
    }

    fn effect(self) -> Effect {
        match self.what {
            _ if !self.is_own() => Effect::Hold,
            What::Crash => Effect::Crash,
            What::Stall => Effect::Stall,
            // A full disk can be met at every step; a guest's own disk breaks in other ways.
            What::Fail if self.who == Who::Agent => Effect::Fail(Failing::Eio),
            What::Fail => Effect::Fail(Failing::Enospc),
        }
    }

    /// Whether it breaks none of the processes that make up a VM.
    fn spares_the_vm(self) -> bool {
        [Who::Daemon, Who::Cli].contains(&self.who)
    }

    /// Whether this can happen at all: a VM's processes are there only if a VM is; the agent is out
    /// of reach but at its own steps, and its steps cannot be held from outside.
    fn can_happen(self) -> bool {
        let lives = self.spares_the_vm() || Doing::of(self.step).has_a_vm();
        let in_reach = self.who != Who::Agent && self.step.process() != Process::Agent;
        self.is_own() || (lives && in_reach)
    }
}

/// Runs a case to its end.
///
/// # Panics
/// If a promise is broken.
#[must_use]
pub fn run(case: Case) -> Verdict {
    if !case.can_happen() {
        return Verdict::Nobody;
    }
    let mut bench = Bench::new(Doing::of(case.step));
    let (verdict, reported) = bench.break_it(case);
    bench.start_again();
    if reported {
        bench.check_reported(case);
    }
    bench.check_untouched(case);
    bench.check_and_repeat(case);
    bench.wait_for_removals();
    bench.host.finish();
    verdict
}

/// A host whose programs have fail points, and the directory that arms them.
struct Bench {
    host: Host,
    faults: PathBuf,
    doing: Doing,
    props: Props,
}

impl Bench {
    fn new(doing: Doing) -> Self {
        let pool = u32::from(doing.has_a_pool());
        let builder = Host::builder().with_fail_points().templates(doing.has_templates());
        let mut host = builder.pool(pool).build();
        let faults = host.scratch.join("faults");
        host.account.make_dir(&faults);
        host.set_env("BANGER_FAULTS", &faults);
        Self { host, faults, doing, props: Props::default() }
    }

    fn arm(&self, case: Case) {
        let file = self.faults.join(case.step.name());
        std::fs::write(&file, case.effect().to_string()).expect("our own directory");
        self.host.account.own(&file);
    }

    fn is_sprung(&self, case: Case) -> bool {
        self.faults.join(format!("{}.sprung", case.step)).exists()
    }

    /// Also says whether the command has reported success.
    fn break_it(&mut self, case: Case) -> (Verdict, bool) {
        // The agent learns at its boot what shall happen to it.
        let early = case.step.process() == Process::Agent && self.doing != Doing::Start;
        if early {
            self.arm(case);
        }
        self.prepare();
        if !early {
            self.arm(case);
        }
        let mut command = self.operation().spawn();
        let mut ended = false;
        wait::eventually(self.doing.patience(), || {
            ended = !command.is_running();
            self.is_sprung(case) || ended
        });
        // The daemon may take it after the command's end.
        if !wait::eventually(COMES, || self.is_sprung(case)) {
            if command.is_running() {
                command.signal(Signal::SIGKILL);
            }
            panic!("{case}: the step was not reached: {}", command.wait());
        }
        let verdict = match case.is_own() {
            true => Verdict::Held,
            false => self.strike(case, &mut command),
        };
        let patience = match case.what {
            What::Stall => HANG,
            _ => self.doing.patience(),
        };
        let ended = wait::eventually(patience, || !command.is_running());
        if !ended {
            command.signal(Signal::SIGKILL);
        }
        let output = command.wait();
        assert!(ended || case.what == What::Stall, "{case}: the command hung: {output}");
        if output.code == 0 && self.doing.is_a_command() {
            assert_eq!(output.stdout_text(), DONE, "{case}: what is reported as done was done");
        }
        if output.code == BANGERS_OWN {
            assert!(output.stderr_text().contains("error: "), "{case}: it says nothing: {output}");
        }
        self.check_nobody_panicked(case, &output);
        // A daemon that is stopped answers nobody.
        let is_deaf = (case.who, case.what) == (Who::Daemon, What::Stall);
        let reported = output.code == 0;
        if reported && !is_deaf {
            self.check_reported(case);
        }
        (verdict, reported)
    }

    /// To fail is to say so, never to fall over.
    fn check_nobody_panicked(&self, case: Case, output: &Output) {
        let mut said = vec![output.stderr_text()];
        let vms = std::fs::read_dir(self.host.data.join("vms")).into_iter().flatten().flatten();
        let logs = vms.map(|vm| vm.path().join(SHIM_LOG_FILE));
        for log in logs.chain([self.host.data.join("daemon.log")]) {
            let bytes = std::fs::read(&log).unwrap_or_default();
            said.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        for text in said {
            assert!(!text.contains("panicked at"), "{case}: {text}");
        }
    }

    /// Breaks somebody while somebody else's step is held.
    fn strike(&self, case: Case, command: &mut Running) -> Verdict {
        let signal = match case.what {
            What::Crash => Signal::SIGKILL,
            What::Fail => Signal::SIGTERM,
            What::Stall => Signal::SIGSTOP,
        };
        let struck = match case.who {
            Who::Daemon => self.signal_all("bangerd", signal),
            Who::Shim => self.signal_all("banger-shim", signal),
            Who::Vmm => self.signal_who_comes("qemu-system-x86_64", signal),
            Who::Pasta => self.signal_who_comes("pasta", signal),
            Who::Cli => {
                // It need not wait for a daemon that goes on by itself.
                let lives = command.is_running();
                if lives {
                    command.signal(signal);
                }
                lives
            }
            Who::Agent => false,
        };
        let release = self.faults.join(format!("{}.release", case.step));
        std::fs::write(release, "").expect("our own directory");
        if struck { Verdict::Held } else { Verdict::Nobody }
    }

    /// The same for a program that others start: its process may not be it yet.
    fn signal_who_comes(&self, name: &str, signal: Signal) -> bool {
        wait::eventually(COMES, || !self.host.processes_named(name).is_empty());
        self.signal_all(name, signal)
    }

    fn signal_all(&self, name: &str, signal: Signal) -> bool {
        let pids = self.host.processes_named(name);
        for pid in &pids {
            // It may have ended with another of them.
            let _ = kill(Pid::from_raw(*pid), signal);
        }
        !pids.is_empty()
    }

    /// Ends the daemon as abruptly as can be; the next command starts another one.
    fn start_again(&self) {
        self.signal_all("bangerd", Signal::SIGKILL);
        wait::until("the daemon is gone", END, || self.host.daemon_pid().is_none().then_some(()));
    }

    /// A daemon takes removals up again beside its work; one that is stopped meanwhile leaves the
    /// rest to the next.
    fn wait_for_removals(&self) {
        wait::until("the removals have ended", END, || {
            let entries = std::fs::read_dir(self.host.data.join("vms")).into_iter().flatten();
            let going = |name: &str| name.starts_with(".deleting-");
            let mut names = entries.flatten().map(|entry| entry.file_name());
            (!names.any(|name| going(&name.to_string_lossy()))).then_some(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let all = cases();
        assert_eq!(all.len(), step::ALL.len() * Who::EVERYBODY.len() * WAYS.len());
        for one in all {
            assert_eq!(case(&one.to_string()), Some(one));
        }
    }
}
