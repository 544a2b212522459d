//! "random sequences of CLI operations against a small reference model …, a few dozen on real VMs,
//! seed printed": the same model as in the daemon's tests, driven through the command line.

use std::time::Duration;

use banger_api::vm::{EndCause, VmState};
use banger_e2e::{BOOT, SOON};
use banger_testkit::model::{
    Act, Answer, Asked, Begin, Machine, NAMES, Reference, Refusal, Step, compare, explain,
};
use banger_testkit::{Host, Leftovers, Output, wait};
use serde_json::Value;

/// How many steps are done on real VMs. Few boot one.
const STEPS: usize = 32;

/// `BANGER_MODEL_SEED` repeats a run, `BANGER_MODEL_CASES` makes it longer.
#[test]
fn the_command_line_does_what_the_model_says() {
    compare(Machine::Real, (1, STEPS), None, |steps| Run::new().all(&steps));
}

struct Run {
    host: Host,
    reference: Reference,
}

impl Run {
    fn new() -> Self {
        Self { host: Host::new(), reference: Reference::default() }
    }

    fn all(mut self, steps: &[Step]) -> Result<(), String> {
        for (number, step) in (1..).zip(steps) {
            banger_testkit::say(&format!("{number}. {step:?}"));
            let done = match step {
                Step::One(vm, act) => self.one(*vm, *act),
                Step::Together(vm, acts) => self.together(*vm, acts),
                Step::DaemonKilled => {
                    if let Some(pid) = self.host.daemon_pid() {
                        self.host.kill_dash_nine(pid);
                    }
                    self.reference.daemon_killed();
                    Ok(())
                }
            };
            done.and_then(|()| self.check())
                .map_err(|error| format!("{number}. {step:?}: {error}"))?;
        }
        self.host.finish();
        Ok(())
    }

    fn one(&mut self, vm: usize, act: Act) -> Result<(), String> {
        let stands_still = self.reference.state(vm) == Some(VmState::Paused);
        // A guest that stands still ends nothing; its supervisor can be killed.
        if stands_still && matches!(act, Act::Ends(cause) if cause != EndCause::ShimGone) {
            return Ok(());
        }
        let expected = self.reference.act(vm, act);
        if let Act::Ends(cause) = act {
            if expected == Answer::Done {
                end_guest(&self.host, NAMES[vm], cause);
            }
            return Ok(());
        }
        let output = self.host.banger(words(vm, act)).timeout(2 * BOOT).run();
        let is_forced_removal = matches!(act, Act::Remove { force: true });
        let fits = match &expected {
            Answer::Done | Answer::AlreadySo => output.code == 0,
            // To remove by force what is not there is no error.
            Answer::Refused(_) if is_forced_removal => output.code == 0,
            Answer::Refused(refusal) => is_refused(&output, refusal),
            Answer::UnderWay | Answer::Failed(_) => unreachable!("real guests come up"),
        };
        if fits { Ok(()) } else { Err(format!("wanted {expected:?}: {output}")) }
    }

    fn together(&mut self, vm: usize, acts: &[Act]) -> Result<(), String> {
        // What stands still has no place among the answers to what happens at once.
        if self.reference.state(vm) == Some(VmState::Paused) {
            return Ok(());
        }
        let before = Begin { state: self.reference.state(vm), goes: self.reference.goes(vm) };
        // A command line does not say whether a guest was there to be ended.
        let acts = acts.iter().filter(|act| !matches!(act, Act::Ends(_)));
        let running: Vec<_> = acts
            .map(|act| (*act, self.host.banger(words(vm, *act)).timeout(2 * BOOT).spawn()))
            .collect();
        let ended: Vec<(Act, Output)> =
            running.into_iter().map(|(act, running)| (act, running.wait())).collect();
        let mut found = None;
        let explained = wait::eventually(SOON, || {
            found = self.shown().into_iter().find(|(name, ..)| name == NAMES[vm]);
            is_explained(before, &ended, found.as_ref().map(|(_, state, _)| *state))
        });
        if !explained {
            let outputs: String = ended.iter().map(|(_, output)| output.to_string()).collect();
            return Err(format!("no order explains, from {before:?} to {found:?}:\n{outputs}"));
        }
        let goes = self.goes(vm);
        self.reference.learn(vm, found.map(|(_, state, cause)| (state, cause, goes)));
        Ok(())
    }

    fn goes(&self, vm: usize) -> bool {
        let shown = self.host.banger(["show", NAMES[vm], "--format", "json"]).run();
        let shown: Option<Value> = serde_json::from_str(&shown.stdout_text()).ok();
        shown.is_some_and(|vm| vm["spec"]["remove_on_exit"] == true)
    }

