//! `banger exec`.

use std::time::Duration;

use banger_api::exec::ExecRequest;
use banger_api::vm::{PauseReason, Vm, VmState};
use banger_api::{ErrorCode, Problem};
use banger_host::trace::Trace;
use clap::Args;

use super::guest_session::{self, GuestSession};
use super::shape::{Pair, check_command, environment, parse_pair, parse_timeout, timeout_ms};
use crate::client::Client;
use crate::failure::Failure;
use crate::session::TtyFlags;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  banger exec web -- ps aux              The exit code is the command's own
  tar c . | banger exec web tar x        stdin, stdout and stderr pass through
  banger exec -w /srv -e DEBUG=1 web -- make
  banger exec --timeout 30s web -- ./test
";

/// Arguments of `banger exec`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES,
    override_usage = "banger exec [OPTIONS] VM [--] COMMAND [ARGS...]")]
pub struct Exec {
    #[command(flatten)]
    how: How,
    /// Name or id
    #[arg(value_name = "VM")]
    vm: String,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// How a command runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Command")]
pub struct How {
    /// Environment variable, repeatable; KEY alone takes its value from here
    #[arg(short, long = "env", value_name = "KEY[=VALUE]", value_parser = parse_pair)]
    env: Vec<Pair>,
    /// Working directory [default: the VM's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User: name, uid, or either with :group [default: the VM's]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// End the command after so long, for example 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    timeout: Option<Duration>,
    #[command(flatten)]
    tty: TtyFlags,
}

impl Exec {
    /// Runs it; the exit code is the command's.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        self.how.run(&self.vm, self.command, ui).await
    }
}

impl How {
    /// Runs a command, or with no words a shell, in a running VM.
    pub async fn run(self, vm: &str, argv: Vec<String>, ui: &Ui) -> Result<u8, Failure> {
        check_command(&argv)?;
        let client = Client::ready(ui).await?;
        let vm = client.vm(vm).await?;
        check_running(&vm)?;
        let request = ExecRequest {
            argv,
            env: environment(&self.env, banger_host::environment::get),
            workdir: self.workdir,
            user: self.user,
            timeout_ms: timeout_ms(self.timeout),
            ..ExecRequest::default()
        };
        let trace = Trace::default();
        let session = GuestSession { request, tty: self.tty, owner: false, lease: None, trace };
        let outcome = guest_session::run(&client, &vm, session).await?;
        guest_session::tell_timeout(outcome, self.timeout, ui);
        Ok(outcome.exit_code())
    }
}

fn check_running(vm: &Vm) -> Result<(), Failure> {
    let state = vm.status.state;
    if state == VmState::Running {
        return Ok(());
    }
    if state == VmState::Paused {
        return Err(is_paused(vm).into());
    }
    let title = format!("the VM {} is {state}, not running", vm.name);
    let mut problem = Problem::new(ErrorCode::VmWrongState, title);
    if let (VmState::Failed, Some(end)) = (state, &vm.status.end) {
        problem = problem.cause(end.reason.clone());
    }
    let hint = match state {
        VmState::Created | VmState::Stopped | VmState::Failed => "start",
        _ => "show",
    };
    Err(problem.hint(format!("banger {hint} {}", vm.name)).into())
}

/// A command in it would only seem to hang.
fn is_paused(vm: &Vm) -> Problem {
    let problem = Problem::new(ErrorCode::VmWrongState, format!("VM {} is paused", vm.name))
        .hint(format!("banger resume {}", vm.name));
    match vm.status.paused.contains(&PauseReason::HostDiskFull) {
        true => problem.cause("the host's disk is full"),
        false => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::vm_row::tests::vm;

    #[test]
    fn a_vm_that_does_not_run_says_how_to_make_it() {
        let none = serde_json::Value::Null;
        check_running(&vm("web", "running", &none)).expect("it runs");
        let cases = [
            ("stopped", "banger start web"),
            ("created", "banger start web"),
            ("starting", "banger show web"),
            ("paused", "banger resume web"),
        ];
        for (state, hint) in cases {
            let failure = check_running(&vm("web", state, &none)).expect_err("it does not");
            let Failure::Problem(problem) = failure else { panic!("something to tell") };
            assert_eq!(problem.code, ErrorCode::VmWrongState);
            assert_eq!(problem.hint.as_deref(), Some(hint));
        }
    }

    #[test]
    fn a_paused_vm_says_so_and_why_it_cannot_go_on() {
        let mut vm = vm("web", "paused", &serde_json::Value::Null);
        vm.status.paused = vec![PauseReason::Requested];
        insta::assert_snapshot!(is_paused(&vm), @"VM web is paused");
        vm.status.paused = vec![PauseReason::HostDiskFull];
        insta::assert_snapshot!(is_paused(&vm), @"VM web is paused: the host's disk is full");
    }
}
