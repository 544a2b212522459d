//! Random sequences of operations, one after the other and at the same time, on a simulated machine
//! and against the reference model of the testkit.
//!
//! `BANGER_MODEL_SEED=N` repeats a run; `BANGER_MODEL_CASES=N` makes it longer or shorter.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_api::operation::Operation;
use banger_api::vm::{EndCause, StartVm, StopVm, Vm, VmState};
use banger_api::{ErrorCode, Problem};
use banger_core::lifecycle::Request;
use banger_testkit::model::{
    Act, Answer, Asked, Begin, Boot, Machine, NAMES, Reference, Refusal, Step, compare, explain,
};
use futures_util::future::join_all;

use super::{Outcome, Work};
use crate::daemon::Daemon;
use crate::host::simulated::Manner;
use crate::operations::REMEMBERED_COUNT;
use crate::testing::{World, begin, eventually, holds_within, list, outcome, request};

/// How many sequences a run tries, and how many steps each has at most.
const CASES: u32 = 1000;
const STEPS: usize = 24;
/// How long what must come about may take: longer than a busy disk stalls, and no longer, because
/// finding a short sequence that fails takes many that fail.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long whoever asked for something may wait for what comes of it.
const ANSWER: Duration = Duration::from_secs(60);
/// Longer than any test, so that a guest that ignores a stop is not killed for it.
const GRACE: StopVm = StopVm { grace_ms: 3_600_000 };
const REGRESSIONS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/vm/model_tests.txt");

/// "random sequences of CLI operations against a small reference model …, simulated by the thousand"
#[test]
fn the_daemon_does_what_the_model_says() {
    compare(Machine::Simulated, (CASES, STEPS), Some(REGRESSIONS), |steps| run(&steps));
}

/// What was begun and does not end before something else is done.
enum Pending {
    Creation(Operation),
    Start(Work),
    End(Work),
}

/// One life of a daemon.
struct Life<'a> {
    world: &'a World,
    daemon: Arc<Daemon>,
    reference: &'a mut Reference,
    pending: Vec<(usize, Pending)>,
}

fn run(steps: &[Step]) -> Result<(), String> {
    let world = World::in_memory();
    let mut reference = Reference::default();
    for life in steps.split(|step| *step == Step::DaemonKilled) {
        in_a_runtime(async {
            let daemon = world.daemon().await;
            let mut life_of =
                Life { world: &world, daemon, reference: &mut reference, pending: Vec::new() };
            life_of.check("the daemon began").await?;
            for step in life {
                within_answer(life_of.step(step))
                    .await
                    .map_err(|error| format!("{step:?}: {error}"))?;
                life_of.check(&format!("{step:?}")).await?;
            }
            Ok::<(), String>(())
        })?;
        reference.daemon_killed();
    }
    in_a_runtime(within_answer(remove_all(&world)))
}

/// What must come about in any case. One that does not is a sequence that fails, not a test that hangs.
async fn within_answer(step: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let never = || Err(format!("no answer within {} s", ANSWER.as_secs()));
    tokio::time::timeout(ANSWER, step).await.unwrap_or_else(|_| never())
}

/// When it is over everything that a daemon was doing stops, as by `kill -9`.
fn in_a_runtime<T>(future: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(future)
}

async fn remove_all(world: &World) -> Result<(), String> {
    let daemon = world.daemon().await;
    for vm in list(&daemon) {
        let work = daemon
            .find(&vm.name)
            .map_err(|problem| text(&problem))?
            .remove(true)
            .await
            .map_err(|problem| text(&problem))?;
        finish(Ok(work)).await.map_err(|problem| text(&problem))?;
    }
    if !holds_within(PATIENCE, || world.is_clean()).await {
        return Err("all VMs were removed and something is left".to_owned());
    }
    let rows = daemon.store(crate::store::Store::all).await.map_err(|problem| text(&problem))?;
    if rows.is_empty() { Ok(()) } else { Err(format!("rows are left: {rows:?}")) }
}

