//! The life of a shim: launch, serve, end.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_api::error::{ErrorCode, Problem};
use banger_api::operation::Progress;
use banger_api::shim::{Begin, LaunchEvent, LaunchSpec, SHIM_LOG_FILE, Was};
use banger_api::step::{self, Step};
use banger_api::trace;
use banger_api::vm::{EndCause, Origin, VmEnd, VmState};
use banger_host::logs::{DEFAULT_CAP_BYTES, ErrorLog, printable_line};
use banger_host::oom::OomWatch;
use banger_host::systemd::scope::StopLine;
use banger_host::trace::Trace;
use banger_host::{environment, fault};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

use crate::board::Board;
use crate::capture::CaptureWish;
use crate::failure::{LaunchError, host};
use crate::guest::Guest;
use crate::launch::{self, Host, Machine, Uplink};
use crate::main_process::MainPid;
use crate::order::Order;
use crate::ownership::Ownership;
use crate::power::{self, Outcome};
use crate::ready::{Ready, stand_ready};
use crate::standstill::Switch;
use crate::wishes::Wishes;
use crate::{Failure, farewell, main_process, read_launch_spec, serve};

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
    /// Where wishes go that the virtual CPUs stand still, or go on.
    pub(crate) switch: Switch,
    /// The main process, while it runs.
    pub(crate) main_pid: MainPid,
    /// The client that the VM belongs to.
    pub(crate) ownership: Ownership,
    /// Told when a log has grown.
    pub(crate) logged: Notify,
    /// Where wishes go to save the guest.
    pub(crate) captures: Wishes<CaptureWish>,
    /// Where the time goes.
    pub(crate) trace: Trace,
    /// Whether the kernel kills for want of memory.
    pub(crate) oom: OomWatch,
}

impl Vm {
    /// A VM that starts. What stood ready has its `board` already.
    pub(crate) fn new(
        spec: LaunchSpec,
        dir: &Path,
        board: Option<Arc<Board>>,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        let new_board = || Arc::new(Board::new(dir, spec.engine.in_use(), spec.resources()));
        Self {
            board: board.unwrap_or_else(new_board),
            ownership: Ownership::new(spec.owner.is_some()),
            trace: Trace::new(spec.trace),
            spec,
            dir: dir.to_owned(),
            guest: watch::Sender::new(None),
            orders,
            switch: Switch::default(),
            captures: Wishes::default(),
            main_pid: MainPid::default(),
            logged: Notify::new(),
            oom: OomWatch::of_this_process(),
        }
    }

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
                // A guest that boots again may take longer, and one that stands still does nothing.
                Err(_) if matches!(self.board.now().state, VmState::Starting | VmState::Paused) => {
                }
                Err(_) => return None,
            }
        }
    }
}

/// Runs a VM from its launch to its end, as process 1 of its namespaces.
pub(crate) fn supervise(stop_line: Option<StopLine>) -> Result<(), Failure> {
    let level = environment::get("BANGER_LOG").unwrap_or_else(|| "info".to_owned());
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
    let (orders, mut received) = mpsc::channel(ORDERS);
    stop_on_sigterm(orders.clone())?;
    if let Some(line) = stop_line {
        tokio::spawn(stop_on_request(line, orders.clone()));
    }
    let mut reporter = Reporter::new();
    let mut spec = read_launch_spec(&dir)?;
    let ready = if spec.waits {
        let vm = Vm::new(spec, &dir, None, orders.clone());
        let Some(ready) = stand_ready(&vm, &mut reporter, &mut received).await else {
            return Ok(());
        };
        spec = read_launch_spec(&dir)?;
        Some(ready)
    } else {
        None
    };
    let board = ready.as_ref().map(Ready::board);
    let vm = Arc::new(Vm::new(spec, &dir, board, orders));
    let began = vm.trace.begin();
    fault::reach(step::SHIM_SERVE).await?;
    let server = serve::start(Arc::clone(&vm))?;
    vm.trace.end(trace::SHIM_BEGIN, began);
    live(&vm, ready, &mut reporter, &mut received).await;
    server.close().await;
    Ok(())
}

