//! The main process of a VM: the program that a detached VM runs once the guest is up, its output in
//! `main.log`; or the command of the client that owns the VM.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use banger_api::Problem;
use banger_api::exec::{ExecEnd, ExecRequest, ServerControl, ServerFrame};
use banger_api::shim::MAIN_LOG_FILE;
use banger_host::logs::CappedLog;
use tokio::sync::watch;

use crate::exec::{failure_code, next_frame, open, plain};
use crate::guest::Guest;
use crate::order::Order;
use crate::supervise::Vm;

/// How long the end of a main process may be on its way from a guest that is down already.
const LAST_WORD: Duration = Duration::from_millis(500);

/// The main process as the guest numbers it, for as long as it runs.
#[derive(Debug, Default)]
pub(crate) struct MainPid {
    pid: AtomicU32,
    end: watch::Sender<Option<ExecEnd>>,
}

impl MainPid {
    /// It runs.
    pub(crate) fn started(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// It has ended for good, in this way.
    fn ended_with(&self, end: ExecEnd) {
        self.ended();
        self.end.send_replace(Some(end));
    }

    /// How it ended, for a VM whose guest is going down: its end is on its way, if there is one.
    pub(crate) async fn last_word(&self) -> Option<ExecEnd> {
        let mut end = self.end.subscribe();
        if self.get().is_none() {
            return *end.borrow();
        }
        let known = tokio::time::timeout(LAST_WORD, end.wait_for(Option::is_some)).await;
        known.ok()?.ok().and_then(|end| *end)
    }

    /// It has ended, or nobody knows any more.
    pub(crate) fn ended(&self) {
        self.started(0);
    }

    /// Its number.
    pub(crate) fn get(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }
}

/// Starts it, if the VM has one. When it ends, the VM is told to stop.
pub(crate) fn start(vm: &Arc<Vm>, guest: Guest) {
    let Some(request) = vm.spec.main.clone() else { return };
    let vm = Arc::clone(vm);
    tokio::spawn(async move {
        let mut log = match CappedLog::create(&vm.dir.join(MAIN_LOG_FILE), vm.spec.log_bytes) {
            Ok(log) => log,
            Err(error) => {
                tracing::error!(%error, "cannot begin the main process's log");
                return;
            }
        };
        let end = run(&vm, guest, &request, &mut log).await;
        vm.main_pid.ended_with(end);
        // A VM that does not take orders any more is ending.
        let _ = vm.orders.send(Order::MainEnded(end)).await;
    });
}

/// Runs it to its end. A guest that reboots runs it again, as a host does with its services.
async fn run(vm: &Vm, mut guest: Guest, request: &ExecRequest, log: &mut CappedLog) -> ExecEnd {
    loop {
        match follow(vm, &guest, request, log).await {
            Ok(end) => return end,
            Err(lost) => match vm.next_guest().await {
                Some(next) => guest = next,
                None => return failed(vm, log, &lost),
            },
        }
    }
}

/// Follows the program to its end; the error is the guest's loss.
async fn follow(
    vm: &Vm,
    guest: &Guest,
    request: &ExecRequest,
    log: &mut CappedLog,
) -> Result<ExecEnd, Problem> {
    let mut socket = open(guest, request).await?;
    loop {
        let frame = next_frame(&mut socket).await?;
        match ServerFrame::decode(&frame) {
            Ok(ServerFrame::Stdout(bytes) | ServerFrame::Stderr(bytes)) => write(vm, log, bytes),
            Ok(ServerFrame::Control(ServerControl::Started { pid })) => vm.main_pid.started(pid),
            Ok(ServerFrame::Control(ServerControl::Exit(end))) => return Ok(end),
            Ok(ServerFrame::Control(ServerControl::Failed(problem))) => {
                return Ok(failed(vm, log, &plain(problem)));
            }
            _ => {}
        }
    }
}

fn failed(vm: &Vm, log: &mut CappedLog, problem: &Problem) -> ExecEnd {
    write(vm, log, format!("error: {problem}\n").as_bytes());
    ExecEnd::Exited(failure_code(problem.code))
}

/// A log that cannot be written must not stop the program.
fn write(vm: &Vm, log: &mut CappedLog, bytes: &[u8]) {
    if let Err(error) = log.write(bytes) {
        tracing::debug!(%error, "cannot write the main process's log");
    }
    vm.logged.notify_waiters();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_is_waited_for_while_it_can_come() {
        let main = Arc::new(MainPid::default());
        assert_eq!(main.last_word().await, None, "there is none");
        main.started(7);
        let asking = tokio::spawn({
            let main = Arc::clone(&main);
            async move { main.last_word().await }
        });
        tokio::task::yield_now().await;
        main.ended_with(ExecEnd::Exited(3));
        assert_eq!(asking.await.expect("no panic"), Some(ExecEnd::Exited(3)));
        assert_eq!(main.last_word().await, Some(ExecEnd::Exited(3)), "and stays known");
        let silent = MainPid::default();
        silent.started(8);
        assert_eq!(silent.last_word().await, None, "not for ever");
    }
}
