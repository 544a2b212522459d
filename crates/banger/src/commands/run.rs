//! `banger run`: a VM and a command in it, in one go.
//!
//! In the foreground the VM belongs to this process. Until its exec stream is open, the lease on
//! the operation that creates and starts it says so; from then on the stream itself does, and the
//! shim ends the VM when the stream ends. So there is no moment at which the death of this process
//! leaves a VM behind that nobody wanted.

use std::time::Duration;

use banger_api::exec::ExecRequest;
use banger_api::operation::{Operation, OperationResult};
use banger_api::vm::{CreateVm, OwnerPolicy, StartVm, Vm, VmSpec, VmState};
use banger_api::{ErrorCode, Problem, step, trace};
use banger_host::fault;
use banger_host::http::Lines;
use banger_host::trace::{Trace, beginning};
use clap::Args;

use super::guest_session::{self, GuestSession};
use super::shape::{Restart, Shape, parse_timeout, timeout_ms};
use super::wait::wait_for;
use crate::client::{Client, Followed, Patience, follow, vm_path};
use crate::failure::Failure;
use crate::guest_command::{self, GuestCommand};
use crate::interrupt::Interrupts;
use crate::session::TtyFlags;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  banger run --rm -- make test           One command; the VM is gone afterwards
  banger run debian-bookworm ls /        The image's name, then the command
  banger run -d --name web -- ./serve    In the background; `banger logs web` shows its output

The exit code is the command's own; 124: timeout, 125: banger failed, 126, 127: cannot be run.
";

/// Arguments of `banger run`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES,
    override_usage = "banger run [OPTIONS] [IMAGE] [[--] COMMAND...]")]
pub struct Run {
    /// Remove the VM when the command has ended, instead of keeping it
    #[arg(long, help_heading = "VM")]
    rm: bool,
    /// Leave the VM running in the background, and print its name
    #[arg(short, long, help_heading = "VM")]
    detach: bool,
    /// Boot, instead of going on from a saved guest
    #[arg(long, help_heading = "VM")]
    cold: bool,
    /// Show on stderr where the time of start and end went
    #[arg(long, help_heading = "VM")]
    trace: bool,
    #[command(flatten)]
    shape: Shape,
    /// End the command after so long, for example 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = parse_timeout, help_heading = "Command")]
    timeout: Option<Duration>,
    #[command(flatten)]
    tty: TtyFlags,
    /// Image, then the command and its arguments
    #[arg(trailing_var_arg = true, value_name = "IMAGE] [[--] COMMAND", hide = true)]
    pub words: Vec<String>,
}

