//! What may be asked of a VM in which state, and what a VM is whose shim is gone.
//!
//! ```text
//!            start                 guest configured         pause, resume
//!  created ─────────▶ starting ──────────────────────▶ running ◀──▶ paused
//!                       ▲  │                             │ │
//!                 start │  │ never came up          stop │ │ ended by itself, kill
//!                       │  ▼                             ▼ ▼
//!        stopped, failed ◀───────────────────────── stopping
//! ```

use banger_api::vm::{EndCause, PauseReason, VmEnd, VmState, VmStatus};
use banger_api::{ErrorCode, Problem};

pub use crate::vanished::{ShimExit, Traces};

/// What somebody wants of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// That it runs.
    Start,
    /// That it ends cleanly.
    Stop,
    /// That it ends now.
    Kill,
    /// That it ends cleanly and starts again.
    Restart,
    /// That it ends now, as it stands still, to become what it was at another time.
    GoBack,
    /// That it stands still.
    Pause,
    /// That it goes on.
    Resume,
    /// That it is no more.
    Remove {
        /// Even if it runs.
        force: bool,
    },
}

/// What comes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It shall be done.
    Accept,
    /// It is already so, or already under way.
    AlreadySo,
    /// It cannot be.
    Deny(Denial),
}

/// Why a request cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The state that does not allow it.
    pub state: VmState,
    /// One sentence for people.
    pub reason: String,
    /// What to type first.
    pub hint: String,
}

impl From<Denial> for Problem {
    fn from(denial: Denial) -> Self {
        Self::new(ErrorCode::VmWrongState, denial.reason).hint(denial.hint)
    }
}

/// What comes of `request` to the VM called `name` in `state`.
#[must_use]
pub fn decide(name: &str, state: VmState, request: Request) -> Decision {
    use VmState::{Created, Failed, Paused, Running, Starting, Stopped, Stopping};
    let deny = |first: &str| Decision::Deny(denial(name, state, request, first));
    match (request, state) {
        (Request::Start | Request::Restart, Created | Stopped | Failed) => Decision::Accept,
        (Request::Start, Starting | Running) => Decision::AlreadySo,
        // Whoever starts a VM wants it to run.
        (Request::Start, Paused) => deny("resume"),
        (Request::Start | Request::Restart, Stopping) => deny("wait"),
        (Request::Restart, Starting) => deny("look"),
        (Request::Restart, Running | Paused) => Decision::Accept,

        (Request::Pause, Running) | (Request::Resume, Paused) => Decision::Accept,
        (Request::Pause, Paused) | (Request::Resume, Running) => Decision::AlreadySo,
        (Request::Pause | Request::Resume, Stopping) => deny("wait"),
        (Request::Pause | Request::Resume, Created | Starting | Stopped | Failed) => deny("start"),

        (Request::Stop | Request::Kill, Created | Stopped | Failed) => Decision::AlreadySo,
        (Request::Stop, Stopping) => Decision::AlreadySo,
        (Request::Stop | Request::Kill, Starting | Running | Paused) => Decision::Accept,
        (Request::Kill, Stopping) => Decision::Accept,

        (Request::GoBack, Created | Stopped | Failed) => Decision::AlreadySo,
        (Request::GoBack, Paused) => Decision::Accept,
        (Request::GoBack, Stopping) => deny("wait"),
        (Request::GoBack, Starting | Running) => deny("stop"),

        (Request::Remove { force: true }, _) => Decision::Accept,
        (Request::Remove { force: false }, Created | Stopped | Failed) => Decision::Accept,
        (Request::Remove { force: false }, Stopping) => deny("wait"),
        (Request::Remove { force: false }, Starting | Running | Paused) => deny("stop"),
    }
}

/// The same for a VM of which more is known than its state: one that stands still for another reason
/// has not been paused yet.
#[must_use]
pub fn decide_about(name: &str, status: &VmStatus, request: Request) -> Decision {
    let is_paused = status.paused.contains(&PauseReason::Requested);
    match (request, status.state) {
        (Request::Pause, VmState::Paused) if !is_paused => Decision::Accept,
        _ => decide(name, status.state, request),
    }
}

