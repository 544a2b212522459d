//! A guest that stands ready: it is up, nobody's VM, and stands still until it becomes one.
//!
//! It comes up as any VM does, under the machine-id that it will have, with entropy of its own and a
//! name that nobody sees; a command is run in it, because what a guest does for the first time takes an
//! emulated one the longest. Then its processors are halted, and this process waits for a word on its
//! standard input. That is a pipe of the daemon's: the guest goes with the daemon that had it made, by the
//! kernel's hand.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use banger_api::error::Problem;
use banger_api::exec::{ExecRequest, ServerControl, ServerFrame};
use banger_api::shim::LaunchEvent;
use banger_api::vm::NetworkPolicy;
use banger_api::{step, trace};
use banger_host::fault;
use banger_host::process::private_bytes;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use crate::board::Board;
use crate::exec;
use crate::failure::{Awaited, LaunchError, host};
use crate::guest::Guest;
use crate::launch::{self, Host, Machine, Uplink};
use crate::order::Order;
use crate::supervise::{Reporter, Vm};

/// What is run in it. Most images have one, and one that has none does what comes before that.
const REHEARSED: &str = "true";
/// How long that may take.
const REHEARSAL: Duration = Duration::from_secs(10);

/// A guest that stands ready.
#[derive(Debug)]
pub(crate) struct Ready {
    host: Host,
    machine: Machine,
    board: Arc<Board>,
    /// Whether it has an uplink: the host may have been offline.
    is_connected: bool,
}

impl Ready {
    /// Where it is told what becomes of it.
    pub(crate) fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Makes it the VM that the launch file has now. An uplink comes, too, if it had none.
    ///
    /// # Errors
    /// [`LaunchError`]: it is of no use then.
    pub(crate) async fn become_vm(
        mut self,
        vm: &Vm,
    ) -> Result<(Host, Machine, Option<Uplink>), LaunchError> {
        let began = vm.trace.begin();
        self.board.begin_anew();
        fault::reach(step::VM_CLAIM).await.map_err(host("have the guest go on"))?;
        if vm.spec.network == NetworkPolicy::Default {
            // The host may have moved to another network meanwhile.
            self.host.network.refresh_rules()?;
        }
        let uplink = match self.is_connected {
            true => None,
            false => Some(launch::start_uplink(&self.host, vm.trace.clone())?),
        };
        self.machine.boot_deadline = launch::deadline(vm);
        let configured = async {
            self.machine.qmp.execute("cont", json!({})).await?;
            vm.trace.end(trace::VMM_RESUME, began);
            launch::identify(vm, &self.machine.guest).await
        };
        let deadline = self.machine.boot_deadline;
        tokio::select! {
            done = launch::until(deadline, vm, Awaited::Configured, configured) => done?,
            _ = self.machine.vmm.wait() => return Err(self.machine.early_end().await),
        }
        Ok((self.host, self.machine, uplink))
    }
}

/// Brings a guest up and has it wait. None if it shall not become anything: its daemon is gone, somebody
/// ended it, or it failed, which is told.
pub(crate) async fn stand_ready(
    vm: &Vm,
    reporter: &mut Reporter,
    orders: &mut mpsc::Receiver<Order>,
) -> Option<Ready> {
    let waited = tokio::select! {
        waited = wait(vm, reporter) => waited,
        _ = orders.recv() => return None,
    };
    waited.unwrap_or_else(|error| {
        reporter.say(&LaunchEvent::Failed { problem: error.problem(&vm.spec.name) });
        None
    })
}

async fn wait(vm: &Vm, reporter: &mut Reporter) -> Result<Option<Ready>, LaunchError> {
    let mut word = told().map_err(host("listen to the daemon"))?;
    let mut ready = tokio::select! {
        // Nothing is said yet, so this is the end of whoever would say it.
        _ = word.read_u8() => return Ok(None),
        ready = come_up(vm, reporter) => ready?,
    };
    reporter.step(step::VM_WAIT, "standing ready").await?;
    ready.machine.qmp.execute("stop", json!({})).await?;
    reporter.say(&LaunchEvent::Waits { private_bytes: private_bytes(Path::new("/proc")) });
    tokio::select! {
        said = word.read_u8() => match said {
            Ok(_) => Ok(Some(ready)),
            Err(_) => Ok(None),
        },
        _ = ready.machine.vmm.wait() => Err(ready.machine.early_end().await),
    }
}

async fn come_up(vm: &Vm, reporter: &mut Reporter) -> Result<Ready, LaunchError> {
    let (host, machine, uplink) = launch::launch(vm, reporter).await?;
    let is_connected = launch::connected(vm, uplink).await.is_ok();
    let rehearsed = tokio::time::timeout(REHEARSAL, rehearse(&machine.guest)).await;
    if !matches!(rehearsed, Ok(Ok(()))) {
        tracing::info!("the first command was not rehearsed: {rehearsed:?}");
    }
    Ok(Ready { host, machine, board: Arc::clone(&vm.board), is_connected })
}

/// Runs a command for nothing.
async fn rehearse(guest: &Guest) -> Result<(), Problem> {
    let request = ExecRequest { argv: vec![REHEARSED.to_owned()], ..ExecRequest::default() };
    let mut socket = exec::open(guest, &request).await?;
    loop {
        let frame = exec::next_frame(&mut socket).await?;
        match ServerFrame::decode(&frame) {
            Ok(ServerFrame::Control(ServerControl::Exit(_))) => return Ok(()),
            Ok(ServerFrame::Control(ServerControl::Failed(problem))) => return Err(problem),
            _ => {}
        }
    }
}

/// Standard input, which is a pipe.
fn told() -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)
}