impl Run {
    /// Creates, starts, runs, and tidies up.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let trace = Trace::new(self.trace);
        let code = self.go_through(ui, &trace).await;
        ui.marks(&trace.take());
        code
    }

    async fn go_through(self, ui: &Ui, trace: &Trace) -> Result<u8, Failure> {
        let line: Vec<_> = std::env::args_os().collect();
        let escaped = guest_command::is_escaped(&line, self.words.len());
        let what = guest_command::split(self.shape.image.as_deref(), &self.words, escaped);
        self.shape.check(&what)?;
        self.check_restart()?;
        let request = self.create_request(&what, ui)?;
        // From here on Ctrl-C cancels instead of killing us in the middle.
        let mut interrupts = Interrupts::listen();
        trace.end(trace::CLI_BEGIN, beginning());
        let began = trace.begin();
        let client = Client::ready(ui).await?;
        trace.end(trace::CLI_DAEMON, began);
        let created = async {
            fault::reach(step::CLI_CREATE)
                .await
                .map_err(|error| Failure::internal("the VM cannot be asked for", &error))?;
            let began = trace.begin();
            let operation: Operation = client.post("/v1/vms", &request).await?;
            trace.end(trace::CLI_REQUEST, began);
            follow(&client, &operation, Patience::Lease, (ui, &mut interrupts)).await
        };
        let followed = created.await.map_err(|failure| what.hint_at_marker(failure, "run"))?;
        trace.add(followed.marks);
        let vm = vm_of(followed.result)?;
        if let Some(signal) = followed.interrupted {
            // It came when there was nothing left to cancel, so what was made is unmade.
            remove(&client, &vm, trace).await?;
            return Err(Failure::signal(signal));
        }
        if self.detach {
            ui.done(&vm.name, Some(&vm))?;
            return Ok(0);
        }
        let session = self.session(argv(&vm.spec, what.command), followed.lease);
        let session = GuestSession { trace: trace.clone(), ..session };
        let outcome = guest_session::run(&client, &vm, session).await;
        drop(interrupts);
        let began = trace.begin();
        let aftermath = match self.rm {
            true => remove(&client, &vm, trace).await,
            false => keep(&client, &vm, ui).await,
        };
        trace.end(trace::CLI_END, began);
        let outcome = outcome?;
        guest_session::tell_timeout(outcome, self.timeout, ui);
        match aftermath {
            // The command has ended, and its code is known: nothing of ours may replace it.
            Err(Failure::Problem(problem)) => ui.problem(&problem),
            other => other?,
        }
        Ok(outcome.exit_code())
    }

    /// A VM that is this process's own ends with it.
    fn check_restart(&self) -> Result<(), Failure> {
        let cause = match (self.shape.restart, self.rm, self.detach) {
            (Restart::No, ..) | (_, false, true) => return Ok(()),
            (_, true, _) => "--rm removes the VM when it ends",
            (_, false, false) => "a VM in the foreground stops when its command ends",
        };
        let title = "there would be nothing to start again";
        let problem = Problem::new(ErrorCode::InvalidArgument, title).cause(cause);
        Err(problem.hint("banger run -d --restart on-failure ..., or leave out --restart").into())
    }

    fn create_request(&self, what: &GuestCommand, ui: &Ui) -> Result<CreateVm, Failure> {
        let mut spec = self.shape.spec(what.image.as_deref());
        spec.remove_on_exit = self.rm;
        if self.detach {
            spec.command.clone_from(&what.command);
            spec.timeout_ms = timeout_ms(self.timeout);
        }
        let owner = match (self.detach, self.rm) {
            (true, _) => None,
            (false, true) => Some(OwnerPolicy::Kill),
            (false, false) => Some(OwnerPolicy::Stop),
        };
        let session_env = guest_session::session_env(ui);
        let start = StartVm { owner, cold: self.cold, trace: self.trace, session_env };
        Ok(CreateVm {
            name: self.shape.name.clone(),
            spec,
            start: Some(start),
            main: self.detach,
            pull: self.shape.pull.into(),
            registry: self.shape.registry()?,
        })
    }

    /// The command, run by the VM's owner.
    fn session(&self, argv: Vec<String>, lease: Option<Lines>) -> GuestSession {
        let timeout_ms = timeout_ms(self.timeout);
        let request = ExecRequest { argv, timeout_ms, ..ExecRequest::default() };
        GuestSession { request, tty: self.tty, owner: true, lease, trace: Trace::default() }
    }
}

fn vm_of(result: OperationResult) -> Result<Box<Vm>, Failure> {
    match result {
        OperationResult::Vm(vm) => Ok(vm),
        _ => Err(Failure::new(ErrorCode::Internal, "the daemon did not say what it created")),
    }
}

/// What is run in the foreground: the entrypoint with the command that was given, else with the
/// image's. Nothing at all is a login shell.
fn argv(spec: &VmSpec, command: Vec<String>) -> Vec<String> {
    let command = if command.is_empty() { spec.default_command.clone() } else { command };
    [spec.entrypoint.clone().unwrap_or_default(), command].concat()
}

/// Removes the VM and waits until it is gone, so that nothing of it is there when the prompt
/// returns. The daemon may have been faster, since the VM's stream has ended.
async fn remove(client: &Client, vm: &Vm, trace: &Trace) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen();
    let quiet = Ui::silent();
    let mut removed = removal(client, vm, (&quiet, &mut interrupts)).await;
    if matches!(&removed, Err(failure) if failure.code() == Some(ErrorCode::DaemonUnavailable)) {
        // It died under us. The next one finds the VM and what is to become of it.
        let client = Client::ready(&quiet).await?;
        removed = removal(&client, vm, (&quiet, &mut interrupts)).await;
    }
    match removed {
        Err(failure) if failure.code() != Some(ErrorCode::VmNotFound) => Err(failure),
        Err(_) => Ok(()),
        Ok(followed) => {
            trace.add(followed.marks);
            Ok(())
        }
    }
}

