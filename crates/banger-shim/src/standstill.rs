//! Standing still and going on: by request, and while the host's disk is full.
//!
//! What comes of what happens is decided in [`banger_core::standstill`] and done here, by whoever
//! watches the machine. Others send it a [`Wish`] and wait for the answer.

use std::time::Duration;

use banger_api::error::{ErrorCode, Problem};
use banger_api::step;
use banger_api::vm::{PauseReason, VmState, VmStatus};
use banger_core::lifecycle::{Decision, Request, decide};
use banger_core::standstill::{Act, Happening, Plan, plan};
use banger_host::qemu::qmp::{Qmp, QmpError};
use banger_host::{fault, files};
use serde_json::json;
use tokio::sync::oneshot;

use crate::configure;
use crate::guest::Guest;
use crate::supervise::Vm;
use crate::wishes::{Wanted, Wishes};

/// A VM paused by a full disk goes on when there is this much space again.
const RESUME_FREE_BYTES: u64 = 64 * 1024 * 1024;
/// How long a guest that is woken to go down may take to set its clock.
const WAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// What somebody wants of the virtual CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// That they stand still.
    Pause,
    /// That they go on.
    Resume,
}

impl Turn {
    fn request(self) -> Request {
        match self {
            Self::Pause => Request::Pause,
            Self::Resume => Request::Resume,
        }
    }
}

/// Where it is told what came of a wish.
pub(crate) type Reply = oneshot::Sender<Result<(), Problem>>;

/// A turn that somebody waits for.
#[derive(Debug)]
pub(crate) struct Wish {
    turn: Turn,
    reply: Reply,
}

impl Wanted for Wish {
    fn is_given_up(&self) -> bool {
        self.reply.is_closed()
    }
}

/// The way of turns to whoever watches the machine.
#[derive(Debug, Default)]
pub(crate) struct Switch {
    wishes: Wishes<Wish>,
}

impl Switch {
    /// Wishes for something, and waits until it is so.
    ///
    /// # Errors
    /// `vm_wrong_state` of a VM that is not up, `host_disk_full` of one that cannot go on yet, or
    /// why it failed.
    pub(crate) async fn wish(&self, vm: &Vm, turn: Turn) -> Result<(), Problem> {
        let mut status = vm.board.watch();
        let (reply, answer) = oneshot::channel();
        let answered = async {
            self.wishes.send(Wish { turn, reply }).await;
            answer.await
        };
        tokio::select! {
            biased;
            // Nobody watches a machine that is not up: what waits for its next boot is forgotten.
            _ = status.wait_for(|status| !is_up(status)) => {}
            answer = answered => {
                if let Ok(answer) = answer {
                    return answer;
                }
            }
        }
        let state = vm.board.now().state;
        match decide(&vm.spec.name, state, turn.request()) {
            Decision::Deny(denial) => Err(denial.into()),
            _ => Err(failed(vm, turn)),
        }
    }

    /// The next wish that somebody still waits for.
    pub(crate) async fn next(&self) -> Wish {
        self.wishes.next().await
    }
}

fn is_up(status: &VmStatus) -> bool {
    matches!(status.state, VmState::Running | VmState::Paused)
}

/// Why the virtual CPUs could not be halted, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TurnError {
    /// Only where a test wants the step to fail.
    #[error("the step failed")]
    Step(#[from] std::io::Error),
    /// The VMM refused, or does not answer.
    #[error("the VMM did not do it")]
    Vmm(#[from] QmpError),
}

/// Grants a wish. Whoever waits for a VM that goes on is told later, when its clock is right: then
/// the way to them comes back.
pub(crate) async fn grant(vm: &Vm, qmp: &mut Qmp, wish: Wish) -> Option<Reply> {
    let Wish { turn, reply } = wish;
    let happening = match turn {
        Turn::Pause => Happening::Paused,
        Turn::Resume => Happening::Resumed { has_space: disk_has_space(vm) },
    };
    let answer = match happen(vm, qmp, happening).await {
        Ok(Act::GoOn) => return Some(reply),
        Ok(_) if turn == Turn::Resume && vm.board.stands_still() => Err(disk_is_full(vm)),
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::error!(%error, "{turn:?} failed");
            Err(failed(vm, turn).because(&error))
        }
    };
    // Whoever asked may be gone, which changes nothing.
    let _ = reply.send(answer);
    None
}

