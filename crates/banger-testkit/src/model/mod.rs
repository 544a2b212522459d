//! A small reference model of what banger does with VMs, and random operations to compare it with.
//!
//! [`Reference`] says what must come of one operation after the other. [`explain`] finds an order
//! of operations on one VM that were under way at the same time. Neither knows how the daemon works:
//! what they say is what the documentation promises. The daemon's tests run them by the thousand on
//! a simulated machine, the end-to-end tests with real VMs.

mod order;
mod reference;

use std::fmt;

use banger_api::vm::{EndCause, VmState};
use proptest::prelude::*;
use proptest::test_runner::{
    Config, FailurePersistence, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng,
    TestRunner,
};

pub use order::{Asked, Begin, explain};
pub use reference::{Answer, Reference, Refusal};

/// The names that operations are about: few, so that they meet. None is the beginning of an id.
pub const NAMES: [&str; 3] = ["kim", "lou", "moe"];
/// Environment variable with the seed of a run that is to be repeated.
pub const SEED_VARIABLE: &str = "BANGER_MODEL_SEED";
/// Environment variable with the number of sequences of a run that is to be longer, or shorter.
pub const CASES_VARIABLE: &str = "BANGER_MODEL_CASES";

/// How a guest that is started comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// As it should.
    Good,
    /// It never does, and nobody says so.
    Hangs,
    /// Its supervisor says that it failed.
    Fails,
    /// Its supervisor dies without a word.
    Dies,
}

/// What somebody does to one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// `create`, or `run -d`.
    Create {
        /// It is started at once.
        boot: Option<Boot>,
        /// It is removed when it ends.
        goes: bool,
    },
    /// `start`.
    Start(Boot),
    /// `stop`.
    Stop {
        /// The guest does not listen.
        ignored: bool,
    },
    /// `kill`.
    Kill,
    /// `restart`.
    Restart,
    /// `pause`.
    Pause,
    /// `resume`.
    Resume,
    /// `rm`.
    Remove {
        /// `-f`.
        force: bool,
    },
    /// The guest ends by itself, or somebody kills its supervisor.
    Ends(EndCause),
    /// `exec` of a command that succeeds.
    Exec,
}

/// One step of a run.
#[derive(Clone, PartialEq, Eq)]
pub enum Step {
    /// Something is done to one VM.
    One(usize, Act),
    /// Several things are done to one VM at the same time.
    Together(usize, Vec<Act>),
    /// The daemon is killed, and started again.
    DaemonKilled,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(vm, act) => write!(f, "{}: {act:?}", NAMES[*vm]),
            Self::Together(vm, acts) => write!(f, "{}, at once: {acts:?}", NAMES[*vm]),
            Self::DaemonKilled => write!(f, "the daemon is killed"),
        }
    }
}

/// What a machine can be made to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// Anything, at once.
    Simulated,
    /// What a person can do to real VMs.
    Real,
}

/// A run of at most so many steps; with real VMs, of exactly as many.
pub fn steps(machine: Machine, most: usize) -> impl Strategy<Value = Vec<Step>> {
    let least = if machine == Machine::Real { most } else { 1 };
    prop::collection::vec(step(machine), least..=most)
}

fn step(machine: Machine) -> BoxedStrategy<Step> {
    // Few real VMs, so that most steps meet one that is there.
    let vm = move || 0..if machine == Machine::Real { 2 } else { NAMES.len() };
    let one = (vm(), act(machine)).prop_map(|(vm, act)| Step::One(vm, act));
    let group = prop::collection::vec(rival(machine), 2..=4);
    let together = (vm(), group).prop_map(|(vm, acts)| Step::Together(vm, acts));
    match machine {
        Machine::Simulated => {
            prop_oneof![12 => one, 4 => together, 1 => Just(Step::DaemonKilled)].boxed()
        }
        Machine::Real => {
            prop_oneof![12 => one, 2 => together, 1 => Just(Step::DaemonKilled)].boxed()
        }
    }
}