impl Life<'_> {
    async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::DaemonKilled => unreachable!("it ends a life"),
            Step::One(vm, act) => self.one(*vm, *act).await,
            Step::Together(vm, acts) => self.together(*vm, acts).await,
        }
    }

    async fn one(&mut self, vm: usize, act: Act) -> Result<(), String> {
        self.prepare(vm, act);
        let found = self.act(vm, act).await;
        let expected = self.reference.act(vm, act);
        // A person sees no difference between what is done and what was so.
        if found != expected {
            return Err(format!("wanted {expected:?}, got {found:?}"));
        }
        self.settle(vm).await
    }

    /// Makes the machine behave as the step wants.
    fn prepare(&self, vm: usize, act: Act) {
        let boot = match act {
            Act::Create { boot: Some(boot), .. } | Act::Start(boot) => boot,
            _ => Boot::Good,
        };
        let runs = self.reference.state(vm) == Some(VmState::Running);
        self.world.machine.set_manner(match (boot, act) {
            (_, Act::Stop { ignored: true }) if runs => Manner::Ignores,
            (Boot::Good, _) => Manner::Good,
            (Boot::Hangs, _) => Manner::Hangs,
            (Boot::Fails, _) => Manner::Fails,
            (Boot::Dies, _) => Manner::Dies,
        });
    }

    /// Does it, and says what a person would be told.
    async fn act(&mut self, vm: usize, act: Act) -> Answer {
        if let Act::Create { boot, goes } = act {
            return self.create(vm, boot, goes).await;
        }
        let handle = match self.daemon.find(NAMES[vm]) {
            Ok(handle) => handle,
            Err(_) if matches!(act, Act::Ends(_)) => return Answer::AlreadySo,
            Err(problem) => return refusal(&problem),
        };
        match act {
            Act::Start(boot) => match (handle.start(StartVm::default()).await, boot) {
                (Ok(Outcome::Accepted(work)), Boot::Hangs) => {
                    let machine = &self.world.machine;
                    let dir = PathBuf::from(handle.snapshot().dir);
                    eventually("the boot", || machine.is_alive(&dir)).await;
                    self.pending.push((vm, Pending::Start(work)));
                    Answer::UnderWay
                }
                (verdict, _) => answer(verdict).await,
            },
            Act::Stop { ignored } => match handle.end(Request::Stop, GRACE).await {
                Ok(Outcome::Accepted(work))
                    if ignored && self.reference.state(vm) == Some(VmState::Running) =>
                {
                    eventually("the stop", || handle.state() == VmState::Stopping).await;
                    self.pending.push((vm, Pending::End(work)));
                    Answer::UnderWay
                }
                verdict => answer(verdict).await,
            },
            Act::Kill => answer(handle.end(Request::Kill, GRACE).await).await,
            Act::Restart => match handle.end(Request::Restart, GRACE).await {
                Ok(first) => match finish(Ok(first)).await {
                    Ok(()) => answer(handle.start(StartVm::default()).await).await,
                    Err(problem) => Answer::Failed(problem.code),
                },
                Err(problem) => refusal(&problem),
            },
            Act::Pause => answer(handle.turn(Request::Pause).await).await,
            Act::Resume => answer(handle.turn(Request::Resume).await).await,
            Act::Remove { force } => answer(handle.remove(force).await).await,
            Act::Ends(cause) => {
                let live = handle.state().is_live();
                end_guest(self.world, &handle.snapshot(), cause);
                let _ = handle.ended().await;
                if live { Answer::Done } else { Answer::AlreadySo }
            }
            Act::Create { .. } | Act::Exec => unreachable!("no guest runs commands here"),
        }
    }

    async fn create(&mut self, vm: usize, boot: Option<Boot>, goes: bool) -> Answer {
        let mut wanted = request(NAMES[vm], boot.is_some());
        wanted.spec.remove_on_exit = goes;
        let operation = match begin(&self.daemon, wanted).await {
            Ok(operation) => operation,
            Err(problem) => return refusal(&problem),
        };
        if boot == Some(Boot::Hangs) {
            let alive = self.reference.alive() + 1;
            eventually("the boot", || self.world.machine.alive() == alive).await;
            self.pending.push((vm, Pending::Creation(operation)));
            return Answer::UnderWay;
        }
        match outcome(&self.daemon, &operation).await {
            Ok(_) => Answer::Done,
            Err(problem) => Answer::Failed(problem.code),
        }
    }

    /// What waited for the VM's end, or was overtaken by it, must be told.
    async fn settle(&mut self, vm: usize) -> Result<(), String> {
        if self.reference.state(vm).is_some_and(VmState::is_live) {
            return Ok(());
        }
        let (mine, others) = self.pending.drain(..).partition(|(of, _)| *of == vm);
        self.pending = others;
        for (_, pending) in mine {
            match pending {
                Pending::End(work) => work.finished().await.map_err(|problem| text(&problem))?,
                Pending::Start(work) => match work.finished().await {
                    Ok(()) => return Err("a start that was overtaken went well".to_owned()),
                    Err(problem) => is_an_end(&problem)?,
                },
                Pending::Creation(operation) => match outcome(&self.daemon, &operation).await {
                    Ok(_) => return Err("a run that was overtaken went well".to_owned()),
                    Err(problem) => is_an_end(&problem)?,
                },
            }
        }
        Ok(())
    }

    /// Everybody sees what the model says, and nothing is there that should not be.
    async fn check(&self, after: &str) -> Result<(), String> {
        let expected = self.reference.shown();
        let shown = || {
            let shown = |vm: &Vm| {
                let cause = vm.status.end.as_ref().map(|end| end.cause);
                (vm.name.clone(), vm.status.state, cause)
            };
            let mut shown: Vec<_> = list(&self.daemon).iter().map(shown).collect();
            shown.sort_by(|a, b| a.0.cmp(&b.0));
            shown
        };
        let fits = || {
            let shown = shown();
            shown.len() == expected.len()
                && expected.iter().zip(&shown).all(|(want, found)| {
                    (want.0, want.1, want.2) == (found.0.as_str(), found.1, found.2)
                })
        };
        // A VM that goes by itself does so after whoever waited for its end was told.
        if !holds_within(PATIENCE, fits).await {
            return Err(format!("after {after}: wanted {expected:?}, got {:?}", shown()));
        }
        let directories = || std::fs::read_dir(self.world.dirs.vms()).map_or(0, Iterator::count);
        let is_exact = || {
            directories() == expected.len()
                && self.daemon.handles().len() == expected.len()
                && self.world.machine.alive() == self.reference.alive()
        };
        if !holds_within(PATIENCE, is_exact).await {
            let (directories, alive) = (directories(), self.world.machine.alive());
            return Err(format!("after {after}: {directories} directories, {alive} alive"));
        }
        if self.daemon.operations.list().len() > REMEMBERED_COUNT {
            return Err("operations are kept for ever".to_owned());
        }
        Ok(())
    }

    async fn together(&mut self, vm: usize, acts: &[Act]) -> Result<(), String> {
        use VmState::{Paused, Starting, Stopping};
        // What hangs would hang with the others too, and what stands still has no place among them.
        if matches!(self.reference.state(vm), Some(Starting | Stopping | Paused)) {
            return Ok(());
        }
        self.world.machine.set_manner(Manner::Good);
        let before = Begin { state: self.reference.state(vm), goes: self.reference.goes(vm) };
        let (daemon, world) = (&self.daemon, self.world);
        let asked = join_all(acts.iter().map(|act| ask(daemon, world, vm, *act))).await;
        let operations: Vec<(Act, Asked)> = acts.iter().copied().zip(asked).collect();
        let explained = || {
            let now = find(daemon, vm);
            // Until the daemon has seen how a guest ended, what it says is about to change.
            let is_settled = now.as_ref().is_none_or(|vm| {
                world.machine.is_alive(Path::new(&vm.dir)) == vm.status.state.is_live()
            });
            is_settled && explain(before, &operations, now.map(|vm| vm.status.state))
        };
        if !holds_within(PATIENCE, explained).await {
            let now = find(daemon, vm).map(|vm| vm.status.state);
            return Err(format!("no order explains {operations:?} from {before:?} to {now:?}"));
        }
        let now = find(daemon, vm).map(|vm| {
            (vm.status.state, vm.status.end.map(|end| end.cause), vm.spec.remove_on_exit)
        });
        self.reference.learn(vm, now);
        Ok(())
    }
}

