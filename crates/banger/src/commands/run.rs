//! `banger run`: a VM and a command in it, in one go.
//!
//! In the foreground the VM belongs to this process. Until its exec stream is open, the lease on
//! the operation that creates and starts it says so; from then on the stream itself does, and the
//! shim ends the VM when the stream ends. So there is no moment at which the death of this process
//! leaves a VM behind that nobody wanted.

use std::time::Duration;

use banger_api::ErrorCode;
use banger_api::exec::ExecRequest;
use banger_api::image::{PullPolicy, RegistryAccess};
use banger_api::operation::{Operation, OperationResult};
use banger_api::vm::{CreateVm, OwnerPolicy, StartVm, Vm, VmState};
use banger_host::http::Lines;
use clap::Args;

use super::guest_session::{self, GuestSession};
use super::shape::{Shape, parse_timeout, timeout_ms};
use crate::client::{Client, Patience, follow, vm_path};
use crate::failure::Failure;
use crate::guest_command::{self, GuestCommand};
use crate::interrupt::Interrupts;
use crate::session::TtyFlags;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  banger run                             A shell in a new VM of the default image
  banger run --rm -- make test           One command; the VM is gone afterwards
  banger run debian-bookworm ls /        The image's name, then the command
  banger run -d --name web -- ./serve    In the background; `banger logs web` shows its output
  echo 'uname -r' | banger run --rm      A shell that reads a pipe

Without --rm the VM is stopped and kept when the command ends. The exit code is the command's own;
124 is its timeout, 125 a failure of banger, 126 and 127 a command that cannot be run or found.
";

/// Arguments of `banger run`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES,
    override_usage = "banger run [OPTIONS] [IMAGE] [[--] COMMAND...]")]
pub struct Run {
    /// Remove the VM when the command has ended
    #[arg(long, help_heading = "VM")]
    rm: bool,
    /// Leave the VM running in the background, and print its name
    #[arg(short, long, help_heading = "VM")]
    detach: bool,
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
        let line: Vec<_> = std::env::args_os().collect();
        let escaped = guest_command::is_escaped(&line, self.words.len());
        let what = guest_command::split(self.shape.image.as_deref(), &self.words, escaped);
        // From here on Ctrl-C cancels instead of killing us in the middle.
        let mut interrupts = Interrupts::listen();
        let client = Client::ready(ui).await?;
        let request = self.create_request(&what, ui);
        let created = async {
            let operation: Operation = client.post("/v1/vms", &request).await?;
            follow(&client, &operation, Patience::Lease, (ui, &mut interrupts)).await
        };
        let followed = created.await.map_err(|failure| hint_at_marker(failure, &what))?;
        let vm = vm_of(followed.result)?;
        if let Some(signal) = followed.interrupted {
            // It came when there was nothing left to cancel, so what was made is unmade.
            remove(&client, &vm).await?;
            return Err(Failure::signal(signal));
        }
        if self.detach {
            ui.done(&vm.name, Some(&vm))?;
            return Ok(0);
        }
        let session = self.session(what, followed.lease);
        let outcome = guest_session::run(&client, &vm, session).await;
        drop(interrupts);
        let aftermath =
            if self.rm { remove(&client, &vm).await } else { keep(&client, &vm, ui).await };
        let code = outcome?.exit_code();
        aftermath?;
        Ok(code)
    }

    fn create_request(&self, what: &GuestCommand, ui: &Ui) -> CreateVm {
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
        let start = StartVm { owner, session_env: guest_session::session_env(ui) };
        CreateVm {
            name: self.shape.name.clone(),
            spec,
            start: Some(start),
            main: self.detach,
            pull: PullPolicy::Missing,
            registry: RegistryAccess::default(),
        }
    }

    /// The command, run by the VM's owner.
    fn session(&self, what: GuestCommand, lease: Option<Lines>) -> GuestSession {
        let timeout_ms = timeout_ms(self.timeout);
        let request = ExecRequest { argv: what.command, timeout_ms, ..ExecRequest::default() };
        GuestSession { request, tty: self.tty, owner: true, lease }
    }
}

fn vm_of(result: OperationResult) -> Result<Box<Vm>, Failure> {
    match result {
        OperationResult::Vm(vm) => Ok(vm),
        _ => Err(Failure::new(ErrorCode::Internal, "the daemon did not say what it created")),
    }
}

/// `banger run ls /` takes `ls` for an image. If no image is anything like it, it was none.
fn hint_at_marker(failure: Failure, what: &GuestCommand) -> Failure {
    let Failure::Problem(mut problem) = failure else { return failure };
    let is_near = problem.hint.as_ref().is_some_and(|hint| hint.contains("did you mean"));
    if let Some(word) = &what.image
        && problem.code == ErrorCode::ImageNotFound
        && !what.marked
        && !is_near
    {
        let words = [std::slice::from_ref(word), &what.command].concat().join(" ");
        problem.hint = Some(format!("banger run -- {words}  # to run it in the default image"));
    }
    Failure::Problem(problem)
}

/// Removes the VM and waits until it is gone, so that nothing of it is there when the prompt
/// returns. The daemon may have been faster, since the VM's stream has ended.
async fn remove(client: &Client, vm: &Vm) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen();
    let quiet = Ui::silent();
    let removed = async {
        let operation = client.delete(&vm_path(&vm.id, "?force=true")).await?;
        follow(client, &operation, Patience::Watch, (&quiet, &mut interrupts)).await
    };
    match removed.await {
        Err(failure) if failure.code() != Some(ErrorCode::VmNotFound) => Err(failure),
        _ => Ok(()),
    }
}

/// Waits until the VM has stopped, and tells a person how to get back to it.
async fn keep(client: &Client, vm: &Vm, ui: &Ui) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen();
    let path = vm_path(&vm.id, "/wait");
    let stopped: Vm = tokio::select! {
        biased;
        signal = interrupts.next() => return Err(Failure::signal(signal)),
        stopped = client.get(&path) => stopped?,
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
    use banger_api::Problem;

    #[test]
    fn a_command_that_was_taken_for_an_image_is_hinted_at() {
        let hint = |line: &str, code, hint: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let what = guest_command::split(None, &words, false);
            let failure = hint_at_marker(Problem::new(code, "x").hint(hint).into(), &what);
            let Failure::Problem(problem) = failure else { panic!("something to tell") };
            problem.hint.unwrap_or_default()
        };
        let missing = ErrorCode::ImageNotFound;
        let marker = "banger run -- ls /  # to run it in the default image";
        let near = "did you mean debian-bookworm?";
        assert_eq!(hint("ls /", missing, "banger image catalog"), marker);
        assert_eq!(hint("debian-bokworm ls", missing, near), near);
        assert_eq!(hint("nope -- ls", missing, "theirs"), "theirs");
        assert_eq!(hint("ls /", ErrorCode::PullFailed, "theirs"), "theirs");
    }
}