fn denial(name: &str, state: VmState, request: Request, first: &str) -> Denial {
    let verb = match request {
        Request::Start => "started",
        Request::Stop => "stopped",
        Request::Kill => "killed",
        Request::Restart => "restarted",
        Request::GoBack => "restored",
        Request::Pause => "paused",
        Request::Resume => "resumed",
        Request::Remove { .. } => "removed",
    };
    let reason = format!("VM {name} is {state}, so it cannot be {verb}");
    let hint = match first {
        "wait" => format!("banger wait {name}"),
        // Of one that is starting already this waits until it runs.
        "start" => format!("banger start {name}"),
        "resume" => format!("banger resume {name}"),
        "stop" => format!("banger stop {name}, or banger rm --force {name}"),
        _ => format!("banger logs --console {name}"),
    };
    Denial { state, reason, hint }
}

/// What the daemon wants a VM to do; recorded before it acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Desired {
    /// Stand still.
    Stopped,
    /// Run.
    Running,
}

impl Desired {
    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Running => "running",
        }
    }

    /// Reads the word in the database.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Stopped, Self::Running].into_iter().find(|desired| desired.as_str() == text)
    }
}

/// What is known of a VM that no shim runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    /// What the daemon wanted of it.
    pub desired: Desired,
    /// What the daemon recorded when it last ended.
    pub recorded: Option<VmStatus>,
    /// What its shim wrote last.
    pub written: Option<VmStatus>,
    /// When it was created.
    pub created_at_ms: u64,
    /// What tells how its shim ended.
    pub traces: Traces,
}

/// The state of a VM that no shim runs. A shim that vanished without a word made it fail.
#[must_use]
pub fn settle(remains: Remains, now_ms: u64) -> VmStatus {
    let Remains { desired, recorded, written, created_at_ms, traces } = remains;
    if desired == Desired::Stopped {
        return recorded.unwrap_or_else(|| fresh(VmState::Created, created_at_ms));
    }
    match written {
        Some(status) if matches!(status.state, VmState::Stopped | VmState::Failed) => status,
        Some(status) => {
            let known = VmStatus { paused: Vec::new(), ..status };
            VmStatus { state: VmState::Failed, since_ms: now_ms, end: Some(traces.end()), ..known }
        }
        // What is recorded is how an earlier run ended; a power cut took what this one wrote.
        None if traces.rebooted => {
            VmStatus { end: Some(traces.end()), ..fresh(VmState::Failed, now_ms) }
        }
        None => recorded.unwrap_or_else(|| VmStatus {
            end: Some(traces.of_an_interrupted_start()),
            ..fresh(VmState::Failed, now_ms)
        }),
    }
}

/// What the shim of a VM that ended said last: in its file; if there was no room for that, to the
/// daemon that `heard` it. One that said nothing was last seen alive.
#[must_use]
pub fn last_word(written: Option<VmStatus>, heard: Option<VmStatus>, seen: VmStatus) -> VmStatus {
    match (written, heard) {
        (Some(status), _) if !status.state.is_live() => status,
        (_, Some(status)) | (Some(status), None) => status,
        (None, None) => seen,
    }
}

/// A status of which nothing but the state is known.
#[must_use]
pub fn fresh(state: VmState, since_ms: u64) -> VmStatus {
    VmStatus {
        state,
        since_ms,
        paused: Vec::new(),
        end: None,
        engine: None,
        boot_ms: None,
        origin: None,
        resources: None,
        warnings: Vec::new(),
        restarts: 0,
        next_start_ms: None,
    }
}

/// An end of which nothing but the cause is known.
#[must_use]
pub fn plain_end(cause: EndCause, reason: &str) -> VmEnd {
    VmEnd { cause, reason: reason.to_owned(), main: None, console_tail: Vec::new() }
}

/// What a daemon that starts knows of a VM in its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Something may still write its disks.
    pub locked: bool,
    /// Its removal had begun.
    pub deleting: bool,
    /// The request that creates it had not succeeded.
    pub unfinished: bool,
    /// It is to be removed when it ends.
    pub remove_on_exit: bool,
    /// What the former daemon wanted of it.
    pub desired: Desired,
}

/// What a daemon that starts does with a VM in its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// Watch it: it runs.
    Watch,
    /// Record how it ended.
    Settle,
    /// Remove it, killing it first if it runs.
    Remove,
}