/// One of several operations at the same time.
async fn ask(daemon: &Arc<Daemon>, world: &World, vm: usize, act: Act) -> Asked {
    if let Act::Create { goes, .. } = act {
        let mut wanted = request(NAMES[vm], false);
        wanted.spec.remove_on_exit = goes;
        let made = match begin(daemon, wanted).await {
            Ok(operation) => outcome(daemon, &operation).await.map(drop),
            Err(problem) => Err(problem),
        };
        return made.map_or_else(|problem| refused(&problem), |()| Asked::Went);
    }
    let handle = match daemon.find(NAMES[vm]) {
        Ok(handle) => handle,
        Err(_) if matches!(act, Act::Ends(_)) => return Asked::Overtaken,
        Err(problem) => return refused(&problem),
    };
    let verdict = match act {
        Act::Start(_) => handle.start(StartVm::default()).await,
        Act::Stop { .. } => handle.end(Request::Stop, GRACE).await,
        Act::Kill => handle.end(Request::Kill, GRACE).await,
        Act::Remove { force } => handle.remove(force).await,
        Act::Restart => match handle.end(Request::Restart, GRACE).await {
            Ok(first) => match finish(Ok(first)).await {
                Ok(()) => handle.start(StartVm::default()).await,
                Err(problem) => return refused(&problem),
            },
            Err(problem) => Err(problem),
        },
        Act::Ends(cause) => {
            let ended = end_guest(world, &handle.snapshot(), cause);
            return if ended { Asked::Went } else { Asked::Overtaken };
        }
        Act::Create { .. } | Act::Exec | Act::Pause | Act::Resume => {
            unreachable!("handled above, or not at once")
        }
    };
    match verdict {
        Ok(Outcome::AlreadySo) => Asked::WasSo,
        Ok(Outcome::Accepted(work)) => match work.finished().await {
            Ok(()) => Asked::Went,
            Err(_) => Asked::Overtaken,
        },
        Err(problem) => refused(&problem),
    }
}

