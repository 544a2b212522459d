//! `banger wait`.

use std::time::{Duration, Instant};

use banger_api::exec::ExecEnd;
use banger_api::vm::{Vm, VmState};
use banger_api::{ErrorCode, Problem, exit};
use clap::Args;

use crate::client::{Client, vm_path};
use crate::failure::Failure;
use crate::ui::Ui;

/// How many daemons in a row may go away at once.
const TRIES: u32 = 5;
/// A daemon that stayed that long did not go away at once.
const SETTLED: Duration = Duration::from_secs(5);

/// Arguments of `banger wait`.
#[derive(Debug, Args)]
pub struct Wait {
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

impl Wait {
    /// Waits for each, and prints the exit code of its main command. As in Docker, the exit code of
    /// `wait` itself only says whether waiting worked. What cannot be waited for does not keep it
    /// from waiting for the others.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let client = Client::ready(ui).await?;
        // All at first: a name may mean another VM by the time that its turn comes.
        let mut found = Vec::with_capacity(self.vms.len());
        for name in &self.vms {
            found.push(client.vm(name).await);
        }
        let mut worst = 0;
        for vm in found {
            let ended = match vm {
                Ok(vm) => wait_for(&client, &vm.id).await.map_err(|failure| lost(&vm, failure)),
                Err(failure) => Err(failure),
            };
            match ended {
                Ok(vm) if ui.is_json() => ui.json(&vm)?,
                Ok(vm) => ui.line(&exit_code(&vm).to_string())?,
                Err(Failure::Problem(problem)) => {
                    ui.problem(&problem);
                    worst = exit::BANGER_FAILED;
                }
                Err(quiet) => return Err(quiet),
            }
        }
        Ok(worst)
    }
}

/// Waits until a VM has ended and is not to be started again. A daemon that goes away meanwhile is
/// started again, and asked again.
///
/// # Errors
/// If there is no such VM, or daemon after daemon goes away.
pub async fn wait_for(client: &Client, id: &str) -> Result<Vm, Failure> {
    let path = vm_path(id, "/wait");
    let mut asked = Instant::now();
    let mut answer = client.get(&path).await;
    let mut left = TRIES;
    while matches!(&answer, Err(failure) if failure.code() == Some(ErrorCode::DaemonUnavailable)) {
        left = if asked.elapsed() > SETTLED { TRIES } else { left.saturating_sub(1) };
        if left == 0 {
            break;
        }
        let client = Client::ready(&Ui::silent()).await?;
        asked = Instant::now();
        answer = client.get(&path).await;
    }
    answer
}

/// A VM that was there and is not any more went while no daemon could tell how.
fn lost(vm: &Vm, failure: Failure) -> Failure {
    if failure.code() != Some(ErrorCode::VmNotFound) {
        return failure;
    }
    let title = format!("the VM {} was removed, so how it ended is not known", vm.name);
    Problem::new(ErrorCode::VmNotFound, title).hint("banger ls").into()
}

/// The main command's exit code; without one, whether the VM ended well.
fn exit_code(vm: &Vm) -> u8 {
    let main = vm.status.end.as_ref().and_then(|end| end.main);
    match (main, vm.status.state) {
        (Some(end), _) => ExecEnd::exit_code(end),
        (None, VmState::Failed) => exit::BANGER_FAILED,
        (None, _) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::vm_row::tests::vm;

    #[test]
    fn the_main_command_decides() {
        let main = |end| serde_json::json!({ "cause": "main_exited", "reason": "x", "main": end });
        let cases = [
            ("stopped", main(serde_json::json!({ "exited": 3 })), 3),
            ("stopped", main(serde_json::json!({ "signaled": 9 })), 137),
            ("stopped", main(serde_json::json!("timed_out")), 124),
            ("stopped", serde_json::Value::Null, 0),
            ("failed", serde_json::Value::Null, 125),
        ];
        for (state, end, want) in cases {
            assert_eq!(exit_code(&vm("web", state, &end)), want, "{state} {end}");
        }
    }
}
