//! Following long work to its end, and giving it up when the user does.

use banger_api::operation::{Operation, OperationEvent, OperationResult};
use banger_api::trace::Mark;
use banger_api::{ErrorCode, Problem, step as steps};
use banger_host::fault;
use banger_host::http::Lines;
use hyper::Method;

use super::Client;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::ui::{Stages, Ui};

/// What an interrupt means for the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// The work is the user's own: an interrupt cancels it, and so does the end of this process.
    Lease,
    /// The work goes on without us: an interrupt only ends the waiting.
    Watch,
}

/// Work that succeeded.
#[derive(Debug)]
pub struct Followed {
    /// What came of it.
    pub result: OperationResult,
    /// The signal that came too late to cancel it.
    pub interrupted: Option<i32>,
    /// The lease. The work's owner lets go of it when something else keeps what was made.
    pub lease: Option<Lines>,
    /// Where the time went, if that was asked for.
    pub marks: Vec<Mark>,
}

/// Follows an operation, showing its progress.
///
/// # Errors
/// The operation's own failure, or [`Failure::Quiet`] if the user gave it up. A second interrupt
/// does not wait for the daemon to have cleaned up.
pub async fn follow(
    client: &Client,
    operation: &Operation,
    patience: Patience,
    (ui, interrupts): (&Ui, &mut Interrupts),
) -> Result<Followed, Failure> {
    let lease = patience == Patience::Lease;
    let path = format!("/v1/operations/{}/events?lease={lease}", operation.id);
    fault::reach(steps::CLI_FOLLOW)
        .await
        .map_err(|error| Failure::internal("the work cannot be followed", &error))?;
    let mut lines = Lines::of(client.open(&path).await.map_err(or_went_away)?);
    let mut stages = ui.stages();
    let (mut interrupted, mut marks) = (None, Vec::new());
    loop {
        tokio::select! {
            biased;
            signal = interrupts.next() => {
                if interrupted.is_some() {
                    return Err(Failure::signal(signal));
                }
                if !lease {
                    stages.say("no longer waited for; what was asked for goes on");
                    return Err(Failure::signal(signal));
                }
                interrupted = Some(signal);
                stages.say("cancelling…");
                tokio::select! {
                    () = cancel(client, operation) => {}
                    signal = interrupts.next() => return Err(Failure::signal(signal)),
                }
            }
            event = lines.next_event() => {
                // A daemon that is killed cannot finish its sentence.
                let event = event.map_err(|_| went_away())?;
                match step(event, (&mut stages, ui))? {
                    Step::On => {}
                    Step::Marked(mark) => marks.push(mark),
                    Step::Done(result) => {
                        stages.finish();
                        let lease = lease.then_some(lines);
                        return Ok(Followed { result: *result, interrupted, lease, marks });
                    }
                    Step::Failed(problem) => {
                        stages.abandon();
                        return Err(interrupted.map_or_else(|| problem.into(), Failure::signal));
                    }
                }
            }
        }
    }
}

enum Step {
    On,
    Marked(Mark),
    Done(Box<OperationResult>),
    Failed(Problem),
}

fn step(event: Option<String>, (stages, ui): (&mut Stages, &Ui)) -> Result<Step, Failure> {
    let Some(text) = event else { return Err(went_away()) };
    let event = serde_json::from_str(&text)
        .map_err(|error| Failure::internal("the daemon's progress cannot be understood", &error))?;
    match event {
        OperationEvent::Progress(progress) => stages.update(&progress),
        OperationEvent::Mark(mark) => return Ok(Step::Marked(mark)),
        OperationEvent::Warning { message } => stages.suspend(|| ui.warning(&message)),
        OperationEvent::Succeeded { result } => return Ok(Step::Done(Box::new(result))),
        OperationEvent::Failed { problem } => return Ok(Step::Failed(problem)),
    }
    Ok(Step::On)
}

/// The daemon was stopped or killed. A creation or a pull is undone at its next start; a VM that starts
/// or stops does so without it.
fn went_away() -> Failure {
    let title = "the daemon went away before the work was done";
    let problem = Problem::new(ErrorCode::DaemonUnavailable, title);
    problem.hint("banger ls shows what came of it; then try again").into()
}

/// Only another daemon than the one that began the work does not know of it.
fn or_went_away(failure: Failure) -> Failure {
    match failure.code() {
        Some(ErrorCode::OperationNotFound) => went_away(),
        _ => failure,
    }
}

/// Asks for the end of the work; the events tell when it has come. If asking fails, the lease that
/// ends with this process does the same.
async fn cancel(client: &Client, operation: &Operation) {
    let path = format!("/v1/operations/{}", operation.id);
    let _ = client.ask::<serde_json::Value, ()>(Method::DELETE, &path, None).await;
}

#[cfg(test)]
mod tests;