/// What to do with a VM that was found.
#[must_use]
pub fn plan_adoption(found: Found) -> Adoption {
    let ended_unwatched =
        !found.locked && found.remove_on_exit && found.desired == Desired::Running;
    if found.deleting || found.unfinished || ended_unwatched {
        Adoption::Remove
    } else if found.locked {
        Adoption::Watch
    } else {
        Adoption::Settle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_is_the_one_that_says_the_end() {
        let status = |since_ms, state| fresh(state, since_ms);
        let (end, live) = (VmState::Stopped, VmState::Running);
        let seen = status(9, live);
        let cases = [
            (Some(status(1, end)), Some(status(2, end)), 1),
            (Some(status(1, live)), Some(status(2, end)), 2),
            (None, Some(status(2, end)), 2),
            (Some(status(1, live)), None, 1),
            (None, None, 9),
        ];
        for (written, heard, want) in cases {
            assert_eq!(last_word(written, heard, seen.clone()).since_ms, want);
        }
    }

    #[test]
    fn a_power_cut_in_a_later_run_is_not_an_earlier_end() {
        let earlier = VmStatus {
            end: Some(plain_end(EndCause::Stopped, "earlier")),
            ..fresh(VmState::Stopped, 1)
        };
        let remains = |rebooted| Remains {
            desired: Desired::Running,
            recorded: Some(earlier.clone()),
            written: None,
            created_at_ms: 0,
            traces: Traces { rebooted, ..Traces::default() },
        };
        let cause = |rebooted| settle(remains(rebooted), 2).end.map(|end| end.cause);
        assert_eq!(cause(true), Some(EndCause::HostRestarted));
        assert_eq!(cause(false), Some(EndCause::Stopped), "it never began");
    }

    #[test]
    fn every_request_in_every_state() {
        use VmState::{Created, Failed, Paused, Running, Starting, Stopped, Stopping};
        let states = [Created, Starting, Running, Paused, Stopping, Stopped, Failed];
        // One letter per state: accept, already so, deny.
        let table = [
            (Request::Start, "a s s d d a a"),
            (Request::Stop, "s a a a s s s"),
            (Request::Kill, "s a a a a s s"),
            (Request::Restart, "a d a a d a a"),
            (Request::Pause, "d d a s d d d"),
            (Request::Resume, "d d s a d d d"),
            (Request::Remove { force: false }, "a d d d d a a"),
            (Request::Remove { force: true }, "a a a a a a a"),
        ];
        for (request, row) in table {
            let found: Vec<&str> = states
                .iter()
                .map(|state| match decide("web", *state, request) {
                    Decision::Accept => "a",
                    Decision::AlreadySo => "s",
                    Decision::Deny(_) => "d",
                })
                .collect();
            assert_eq!(found.join(" "), row, "{request:?}");
        }
    }

    #[test]
    fn one_that_stands_still_for_another_reason_is_not_paused_yet() {
        use PauseReason::{HostDiskFull, Requested};
        // A supervisor of an older release gives no reason.
        let table: [(&[PauseReason], _); 4] = [
            (&[], Decision::Accept),
            (&[HostDiskFull], Decision::Accept),
            (&[Requested], Decision::AlreadySo),
            (&[Requested, HostDiskFull], Decision::AlreadySo),
        ];
        for (paused, want) in table {
            let status = VmStatus { paused: paused.to_vec(), ..fresh(VmState::Paused, 1) };
            assert_eq!(decide_about("web", &status, Request::Pause), want, "{paused:?}");
            let resumed = decide_about("web", &status, Request::Resume);
            assert_eq!(resumed, Decision::Accept, "{paused:?}");
        }
        let running = fresh(VmState::Running, 1);
        assert_eq!(decide_about("web", &running, Request::Pause), Decision::Accept);
        assert_eq!(decide_about("web", &running, Request::Resume), Decision::AlreadySo);
    }

    #[test]
    fn what_cannot_be_paused_or_started_says_what_to_type() {
        use VmState::{Paused, Starting, Stopped, Stopping};
        let table = [
            (Stopped, Request::Pause, "VM web is stopped, so it cannot be paused", "start"),
            (Starting, Request::Resume, "VM web is starting, so it cannot be resumed", "start"),
            (Stopping, Request::Pause, "VM web is stopping, so it cannot be paused", "wait"),
            (Paused, Request::Start, "VM web is paused, so it cannot be started", "resume"),
        ];
        for (state, request, reason, hint) in table {
            let Decision::Deny(denial) = decide("web", state, request) else {
                panic!("{request:?} of a VM that is {state}");
            };
            assert_eq!(denial.reason, reason);
            assert_eq!(denial.hint, format!("banger {hint} web"));
        }
    }

    #[test]
    fn a_denial_says_the_state_and_what_to_type() {
        let Decision::Deny(denial) =
            decide("web", VmState::Running, Request::Remove { force: false })
        else {
            panic!("a running VM must not be removed");
        };
        let problem = Problem::from(denial);
        assert_eq!(problem.code, ErrorCode::VmWrongState);
        assert_eq!(problem.title, "VM web is running, so it cannot be removed");
        assert_eq!(problem.hint.as_deref(), Some("banger stop web, or banger rm --force web"));
    }

    fn remains(desired: Desired) -> Remains {
        Remains {
            desired,
            recorded: None,
            written: None,
            created_at_ms: 5,
            traces: Traces::default(),
        }
    }

    #[test]
    fn a_vm_that_never_ran_is_created() {
        assert_eq!(settle(remains(Desired::Stopped), 9), fresh(VmState::Created, 5));
    }

    #[test]
    fn the_shims_last_word_counts() {
        let stopped = VmStatus {
            end: Some(plain_end(EndCause::Stopped, "stopped")),
            ..fresh(VmState::Stopped, 7)
        };
        let written = Remains { written: Some(stopped.clone()), ..remains(Desired::Running) };
        assert_eq!(settle(written, 9), stopped);
        let recorded = Remains { recorded: Some(stopped.clone()), ..remains(Desired::Stopped) };
        assert_eq!(settle(recorded, 9), stopped);
    }

    #[test]
    fn a_shim_that_says_running_and_is_gone_made_it_fail() {
        for state in [VmState::Starting, VmState::Running, VmState::Paused, VmState::Stopping] {
            let paused = vec![PauseReason::Requested];
            let before = VmStatus { boot_ms: Some(3), paused, ..fresh(state, 7) };
            let found = settle(Remains { written: Some(before), ..remains(Desired::Running) }, 9);
            assert_eq!(found.state, VmState::Failed);
            assert_eq!((found.since_ms, found.paused), (9, Vec::new()));
            assert_eq!(found.boot_ms, Some(3), "what was known of the run stays known");
            assert_eq!(found.end.map(|end| end.cause), Some(EndCause::ShimGone));
        }
    }

    #[test]
    fn a_start_that_was_interrupted_leaves_the_former_end_or_says_so() {
        let found = settle(remains(Desired::Running), 9);
        assert_eq!(found.end.map(|end| end.cause), Some(EndCause::LaunchFailed));
        let before = fresh(VmState::Stopped, 7);
        let found =
            settle(Remains { recorded: Some(before.clone()), ..remains(Desired::Running) }, 9);
        assert_eq!(found, before);
    }

    #[test]
    fn what_a_starting_daemon_does() {
        // Flags: locked, deleting, unfinished, remove on exit, wanted running.
        let table = [
            ("-----", Adoption::Settle),
            ("----w", Adoption::Settle),
            ("l----", Adoption::Watch),
            ("l--rw", Adoption::Watch),
            ("---r-", Adoption::Settle),
            ("---rw", Adoption::Remove),
            ("-d---", Adoption::Remove),
            ("ld--w", Adoption::Remove),
            ("--u--", Adoption::Remove),
            ("l-u-w", Adoption::Remove),
        ];
        for (flags, want) in table {
            let found = Found {
                locked: flags.contains('l'),
                deleting: flags.contains('d'),
                unfinished: flags.contains('u'),
                remove_on_exit: flags.contains('r'),
                desired: if flags.contains('w') { Desired::Running } else { Desired::Stopped },
            };
            assert_eq!(plan_adoption(found), want, "{flags}");
        }
    }
}