/// The VM of that name that people see.
fn find(daemon: &Daemon, vm: usize) -> Option<Vm> {
    list(daemon).into_iter().find(|found| found.name == NAMES[vm])
}

/// Ends a guest as if by itself. Whether there was one.
fn end_guest(world: &World, vm: &Vm, cause: EndCause) -> bool {
    let dir = Path::new(&vm.dir);
    let is_alive = world.machine.is_alive(dir);
    match cause {
        _ if !is_alive => {}
        EndCause::ShimGone => world.machine.vanish(dir),
        cause => world.machine.end(dir, cause),
    }
    is_alive
}

async fn finish(outcome: Result<Outcome, Problem>) -> Result<(), Problem> {
    match outcome? {
        Outcome::Accepted(work) => work.finished().await,
        Outcome::AlreadySo => Ok(()),
    }
}

async fn answer(verdict: Result<Outcome, Problem>) -> Answer {
    match verdict {
        Ok(Outcome::AlreadySo) => Answer::AlreadySo,
        Ok(Outcome::Accepted(work)) => match work.finished().await {
            Ok(()) => Answer::Done,
            Err(problem) => Answer::Failed(problem.code),
        },
        Err(problem) => refusal(&problem),
    }
}

fn refusal(problem: &Problem) -> Answer {
    Answer::Refused(Refusal {
        code: problem.code,
        state: state_in(problem),
        hint: problem.hint.clone().unwrap_or_default(),
    })
}

fn refused(problem: &Problem) -> Asked {
    Asked::Refused(problem.code, state_in(problem))
}

/// The state that a denial gives as its reason.
fn state_in(problem: &Problem) -> Option<VmState> {
    use VmState::{Created, Failed, Paused, Running, Starting, Stopped, Stopping};
    let states = [Created, Starting, Running, Paused, Stopping, Stopped, Failed];
    states.into_iter().find(|state| problem.title.contains(&format!(" is {state}, so ")))
}

/// Whether somebody was told that what they wanted was ended by others.
fn is_an_end(problem: &Problem) -> Result<(), String> {
    match problem.code {
        ErrorCode::Cancelled | ErrorCode::VmNotFound | ErrorCode::BootFailed => Ok(()),
        code => Err(format!("told {code:?} for being overtaken: {problem}")),
    }
}

fn text(problem: &Problem) -> String {
    problem.to_string()
}
