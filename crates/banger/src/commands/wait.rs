//! `banger wait`.

use banger_api::exec::ExecEnd;
use banger_api::exit;
use banger_api::vm::{Vm, VmState};
use clap::Args;

use crate::client::{Client, vm_path};
use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger wait`.
#[derive(Debug, Args)]
pub struct Wait {
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

impl Wait {
    /// Waits for each, and prints the exit code of its main command. As in Docker, the exit code of
    /// `wait` itself only says whether waiting worked.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let client = Client::ready(ui).await?;
        for name in &self.vms {
            let vm: Vm = client.get(&vm_path(name, "/wait")).await?;
            if ui.is_json() {
                ui.json(&vm)?;
            } else {
                ui.line(&exit_code(&vm).to_string())?;
            }
        }
        Ok(0)
    }
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
