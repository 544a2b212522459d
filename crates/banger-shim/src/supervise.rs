//! The life of a shim: launch, serve, end.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_api::error::{ErrorCode, Problem};
use banger_api::operation::Progress;
use banger_api::shim::{LaunchEvent, LaunchSpec, SHIM_LOG_FILE};
use banger_api::step::{self, Step};
use banger_api::vm::{EndCause, EngineInUse, VmEnd, VmState};
use banger_host::logs::{DEFAULT_CAP_BYTES, ErrorLog, printable_line};
use banger_host::oom::OomWatch;
use banger_host::systemd::scope::StopLine;
use banger_host::{environment, fault};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

use crate::board::Board;
use crate::failure::{LaunchError, host};
use crate::guest::Guest;
use crate::launch::{self, Host, Machine};
use crate::main_process::MainPid;
use crate::ownership::Ownership;
use crate::power::{self, Order, Outcome};
use crate::{Failure, main_process, read_launch_spec, serve};

/// Orders that wait to be obeyed; the first decides.
const ORDERS: usize = 16;

/// Longest reason for an end, in characters: it may quote the guest.
const MAX_REASON: usize = 2000;

/// How long a VM may live on without an answer from its guest before what depended on that guest is
/// given up.
const LOST_GUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Grace for the guest where the host, or a session of it, goes down. systemd waits longer.
const TERMINATE_GRACE: Duration = Duration::from_secs(10);

/// What every part of a shim knows of its VM.
#[derive(Debug)]
pub(crate) struct Vm {
    /// What was asked for.
    pub(crate) spec: LaunchSpec,
    /// The VM's directory.
    pub(crate) dir: PathBuf,
    /// What the VM is doing.
    pub(crate) board: Arc<Board>,
    /// The guest's agent, while there is one.
    pub(crate) guest: watch::Sender<Option<Guest>>,
    /// Where orders go.
    pub(crate) orders: mpsc::Sender<Order>,
    /// The main process, while it runs.
    pub(crate) main_pid: MainPid,
    /// The client that the VM belongs to.
    pub(crate) ownership: Ownership,
    /// Told when a log has grown.
    pub(crate) logged: Notify,
    /// Whether the kernel kills for want of memory.
    pub(crate) oom: OomWatch,
}

impl Vm {
    /// Waits for the guest that follows one that went away. None if none comes in time.
    ///
    /// A guest that powered itself off, or panicked, has no successor: the VM ends, and with it
    /// whoever waits here. So what broke with a guest is told only where the guest itself stays.
    pub(crate) async fn next_guest(&self) -> Option<Guest> {
        let mut guest = self.guest.subscribe();
        loop {
            let next = async {
                let _ = guest.changed().await;
                guest.wait_for(Option::is_some).await.ok()?.clone()
            };
            match tokio::time::timeout(LOST_GUEST_TIMEOUT, next).await {
                Ok(next) => return next,
                // A guest that boots again may take longer.
                Err(_) if self.board.now().state == VmState::Starting => {}
                Err(_) => return None,
            }
        }
    }
}

/// Runs a VM from its launch to its end, as process 1 of its namespaces.
pub(crate) fn supervise(stop_line: Option<StopLine>) -> Result<(), Failure> {
    let level = environment::get("BANGER_LOG").unwrap_or_else(|| "warn".to_owned());
    let log = error_log();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(level))
        .with_writer(move || log.clone())
        .with_ansi(false)
        // On a full disk there is nowhere to complain, and complaining would abort.
        .log_internal_errors(false)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(stop_line))?;
    // What still runs on other threads must not keep process 1 here.
    runtime.shutdown_background();
    Ok(())
}

/// This process's standard error, which is the shim's log in its working directory.
pub(crate) fn error_log() -> ErrorLog {
    ErrorLog::new(SHIM_LOG_FILE.into(), DEFAULT_CAP_BYTES)
}

async fn run(stop_line: Option<StopLine>) -> Result<(), Failure> {
    let dir = std::env::current_dir()?;
    let spec = read_launch_spec(&dir)?;
    let engine = EngineInUse {
        name: spec.engine.name.clone(),
        version: spec.engine.version.clone(),
        accelerator: spec.engine.accelerator,
    };
    let board = Arc::new(Board::new(&dir, engine, spec.resources()));
    let (orders, mut received) = mpsc::channel(ORDERS);
    let vm = Arc::new(Vm {
        ownership: Ownership::new(spec.owner.is_some()),
        spec,
        dir,
        board,
        guest: watch::Sender::new(None),
        orders,
        main_pid: MainPid::default(),
        logged: Notify::new(),
        oom: OomWatch::of_this_process(),
    });
    fault::reach(step::SHIM_SERVE).await?;
    let server = serve::start(Arc::clone(&vm))?;
    stop_on_sigterm(vm.orders.clone())?;
    if let Some(line) = stop_line {
        tokio::spawn(stop_on_request(line, vm.orders.clone()));
    }
    live(&vm, &mut received).await;
    server.close().await;
    Ok(())
}

