//! Doing the same to several VMs: all of them, whatever happens to one.

use banger_api::ErrorCode;
use banger_api::operation::{Operation, OperationResult};
use hyper::Method;
use serde::Serialize;

use crate::client::{Client, Patience, follow};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::ui::Ui;

/// What is asked about each VM.
pub struct Request<'a, B> {
    /// HTTP method.
    pub method: Method,
    /// The path of a VM's name.
    pub path: &'a dyn Fn(&str) -> String,
    /// The body.
    pub body: Option<B>,
    /// What an interrupt means.
    pub patience: Patience,
    /// Whether a VM that is not there counts as done.
    pub missing_is_fine: bool,
}

impl<B> Request<'_, B> {
    fn is_done(&self, failure: &Failure) -> bool {
        self.missing_is_fine && failure.code() == Some(ErrorCode::VmNotFound)
    }
}

/// Asks it about every VM, so that the daemon works on all at once, then waits for each and prints
/// its name. Failures are shown as they come.
///
/// # Errors
/// [`Failure::Quiet`] if there was one.
pub async fn each<B: Serialize>(
    vms: &[String],
    request: &Request<'_, B>,
    ui: &Ui,
) -> Result<u8, Failure> {
    let client = Client::ready(ui).await?;
    let mut interrupts = Interrupts::listen();
    let mut worst = 0;
    let mut started = Vec::with_capacity(vms.len());
    for vm in vms {
        let path = (request.path)(vm);
        let asked =
            client.ask::<Operation, B>(request.method.clone(), &path, request.body.as_ref());
        match asked.await {
            Ok(operation) => started.push((vm, operation)),
            Err(failure) if request.is_done(&failure) => {}
            Err(failure) => worst = report(failure, ui)?,
        }
    }
    for (vm, operation) in started {
        let followed = follow(&client, &operation, request.patience, (ui, &mut interrupts)).await;
        match followed.map(|followed| followed.result) {
            Ok(OperationResult::Vm(found)) => ui.done(vm, Some(&found))?,
            Ok(_) => ui.done(vm, None::<&()>)?,
            Err(failure) if request.is_done(&failure) => {}
            Err(failure) => worst = report(failure, ui)?,
        }
    }
    Ok(worst)
}

/// Shows a failure that must not keep us from the rest; one that was meant to end everything does.
fn report(failure: Failure, ui: &Ui) -> Result<u8, Failure> {
    let code = failure.exit_code();
    match failure {
        Failure::Problem(problem) => {
            ui.problem(&problem);
            Ok(code)
        }
        quiet @ Failure::Quiet(_) => Err(quiet),
    }
}