/// Does what comes of something that happens, and says so.
///
/// # Errors
/// [`TurnError`]; then all is as it was.
pub(crate) async fn happen(vm: &Vm, qmp: &mut Qmp, happening: Happening) -> Result<Act, TurnError> {
    let Plan { act, reasons } = plan(&vm.board.now().paused, happening);
    let done = match act {
        Act::Nothing => Ok(()),
        Act::Halt => halt(qmp).await,
        Act::GoOn => go_on(qmp).await,
    };
    // A VMM that hangs halts its guest as soon as it does anything again, and `resume` must know.
    let is_to_come =
        act == Act::Halt && matches!(done, Err(TurnError::Vmm(QmpError::Timeout { .. })));
    if done.is_ok() || is_to_come {
        vm.board.stand(reasons);
    }
    done.map(|()| act)
}

/// Whether there is enough space for a VM that a full disk has halted.
pub(crate) fn disk_has_space(vm: &Vm) -> bool {
    files::free_bytes(&vm.dir).is_ok_and(|free| free > RESUME_FREE_BYTES)
}

/// Whether a full disk is a reason why the VM stands still.
pub(crate) fn waits_for_space(vm: &Vm) -> bool {
    vm.board.now().paused.contains(&PauseReason::HostDiskFull)
}

/// Wakes a guest that stood still, so that it can be asked to go down. One that cannot be woken does
/// not answer that either.
pub(crate) async fn wake(qmp: &mut Qmp, guest: &Guest) {
    if let Err(error) = go_on(qmp).await {
        tracing::error!(%error, "the VM cannot go on to go down");
    }
    // What it writes on its way down has a time.
    match tokio::time::timeout(WAKE_TIMEOUT, configure::set_clock(guest)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot set the guest's clock"),
        Err(_) => tracing::warn!("the guest takes long to set its clock"),
    }
}

async fn halt(qmp: &mut Qmp) -> Result<(), TurnError> {
    fault::reach(step::SHIM_PAUSE).await?;
    qmp.execute("stop", json!({})).await?;
    Ok(())
}

async fn go_on(qmp: &mut Qmp) -> Result<(), TurnError> {
    fault::reach(step::SHIM_RESUME).await?;
    qmp.execute("cont", json!({})).await?;
    Ok(())
}

fn failed(vm: &Vm, turn: Turn) -> Problem {
    let (name, done) = match turn {
        Turn::Pause => (&vm.spec.name, "paused"),
        Turn::Resume => (&vm.spec.name, "resumed"),
    };
    Problem::new(ErrorCode::Internal, format!("VM {name} was not {done}"))
        .hint(format!("try again; if it hangs: banger kill {name}"))
}