async fn removal(
    client: &Client,
    vm: &Vm,
    (ui, interrupts): (&Ui, &mut Interrupts),
) -> Result<Followed, Failure> {
    fault::reach(step::CLI_REMOVE)
        .await
        .map_err(|error| Failure::internal("the VM cannot be removed", &error))?;
    let operation = client.delete(&vm_path(&vm.id, "?force=true")).await?;
    follow(client, &operation, Patience::Watch, (ui, interrupts)).await
}

/// Waits until the VM has stopped, and tells a person how to get back to it.
async fn keep(client: &Client, vm: &Vm, ui: &Ui) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen();
    let stopped: Vm = tokio::select! {
        biased;
        signal = interrupts.next() => return Err(Failure::signal(signal)),
        stopped = wait_for(client, &vm.id) => stopped?,
    };
    if stopped.status.state == VmState::Stopped && ui.has_reader() {
        let name = &stopped.name;
        ui.note(&format!(
            "{name} is stopped and kept; `banger start {name}` starts it again, \
             `banger rm {name}` removes it"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::vm_row::tests::vm;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_entrypoint_comes_before_the_command() {
        // Entrypoint, the image's command, the user's, all of it.
        let cases = [
            ("", "", "", ""),
            ("", "/bin/sh", "", "/bin/sh"),
            ("", "/bin/sh", "ls /", "ls /"),
            ("/start", "a b", "", "/start a b"),
            ("/start", "a b", "c", "/start c"),
            ("/start", "", "", "/start"),
        ];
        for (entrypoint, default_command, command, want) in cases {
            let mut spec = vm("web", "running", &serde_json::Value::Null).spec;
            spec.entrypoint = Some(words(entrypoint));
            spec.default_command = words(default_command);
            assert_eq!(argv(&spec, words(command)), words(want), "{entrypoint} {command}");
        }
    }

    #[test]
    fn what_cannot_be_started_again_is_refused() {
        let check = |line: &str| {
            Line::try_parse_from(line.split(' ')).expect("it makes sense").run.check_restart()
        };
        check("run --rm x").expect("no restart");
        check("run -d --restart always x").expect("a VM that stays");
        for (line, part) in [
            ("run --restart always x", "foreground"),
            ("run --rm --restart on-failure x", "--rm removes"),
            ("run -d --rm --restart always x", "--rm removes"),
        ] {
            let Err(Failure::Problem(problem)) = check(line) else { panic!("{line} is refused") };
            assert_eq!(problem.code, ErrorCode::InvalidArgument);
            assert!(problem.causes[0].contains(part), "{line}: {problem}");
            assert!(problem.hint.is_some(), "{line}");
        }
    }

    #[test]
    fn a_detached_command_is_the_vms_and_a_foreground_one_is_not() {
        let request = |line: &str| {
            let run = Line::try_parse_from(line.split(' ')).expect("it makes sense").run;
            let what = guest_command::split(None, &run.words, false);
            run.create_request(&what, &Ui::silent()).expect("nothing is read")
        };
        let detached = request("run -d --pull always --timeout 5s nginx serve");
        assert!(detached.main);
        assert_eq!(detached.spec.command, ["serve"]);
        assert_eq!(detached.spec.timeout_ms, Some(5_000));
        assert_eq!(detached.pull, banger_api::image::PullPolicy::Always);
        let foreground = request("run --rm --timeout 5s --entrypoint [] nginx serve");
        assert!(!foreground.main);
        assert_eq!((foreground.spec.command.len(), foreground.spec.timeout_ms), (0, None));
        assert_eq!(foreground.spec.entrypoint, Some(Vec::new()));
        let owner = foreground.start.and_then(|start| start.owner);
        assert_eq!(owner, Some(OwnerPolicy::Kill));
    }
}
