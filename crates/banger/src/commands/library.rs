//! What images and kernels have in common on the command line.

use banger_api::image::PullRequest;
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

/// Arguments of `pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// Make a new version even if one is here; VMs keep the version they have
    #[arg(long)]
    pub refresh: bool,
    /// Name from the catalog
    #[arg(value_name = "NAME")]
    pub name: String,
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

/// Removes each.
pub async fn remove(path: &str, names: &[String], ui: &Ui) -> Result<u8, Failure> {
    let client = Client::ready(ui).await?;
    let mut worst = 0;
    for name in names {
        let path = format!("{path}/{}", escape(name));
        let removed = client.ask::<serde_json::Value, ()>(hyper::Method::DELETE, &path, None).await;
        match removed {
            Ok(_) => ui.done(name, None::<&()>)?,
            Err(Failure::Problem(problem)) => {
                ui.problem(&problem);
                worst = Failure::Problem(problem).exit_code();
            }
            Err(quiet) => return Err(quiet),
        }
    }
    Ok(worst)
}

/// Fetches one, showing the stages.
pub async fn pull(path: &str, what: Pull, ui: &Ui) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::listen();
    let client = Client::ready(ui).await?;
    let request =
        PullRequest { name: what.name.clone(), refresh: what.refresh, ..PullRequest::default() };
    let operation: Operation = client.post(&format!("{path}/pull"), &request).await?;
    let followed = follow(&client, &operation, Patience::Lease, (ui, &mut interrupts)).await?;
    match &followed.result {
        OperationResult::Image(image) => ui.done(&image.name, Some(image))?,
        OperationResult::Kernel(kernel) => ui.done(&kernel.name, Some(kernel))?,
        _ => ui.done(&what.name, None::<&()>)?,
    }
    Ok(0)
}