fn disk_is_full(vm: &Vm) -> Problem {
    let name = &vm.spec.name;
    Problem::new(ErrorCode::HostDiskFull, format!("VM {name} stays paused"))
        .cause("the host's disk is full")
        .hint(format!("make room where {} is; then it goes on by itself", vm.dir.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use banger_api::vm::Origin;

    use super::*;
    use crate::testing::{self, qemu};

    const REQUESTED: [PauseReason; 1] = [PauseReason::Requested];

    fn vm(dir: &std::path::Path) -> Arc<Vm> {
        let (vm, _orders) = testing::vm(dir, testing::launch_spec("agent", ""));
        vm.board.up(1, Origin::Boot);
        Arc::new(vm)
    }

    #[tokio::test]
    async fn a_wish_is_granted_once_and_may_be_repeated() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let vm = vm(dir.path());
        let (mut qmp, _events, mut commands) = qemu(&[]).await;
        for (turn, goes_on, paused) in [
            (Turn::Pause, false, &REQUESTED[..]),
            (Turn::Pause, false, &REQUESTED[..]),
            (Turn::Resume, true, &[]),
            (Turn::Resume, false, &[]),
        ] {
            let asking = tokio::spawn({
                let vm = Arc::clone(&vm);
                async move { vm.switch.wish(&vm, turn).await }
            });
            let wish = vm.switch.next().await;
            let reply = grant(&vm, &mut qmp, wish).await;
            assert_eq!(reply.is_some(), goes_on, "{turn:?}");
            reply.map(|reply| reply.send(Ok(())));
            assert_eq!(asking.await.expect("no panic"), Ok(()), "{turn:?}");
            let status = vm.board.now();
            assert_eq!(status.paused, paused, "{turn:?}");
            let state = if paused.is_empty() { VmState::Running } else { VmState::Paused };
            assert_eq!(status.state, state, "{turn:?}");
        }
        drop(qmp);
        let mut said = Vec::new();
        while let Some(command) = commands.recv().await {
            said.push(command);
        }
        assert_eq!(said, ["stop", "cont"]);
    }

    #[tokio::test]
    async fn a_vm_that_is_not_up_or_ends_meanwhile_is_told_with_its_state() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let vm = vm(dir.path());
        let asking = tokio::spawn({
            let vm = Arc::clone(&vm);
            async move { vm.switch.wish(&vm, Turn::Pause).await }
        });
        tokio::task::yield_now().await;
        vm.board.enter(VmState::Stopping);
        let problem = asking.await.expect("no panic").expect_err("it is going down");
        assert_eq!(problem.title, "VM box is stopping, so it cannot be paused");

        vm.board.enter(VmState::Starting);
        let problem = vm.switch.wish(&vm, Turn::Resume).await.expect_err("it boots again");
        assert_eq!(problem.code, ErrorCode::VmWrongState);
        assert_eq!(problem.title, "VM box is starting, so it cannot be resumed");
        let forgotten = tokio::time::timeout(Duration::from_millis(10), vm.switch.next()).await;
        assert!(forgotten.is_err(), "what nobody waits for is not done later");
    }

    #[tokio::test]
    async fn a_vmm_that_refuses_leaves_all_as_it_was() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let vm = vm(dir.path());
        let (mut qmp, _events, _commands) = qemu(&[r#"{"error":{"desc":"not now"}}"#]).await;
        let (reply, answer) = oneshot::channel();
        assert!(grant(&vm, &mut qmp, Wish { turn: Turn::Pause, reply }).await.is_none());
        let problem = answer.await.expect("told").expect_err("refused");
        assert_eq!(problem.title, "VM box was not paused");
        assert!(problem.causes.iter().any(|cause| cause.contains("not now")), "{problem}");
        assert_eq!(vm.board.now().state, VmState::Running);
    }

    #[tokio::test]
    async fn a_full_disk_and_a_request_are_two_reasons() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let vm = vm(dir.path());
        let (mut qmp, _events, _commands) = qemu(&[]).await;
        let both = [PauseReason::Requested, PauseReason::HostDiskFull];
        let steps: [(_, _, &[PauseReason]); 4] = [
            (Happening::DiskFull, Act::Nothing, &both[1..]),
            (Happening::Paused, Act::Halt, &both),
            (Happening::DiskHasSpace, Act::Nothing, &REQUESTED),
            (Happening::Resumed { has_space: true }, Act::GoOn, &[]),
        ];
        for (happening, act, paused) in steps {
            let did = happen(&vm, &mut qmp, happening).await.expect("done");
            assert_eq!((did, &vm.board.now().paused[..]), (act, paused), "{happening:?}");
        }
        assert_eq!(vm.board.now().state, VmState::Running);
    }
}