/// From launch to end.
async fn live(vm: &Arc<Vm>, orders: &mut mpsc::Receiver<Order>) {
    let mut reporter = Reporter::new();
    let began = Instant::now();
    let launched = tokio::select! {
        launched = launch::launch(vm, &mut reporter) => Some(launched),
        _ = orders.recv() => None,
    };
    let (mut host, machine) = match launched {
        Some(Ok(up)) => up,
        Some(Err(error)) => return fail(vm, &mut reporter, &error),
        None => return cancel(vm, &mut reporter),
    };
    vm.guest.send_replace(Some(machine.guest.clone()));
    vm.board.up(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
    vm.ownership.expect_soon(vm.orders.clone());
    main_process::start(vm, machine.guest.clone());
    reporter.say(&LaunchEvent::Ready { status: vm.board.now() });
    let end = watch_through_reboots(vm, &mut host, machine, orders).await;
    vm.guest.send_replace(None);
    vm.board.end(end);
}

async fn watch_through_reboots(
    vm: &Vm,
    host: &mut Host,
    mut machine: Machine,
    orders: &mut mpsc::Receiver<Order>,
) -> VmEnd {
    loop {
        match power::watch(vm, host, machine, orders).await {
            Outcome::Ended(end) => return end,
            Outcome::Reboot => vm.guest.send_replace(None),
        };
        vm.main_pid.ended();
        vm.board.enter(VmState::Starting);
        let again = tokio::select! {
            again = launch::relaunch(vm, host) => again,
            Some(order) = orders.recv() => return order.end(),
        };
        match again {
            Ok(up) => {
                vm.guest.send_replace(Some(up.guest.clone()));
                vm.board.enter(VmState::Running);
                machine = up;
            }
            Err(error) => return launch_failed(&error),
        }
    }
}

fn fail(vm: &Vm, reporter: &mut Reporter, error: &LaunchError) {
    vm.board.end(launch_failed(error));
    reporter.say(&LaunchEvent::Failed { problem: error.problem(&vm.spec.name) });
}

fn launch_failed(error: &LaunchError) -> VmEnd {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason.push_str(": ");
        reason.push_str(&cause.to_string());
        source = cause.source();
    }
    let reason = printable_line(&reason, MAX_REASON);
    VmEnd { cause: EndCause::LaunchFailed, reason, main: None, console_tail: Vec::new() }
}

fn cancel(vm: &Vm, reporter: &mut Reporter) {
    let cause = EndCause::Killed;
    let reason = "cancelled while it started".to_owned();
    vm.board.end(VmEnd { cause, reason: reason.clone(), main: None, console_tail: Vec::new() });
    let problem =
        Problem::new(ErrorCode::Cancelled, format!("VM {} was not started", vm.spec.name));
    reporter.say(&LaunchEvent::Failed { problem: problem.cause(reason) });
}

/// A host that goes down ends its sessions with SIGTERM.
fn stop_on_sigterm(orders: mpsc::Sender<Order>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        while terminate.recv().await.is_some() {
            let _ = orders.send(Order::Terminate(TERMINATE_GRACE)).await;
        }
    });
    Ok(())
}

/// A user's manager that goes down asks over the message bus.
async fn stop_on_request(line: StopLine, orders: mpsc::Sender<Order>) {
    match line.asked().await {
        Ok(()) => drop(orders.send(Order::Terminate(TERMINATE_GRACE)).await),
        Err(error) => tracing::info!(%error, "systemd cannot ask this VM to stop any more"),
    }
}

/// The way to the daemon that started this shim: lines of JSON on standard output.
#[derive(Debug)]
pub(crate) struct Reporter {
    output: Option<std::io::Stdout>,
}

impl Reporter {
    fn new() -> Self {
        Self { output: Some(std::io::stdout()) }
    }

    /// A step of the launch begins.
    pub(crate) async fn step(&mut self, step: Step, message: &str) -> Result<(), LaunchError> {
        tracing::debug!(%step, "{message}");
        self.say(&LaunchEvent::Progress(Progress::stage(step.name(), message)));
        fault::reach(step).await.map_err(host(step.name()))
    }

    /// Says one thing. A daemon that is gone does not stop a VM from starting.
    fn say(&mut self, event: &LaunchEvent) {
        let Some(output) = &mut self.output else { return };
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        if output.write_all(&line).and_then(|()| output.flush()).is_err() {
            self.output = None;
        }
    }
}
