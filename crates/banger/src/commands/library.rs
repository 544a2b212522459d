//! What images and kernels have in common on the command line.

use std::fmt::Debug;

use banger_api::ErrorCode;
use banger_api::operation::{Operation, OperationResult};
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{Client, Patience, escape, follow};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::ui::{Row, Ui};

/// Names of things.
#[derive(Debug, Args)]
pub struct Names {
    /// Names or digests
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub struct Removal {
    /// One that is not there is no error
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    which: Names,
}

/// Lists what is local, or with `/catalog` what can be had.
pub async fn list<T: DeserializeOwned + Row + Serialize>(
    path: &str,
    ui: &Ui,
) -> Result<u8, Failure> {
    let client = Client::ready(ui).await?;
    let rows: Vec<T> = client.get(path).await?;
    ui.list(&rows)?;
    Ok(0)
}

/// Shows each.
pub async fn show<T: DeserializeOwned + Serialize>(
    path: &str,
    names: &[String],
    fields: impl Fn(&T) -> Vec<(&'static str, String)>,
    ui: &Ui,
) -> Result<u8, Failure> {
    let client = Client::ready(ui).await?;
    for (index, name) in names.iter().enumerate() {
        let found: T = client.get(&format!("{path}/{}", escape(name))).await?;
        if index > 0 && !ui.is_json() {
            ui.line("")?;
        }
        ui.show(&found, &fields(&found))?;
    }
    Ok(0)
}

/// Removes each. Failures are shown as they come.
pub async fn remove(path: &str, removal: &Removal, ui: &Ui) -> Result<u8, Failure> {
    let client = Client::ready(ui).await?;
    let mut worst = 0;
    for name in &removal.which.names {
        let path = format!("{path}/{}", escape(name));
        let removed = client.ask::<serde_json::Value, ()>(hyper::Method::DELETE, &path, None).await;
        match removed {
            Ok(_) => ui.done(name, None::<&()>)?,
            Err(failure) if removal.force && is_missing(&failure) => {}
            Err(Failure::Problem(problem)) => {
                ui.problem(&problem);
                worst = Failure::Problem(problem).exit_code();
            }
            Err(quiet) => return Err(quiet),
        }
    }
    Ok(worst)
}

fn is_missing(failure: &Failure) -> bool {
    matches!(
        failure.code(),
        Some(ErrorCode::ImageNotFound | ErrorCode::KernelNotFound | ErrorCode::TemplateNotFound)
    )
}

/// Has something made, showing the stages, and prints what came of it.
pub async fn make(path: &str, request: &(impl Serialize + Debug), ui: &Ui) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::listen();
    let client = Client::ready(ui).await?;
    make_with(&client, path, request, (ui, &mut interrupts)).await
}

/// The same for a command that has begun already.
pub async fn make_with(
    client: &Client,
    path: &str,
    request: &(impl Serialize + Debug),
    (ui, interrupts): (&Ui, &mut Interrupts),
) -> Result<u8, Failure> {
    let operation: Operation = client.post(path, request).await?;
    let followed = follow(client, &operation, Patience::Lease, (ui, interrupts)).await?;
    match &followed.result {
        OperationResult::Image(image) => ui.done(&image.name, Some(image))?,
        OperationResult::Kernel(kernel) => ui.done(&kernel.name, Some(kernel))?,
        OperationResult::Template(template) => ui.done(&template.id, Some(template))?,
        OperationResult::Pushed(pushed) => {
            let name = format!("{}@{}", pushed.reference, pushed.digest);
            ui.done(&name, Some(pushed))?;
        }
        OperationResult::Vm(_) | OperationResult::Forked(_) | OperationResult::Nothing => {}
        OperationResult::Snapshot(_) | OperationResult::Restored(_) => {}
    }
    Ok(0)
}
