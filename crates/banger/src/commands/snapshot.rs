//! `banger snapshot …`.

use banger_api::ErrorCode;
use banger_api::operation::{Operation, OperationResult};
use banger_api::snapshot::{CreateSnapshot, RestoreSnapshot, Restored, Snapshot};
use banger_core::size;
use clap::{Args, Subcommand};

use super::guest_session;
use super::vm_row::age;
use crate::client::{Client, Patience, escape, follow, vm_path};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::ui::{Row, Ui};

/// The verbs of snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Keep what a VM is now: memory and disks of one that runs, else the disks
    Create(Create),
    /// List snapshots, the oldest of each VM first
    #[command(alias = "list")]
    Ls(Ls),
    /// Show all about a snapshot
    #[command(alias = "inspect")]
    Show(One),
    /// Make a VM what it was; what it is now is kept, so this can be undone
    Restore(Restore),
    /// Remove snapshots of a VM; the VM stays what it is
    Rm(Rm),
}

const CREATE_EXAMPLES: &str = "\
Examples:
  banger snapshot create web                  Called snapshot-1, snapshot-2, …
  banger snapshot create web before-upgrade

A VM that runs goes on; it stands still for a moment. One that goes when it ends (--rm) has none.
";

/// Arguments of `banger snapshot create`.
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub struct Create {
    /// Name or id of the VM
    #[arg(value_name = "VM")]
    vm: String,
    /// Name of the snapshot [default: generated]
    #[arg(value_name = "SNAPSHOT")]
    name: Option<String>,
}

/// Arguments of `banger snapshot ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// Name or id of the VM [default: all]
    #[arg(value_name = "VM")]
    vm: Option<String>,
}

/// A snapshot.
#[derive(Debug, Args)]
pub struct One {
    /// Name or id of the VM
    #[arg(value_name = "VM")]
    vm: String,
    /// Name of the snapshot
    #[arg(value_name = "SNAPSHOT")]
    name: String,
}

const RESTORE_EXAMPLES: &str = "\
Example:
  banger snapshot restore web before-upgrade

If the VM ran when the snapshot was made it goes on from there, with its clock set and its
connections reset; commands that ran then have ended. Else it is stopped afterwards. What the VM
was before is kept as a snapshot called auto-N; the last three of those are kept.
";

/// Arguments of `banger snapshot restore`.
#[derive(Debug, Args)]
#[command(after_help = RESTORE_EXAMPLES)]
pub struct Restore {
    #[command(flatten)]
    which: One,
}

/// Arguments of `banger snapshot rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// One that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Name or id of the VM
    #[arg(value_name = "VM")]
    vm: String,
    /// Names of the snapshots
    #[arg(required = true, value_name = "SNAPSHOT")]
    names: Vec<String>,
}

/// Does one of them.
pub async fn run(command: SnapshotCommand, ui: &Ui) -> Result<u8, Failure> {
    match command {
        SnapshotCommand::Create(args) => args.run(ui).await,
        SnapshotCommand::Ls(args) => args.run(ui).await,
        SnapshotCommand::Show(which) => {
            let client = Client::ready(ui).await?;
            let found: Snapshot = client.get(&which.path("")).await?;
            ui.show(&found, &fields(&found))?;
            Ok(0)
        }
        SnapshotCommand::Restore(args) => args.run(ui).await,
        SnapshotCommand::Rm(args) => args.run(ui).await,
    }
}

fn path(vm: &str, name: &str, verb: &str) -> String {
    vm_path(vm, &format!("/snapshots/{}{verb}", escape(name)))
}

impl One {
    fn path(&self, verb: &str) -> String {
        path(&self.vm, &self.name, verb)
    }
}

impl Create {
    async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let mut interrupts = Interrupts::listen();
        let client = Client::ready(ui).await?;
        let request = CreateSnapshot { name: self.name };
        let operation: Operation = client.post(&vm_path(&self.vm, "/snapshots"), &request).await?;
        let followed = follow(&client, &operation, Patience::Lease, (ui, &mut interrupts)).await?;
        let OperationResult::Snapshot(snapshot) = followed.result else {
            return Err(Failure::new(ErrorCode::Internal, "the daemon did not say what it made"));
        };
        ui.done(&snapshot.name, Some(&snapshot))?;
        if let Some(memory) = &snapshot.memory {
            ui.note(&format!("{} stood still for {} ms", self.vm, memory.paused_ms));
        }
        Ok(0)
    }
}