fn act(machine: Machine) -> BoxedStrategy<Act> {
    let boot = || match machine {
        Machine::Simulated => prop_oneof![
            6 => Just(Boot::Good),
            1 => Just(Boot::Hangs),
            1 => Just(Boot::Fails),
            1 => Just(Boot::Dies),
        ]
        .boxed(),
        Machine::Real => Just(Boot::Good).boxed(),
    };
    let ends = prop_oneof![
        Just(EndCause::GuestPowerOff),
        Just(EndCause::GuestPanic),
        Just(EndCause::ShimGone),
    ];
    let ignored = match machine {
        Machine::Simulated => prop::bool::weighted(0.3).boxed(),
        Machine::Real => Just(false).boxed(),
    };
    let create = (prop::option::weighted(0.7, boot()), prop::bool::weighted(0.3));
    let acts = prop_oneof![
        4 => create.prop_map(move |(boot, goes)| {
            let goes = goes && (boot.is_some() || machine == Machine::Simulated);
            Act::Create { boot, goes }
        }),
        3 => boot().prop_map(Act::Start),
        2 => ignored.prop_map(|ignored| Act::Stop { ignored }),
        1 => Just(Act::Kill),
        1 => Just(Act::Restart),
        2 => Just(Act::Pause),
        1 => Just(Act::Resume),
        2 => any::<bool>().prop_map(|force| Act::Remove { force }),
        2 => ends.prop_map(Act::Ends),
    ];
    match machine {
        // A simulated guest runs no commands.
        Machine::Simulated => acts.boxed(),
        Machine::Real => prop_oneof![15 => acts, 2 => Just(Act::Exec)].boxed(),
    }
}

/// What is done to a VM while other things are done to it.
fn rival(machine: Machine) -> BoxedStrategy<Act> {
    // Nobody can type that a VM shall go without being run.
    let goes = if machine == Machine::Real { Just(false).boxed() } else { any::<bool>().boxed() };
    prop_oneof![
        2 => goes.prop_map(|goes| Act::Create { boot: None, goes }),
        3 => Just(Act::Start(Boot::Good)),
        2 => Just(Act::Stop { ignored: false }),
        2 => Just(Act::Kill),
        2 => Just(Act::Restart),
        2 => any::<bool>().prop_map(|force| Act::Remove { force }),
        1 => Just(Act::Ends(EndCause::GuestPowerOff)),
    ]
    .boxed()
}

/// Whether something of a VM in that state is alive.
fn is_live(state: VmState) -> bool {
    state.is_live()
}

/// Runs so many random sequences, of at most so many steps, through `check`, after those that failed
/// once and are kept in the file `regressions`.
///
/// # Panics
/// With the shortest sequence that fails, and the seed that finds it again.
pub fn compare(
    machine: Machine,
    (cases, most): (u32, usize),
    regressions: Option<&'static str>,
    check: impl Fn(Vec<Step>) -> Result<(), String>,
) {
    let seed = number_in(SEED_VARIABLE).unwrap_or_else(now);
    let cases =
        number_in(CASES_VARIABLE).map_or(cases, |cases| u32::try_from(cases).unwrap_or(u32::MAX));
    let config = Config {
        cases,
        max_shrink_iters: if machine == Machine::Real { 0 } else { 2000 },
        max_shrink_time: 120_000,
        failure_persistence: regressions.map(|file| -> Box<dyn FailurePersistence> {
            Box::new(FileFailurePersistence::Direct(file))
        }),
        ..Config::default()
    };
    crate::say(&format!("{SEED_VARIABLE}={seed}"));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome =
        runner.run(&steps(machine, most), |steps| check(steps).map_err(TestCaseError::fail));
    if let Err(failure) = outcome {
        panic!("{SEED_VARIABLE}={seed} finds it again: {failure}");
    }
}

fn number_in(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(0))
}