/// From launch to end.
async fn live(
    vm: &Arc<Vm>,
    ready: Option<Ready>,
    reporter: &mut Reporter,
    orders: &mut mpsc::Receiver<Order>,
) {
    if vm.spec.begin == Begin::Save {
        return save(vm, reporter, orders).await;
    }
    let (began, origin) = (Instant::now(), origin(&vm.spec.begin, ready.is_some()));
    let brought_up = async {
        match ready {
            Some(ready) => ready.become_vm(vm).await,
            None => {
                let (host, machine, uplink) = launch::launch(vm, reporter).await?;
                Ok((host, machine, Some(uplink)))
            }
        }
    };
    let launched = tokio::select! {
        launched = brought_up => launched,
        _ = orders.recv() => return cancel(vm, reporter, cancelled()),
    };
    let (mut host, machine, uplink) = match launched {
        Ok(launched) => launched,
        Err(error) => return fail(vm, reporter, &error),
    };
    let machine = match come_up(vm, machine, uplink, orders).await {
        Ok(machine) => machine,
        Err(Early::Failed(error)) => return fail(vm, reporter, &error),
        Err(Early::Told(end)) => return cancel(vm, reporter, end),
    };
    vm.guest.send_replace(Some(machine.guest.clone()));
    vm.board.up(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), origin);
    vm.ownership.expect_soon(vm.orders.clone());
    main_process::start(vm, machine.guest.clone());
    reporter.mark(&vm.trace);
    reporter.say(&LaunchEvent::Ready { status: vm.board.now() });
    let end = watch_through_reboots(vm, &mut host, machine, orders).await;
    reporter.mark(&vm.trace);
    vm.guest.send_replace(None);
    vm.board.end(end);
}

/// How a guest begins, for people.
fn origin(begin: &Begin, stood_ready: bool) -> Origin {
    match begin {
        _ if stood_ready => Origin::Pool,
        Begin::Restore { was: Was::Nobody, .. } => Origin::Template,
        Begin::Restore { was: Was::Another, .. } => Origin::Fork,
        Begin::Restore { was: Was::Itself, .. } => Origin::Snapshot,
        Begin::Boot | Begin::Save | Begin::Receive => Origin::Boot,
    }
}

/// Saves a guest, and ends.
async fn save(vm: &Vm, reporter: &mut Reporter, orders: &mut mpsc::Receiver<Order>) {
    let saved = tokio::select! {
        saved = launch::save(vm, reporter) => saved,
        _ = orders.recv() => return cancel(vm, reporter, cancelled()),
    };
    match saved {
        Ok(()) => reporter.say(&LaunchEvent::Saved),
        Err(error) => fail(vm, reporter, &error),
    }
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
            Some(order) = orders.recv() => return order.end_in_boot(),
        };
        let up = match again {
            Ok(machine) => come_up(vm, machine, None, orders).await,
            Err(error) => Err(Early::Failed(error)),
        };
        match up {
            Ok(up) => {
                vm.guest.send_replace(Some(up.guest.clone()));
                vm.board.up_again();
                machine = up;
            }
            Err(Early::Failed(error)) => return launch_failed(&error),
            Err(Early::Told(end)) => return end,
        }
    }
}

/// Why a VM did not come up.
#[derive(Debug)]
enum Early {
    /// Something broke.
    Failed(LaunchError),
    /// It was told to end, and has.
    Told(VmEnd),
}