impl Ls {
    async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let client = Client::ready(ui).await?;
        let query = self.vm.map(|vm| format!("?vm={}", escape(&vm))).unwrap_or_default();
        let snapshots: Vec<Snapshot> = client.get(&format!("/v1/snapshots{query}")).await?;
        ui.list(&snapshots)?;
        Ok(0)
    }
}

impl Restore {
    async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let mut interrupts = Interrupts::listen();
        let client = Client::ready(ui).await?;
        let request = RestoreSnapshot { session_env: guest_session::session_env(ui) };
        let operation: Operation = client.post(&self.which.path("/restore"), &request).await?;
        let followed = follow(&client, &operation, Patience::Lease, (ui, &mut interrupts)).await?;
        let OperationResult::Restored(restored) = followed.result else {
            return Err(Failure::new(ErrorCode::Internal, "the daemon did not say what it did"));
        };
        show(&restored, ui)?;
        Ok(0)
    }
}

fn show(restored: &Restored, ui: &Ui) -> Result<(), Failure> {
    let Restored { vm, undo } = restored;
    ui.done(&vm.name, Some(restored))?;
    ui.note(&format!("{} is {}", vm.name, vm.status.state));
    ui.note(&format!("to undo: banger snapshot restore {} {undo}", vm.name));
    Ok(())
}

impl Rm {
    /// Removes each. Failures are shown as they come.
    async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let client = Client::ready(ui).await?;
        let mut worst = 0;
        for name in &self.names {
            let path = path(&self.vm, name, "");
            let removed =
                client.ask::<serde_json::Value, ()>(hyper::Method::DELETE, &path, None).await;
            match removed {
                Ok(_) => ui.done(name, None::<&()>)?,
                Err(failure)
                    if self.force && failure.code() == Some(ErrorCode::SnapshotNotFound) => {}
                Err(Failure::Problem(problem)) => {
                    ui.problem(&problem);
                    worst = Failure::Problem(problem).exit_code();
                }
                Err(quiet) => return Err(quiet),
            }
        }
        Ok(worst)
    }
}

impl Row for Snapshot {
    const HEADERS: &'static [&'static str] =
        &["VM", "SNAPSHOT", "KIND", "IMAGE", "CREATED", "SIZE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.vm.clone(),
            self.name.clone(),
            kind(self).to_owned(),
            self.image.clone(),
            format!("{} ago", age(self.created_at_ms, banger_host::clock::now_ms())),
            size::format(self.allocated_bytes),
        ]
    }

    fn name(&self) -> &str {
        &self.name
    }
}

fn kind(snapshot: &Snapshot) -> &'static str {
    if snapshot.memory.is_some() { "memory, disks" } else { "disks" }
}

fn fields(snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let memory = size::format(u64::from(snapshot.memory_mib) * size::MIB);
    let disk = size::format(snapshot.disk_bytes);
    let mut dimensions = format!("{} CPUs, {memory} memory, {disk} disk", snapshot.cpus);
    if let Some(bytes) = snapshot.work_disk_bytes {
        dimensions.push_str(&format!(", {} work disk", size::format(bytes)));
    }
    let made = age(snapshot.created_at_ms, banger_host::clock::now_ms());
    let by = if snapshot.automatic { ", before the VM was restored" } else { "" };
    let mut fields = vec![
        ("Snapshot", snapshot.name.clone()),
        ("VM", format!("{} ({})", snapshot.vm, snapshot.vm_id)),
        ("Created", format!("{made} ago{by}")),
        ("Kind", kind(snapshot).to_owned()),
        ("Image", format!("{} ({})", snapshot.image, snapshot.image_digest)),
        ("Size", dimensions),
    ];
    if let Some(memory) = &snapshot.memory {
        let engine = &memory.engine;
        let accelerator = engine.accelerator.as_str();
        fields.extend([
            ("Engine", format!("{} {} ({accelerator})", engine.name, engine.version)),
            ("Processor", memory.cpu.clone()),
        ]);
    }
    fields.push(("Takes", size::format(snapshot.allocated_bytes)));
    fields
}