    /// `ls` shows what the model says.
    fn check(&self) -> Result<(), String> {
        let expected = self.reference.shown();
        let mut shown = Vec::new();
        let fits = wait::eventually(BOOT, || {
            shown = self.shown();
            shown.len() == expected.len()
                && expected.iter().zip(&shown).all(|(want, found)| {
                    (want.0, want.1, want.2) == (found.0.as_str(), found.1, found.2)
                })
                // One that goes by itself is not listed any more, but can still be waited for.
                && NAMES.iter().all(|name| {
                    expected.iter().any(|(wanted, ..)| wanted == name)
                        || self.host.banger(["show", name]).run().code != 0
                })
        });
        if fits { Ok(()) } else { Err(format!("wanted {expected:?}, got {shown:?}")) }
    }

    fn shown(&self) -> Vec<(String, VmState, Option<EndCause>)> {
        let listed = self.host.banger(["ls", "--format", "json"]).run().assert_ok();
        let of_line = |line: &str| {
            let vm: Value = serde_json::from_str(line).expect("one object per line");
            let status = &vm["status"];
            let state = serde_json::from_value(status["state"].clone()).expect("a state");
            let cause = serde_json::from_value(status["end"]["cause"].clone()).ok();
            (vm["name"].as_str().expect("a name").to_owned(), state, cause)
        };
        let mut shown: Vec<_> = listed.stdout_text().lines().map(of_line).collect();
        shown.sort_by(|a, b| a.0.cmp(&b.0));
        shown
    }
}

fn words(vm: usize, act: Act) -> Vec<&'static str> {
    let name = NAMES[vm];
    match act {
        Act::Create { boot: None, .. } => vec!["create", "-q", "--name", name],
        Act::Create { boot: Some(_), goes: false } => vec!["run", "-d", "-q", "--name", name],
        Act::Create { boot: Some(_), goes: true } => {
            vec!["run", "-d", "-q", "--rm", "--name", name]
        }
        Act::Start(_) => vec!["start", name],
        Act::Stop { .. } => vec!["stop", name],
        Act::Kill => vec!["kill", name],
        Act::Restart => vec!["restart", name],
        Act::Pause => vec!["pause", name],
        Act::Resume => vec!["resume", name],
        Act::Remove { force: false } => vec!["rm", name],
        Act::Remove { force: true } => vec!["rm", "-f", name],
        Act::Exec => vec!["exec", name, "--", "true"],
        Act::Ends(_) => unreachable!("nobody types that"),
    }
}

fn is_refused(output: &Output, refusal: &Refusal) -> bool {
    let text = output.stderr_text();
    let says = |state| [", ", "\n"].iter().any(|end| text.contains(&format!(" is {state}{end}")));
    output.code == 125 && text.contains(&refusal.hint) && refusal.state.is_none_or(says)
}

/// A command line tells no difference between what it did and what was so: any of them may fit.
fn is_explained(before: Begin, ended: &[(Act, Output)], now: Option<VmState>) -> bool {
    let readings: Vec<Vec<Asked>> =
        ended.iter().map(|(act, output)| readings(*act, output)).collect();
    let count: usize = readings.iter().map(Vec::len).product();
    (0..count).any(|mut number| {
        let pick = |(choices, (act, _)): (&Vec<Asked>, &(Act, Output))| {
            let choice = choices[number % choices.len()].clone();
            number /= choices.len();
            (*act, choice)
        };
        let operations: Vec<(Act, Asked)> = readings.iter().zip(ended).map(pick).collect();
        explain(before, &operations, now)
    })
}

fn readings(act: Act, output: &Output) -> Vec<Asked> {
    use VmState::{Created, Failed, Paused, Running, Starting, Stopped, Stopping};
    use banger_api::ErrorCode::{VmNameTaken, VmNotFound, VmWrongState};
    let text = output.stderr_text();
    if output.code == 0 {
        let mut readings = vec![Asked::Went, Asked::WasSo];
        if matches!(act, Act::Remove { force: true }) {
            readings.push(Asked::Refused(VmNotFound, None));
        }
        return readings;
    }
    let states = [Created, Starting, Running, Paused, Stopping, Stopped, Failed];
    if let Some(state) =
        states.into_iter().find(|state| text.contains(&format!(" is {state}, so it cannot be ")))
    {
        return vec![Asked::Refused(VmWrongState, Some(state))];
    }
    if text.contains("a VM called ") {
        return vec![Asked::Refused(VmNameTaken, None)];
    }
    vec![Asked::Refused(VmNotFound, None), Asked::Overtaken]
}

/// Ends a guest as if by itself, and waits until that is seen.
fn end_guest(host: &Host, vm: &str, cause: EndCause) {
    let trigger = match cause {
        EndCause::ShimGone => {
            let dir = host.vm_dir(vm);
            let shims = Leftovers::of(&dir).processes;
            for (pid, _) in shims.iter().filter(|(_, line)| line.contains("banger-shim")) {
                // The others may end with the first of them.
                let pid = nix::unistd::Pid::from_raw(*pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            return;
        }
        EndCause::GuestPanic => "c",
        _ => "o",
    };
    let script = format!("echo {trigger} > /proc/sysrq-trigger; sleep 60");
    host.banger(["exec", vm, "--", "sh", "-c", &script]).timeout(Duration::from_secs(90)).run();
}