/// Waits until a VM is up whose guest answers. It may write already, so it is ended like one that is up.
async fn come_up(
    vm: &Vm,
    mut machine: Machine,
    uplink: Option<Uplink>,
    orders: &mut mpsc::Receiver<Order>,
) -> Result<Machine, Early> {
    let (guest, deadline) = (machine.guest.clone(), machine.boot_deadline);
    tokio::select! {
        up = launch::await_up(vm, &guest, deadline, uplink) => {
            up.map(|()| machine).map_err(Early::Failed)
        }
        _ = machine.vmm.wait() => Err(Early::Failed(machine.early_end().await)),
        Some(order) = orders.recv() => {
            Err(Early::Told(farewell::obey(vm, machine, order, orders).await))
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

fn cancelled() -> VmEnd {
    let reason = "cancelled while it started".to_owned();
    VmEnd { cause: EndCause::Killed, reason, main: None, console_tail: Vec::new() }
}

fn cancel(vm: &Vm, reporter: &mut Reporter, end: VmEnd) {
    let reason = end.reason.clone();
    vm.board.end(end);
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

    /// Says where the time went since the last time, if somebody asked.
    fn mark(&mut self, trace: &Trace) {
        for mark in trace.take() {
            self.say(&LaunchEvent::Mark(mark));
        }
    }

    /// Says one thing. A daemon that is gone does not stop a VM from starting.
    pub(crate) fn say(&mut self, event: &LaunchEvent) {
        let Some(output) = &mut self.output else { return };
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        if output.write_all(&line).and_then(|()| output.flush()).is_err() {
            self.output = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use banger_api::shim::{CONSOLE_FILE, VMM_LOG_FILE};
    use banger_api::vm::PauseReason;
    use banger_host::process::Watched;

    use super::*;
    use crate::console::{Recording, new_log};
    use crate::testing;

    const UNMOUNTED_BADLY: &str =
        r#"{"code":"internal","title":"the guest's disks are synced but still in use"}"#;

    /// A machine whose guest answers. In the VMM's place is a program that does nothing, and ends with the
    /// test if nobody ends it. What is asked of the VMM comes too.
    #[expect(clippy::disallowed_methods, reason = "a program to be the VMM")]
    async fn machine(vm: &Vm, guest: Guest) -> (Machine, mpsc::UnboundedReceiver<String>) {
        let idle = Command::new("cat").stdin(Stdio::piped()).spawn().expect("a program");
        let (qmp, events, commands) = testing::qemu(&[]).await;
        let silent = |name| {
            let (pipe, _) = std::io::pipe().expect("a pipe");
            let log = new_log(&vm.dir, name, 1 << 20).expect("a log");
            Recording::start(pipe.into(), log).expect("recorded")
        };
        let machine = Machine {
            vmm: Watched::new(idle).expect("watched"),
            qmp,
            events,
            console: silent(CONSOLE_FILE),
            words: silent(VMM_LOG_FILE),
            guest,
            boot_deadline: Instant::now() + Duration::from_secs(600),
        };
        (machine, commands)
    }

    /// A guest whose services never come up, and which is told this.
    async fn told(order: Order) -> (VmEnd, Vec<String>) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (vm, mut orders) = testing::vm(dir.path(), testing::launch_spec("system", ""));
        let answers =
            &[("/v1/await-system", testing::NEVER, ""), ("/v1/shutdown", 500, UNMOUNTED_BADLY)];
        let (machine, _) = machine(&vm, testing::guest(answers).await).await;
        vm.orders.send(order).await.expect("taken");
        match come_up(&vm, machine, None, &mut orders).await {
            Err(Early::Told(end)) => (end, vm.board.now().warnings),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_guest_whose_services_still_start_is_asked_to_go_down() {
        let grace = Duration::from_secs(60);
        for (order, cause) in [
            (Order::Stop(grace), EndCause::Stopped),
            (Order::Terminate(grace), EndCause::Terminated),
        ] {
            let (end, warnings) = told(order).await;
            assert_eq!(end.cause, cause);
            assert_eq!(warnings.len(), 1, "{order:?}: the guest's own word: {warnings:?}");
            assert!(warnings[0].contains("synced but still in use"), "{warnings:?}");
        }
        let (end, warnings) = told(Order::Kill).await;
        assert_eq!((end.cause, warnings), (EndCause::Killed, Vec::new()), "not asked");
    }

    #[tokio::test]
    async fn a_vmm_that_ends_before_the_services_are_up_is_noticed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (vm, mut orders) = testing::vm(dir.path(), testing::launch_spec("system", ""));
        let guest = testing::guest(&[("/v1/await-system", testing::NEVER, "")]).await;
        let (mut machine, _) = machine(&vm, guest).await;
        machine.vmm.kill().expect("killed");
        let up = come_up(&vm, machine, None, &mut orders).await;
        assert!(matches!(up, Err(Early::Failed(LaunchError::VmmEnded { .. }))), "{up:?}");
    }

    #[tokio::test]
    async fn a_paused_guest_is_woken_to_go_down_but_not_to_be_killed() {
        let grace = Duration::from_secs(60);
        for (order, cause, woken) in [
            (Order::Stop(grace), EndCause::Stopped, &["cont"][..]),
            (Order::Terminate(grace), EndCause::Terminated, &["cont"]),
            (Order::Kill, EndCause::Killed, &[]),
            (Order::OwnerGone(None), EndCause::OwnerGone, &[]),
        ] {
            let dir = tempfile::tempdir().expect("temporary directory");
            let (vm, mut orders) = testing::vm(dir.path(), testing::launch_spec("agent", ""));
            let answers = &[("/v1/clock", 200, "null"), ("/v1/shutdown", 200, "null")];
            let (machine, mut commands) = machine(&vm, testing::guest(answers).await).await;
            vm.board.up(1, Origin::Boot);
            vm.board.stand(vec![PauseReason::Requested]);
            let end = farewell::obey(&vm, machine, order, &mut orders).await;
            assert_eq!(end.cause, cause, "{order:?}");
            let mut said = Vec::new();
            while let Some(command) = commands.recv().await {
                said.push(command);
            }
            assert_eq!(said, woken, "{order:?}");
            vm.board.end(end);
            assert_eq!(vm.board.now().paused, [], "{order:?}");
        }
    }
}
