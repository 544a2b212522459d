//! `banger daemon …`.

mod service;

use std::io;
use std::time::Duration;

use banger_api::system::VmIds;
use banger_api::version::DaemonVersion;
use banger_core::doctor::DaemonFacts;
use banger_host::logs::LogReader;
use banger_host::paths::StateDirs;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::vm_row::age;
use crate::client::{Client, Stopped, ending, observe_daemon, stop_daemon};
use crate::failure::Failure;
use crate::ui::Ui;

/// How often a followed log is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);
/// How much of the log is read at a time, in bytes.
const BLOCK: usize = 64 * 1024;

/// The verbs of the daemon.
#[derive(Debug, Subcommand)]
pub enum DaemonCommand {
    /// Show whether it runs
    Status,
    /// Start it; other commands do that by themselves
    Start,
    /// Stop it; VMs go on running
    Stop,
    /// Make it a service of systemd, started at boot or login
    Enable,
    /// Take the service away; VMs go on running
    Disable,
    /// Show what it has to say
    Logs(LogArgs),
}

/// Arguments of `banger daemon logs`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Go on as lines are added
    #[arg(short, long)]
    follow: bool,
    /// Only so many last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u32>,
}

/// What `status` says, as JSON.
#[derive(Debug, Serialize)]
struct Status {
    running: bool,
    socket: String,
    #[serde(flatten)]
    daemon: Option<DaemonVersion>,
}

/// Does one of them.
pub async fn run(command: DaemonCommand, ui: &Ui) -> Result<u8, Failure> {
    match command {
        DaemonCommand::Status => status(Client::running().await?, ui).await,
        DaemonCommand::Start => {
            let client = Client::ready(ui).await?;
            // One that cannot do its work says why, and ends.
            client.get::<VmIds>("/v1/system/vm-ids").await?;
            status(Some(client), ui).await
        }
        DaemonCommand::Stop => stop(ui).await,
        DaemonCommand::Enable => service::enable(ui).await,
        DaemonCommand::Disable => service::disable(ui),
        DaemonCommand::Logs(args) => args.run(ui).await,
    }
}

async fn status(client: Option<Client>, ui: &Ui) -> Result<u8, Failure> {
    let dirs = StateDirs::locate()?;
    let socket = dirs.api_socket().display().to_string();
    let daemon: Option<DaemonVersion> = match client {
        Some(client) => Some(client.get("/v1/version").await?),
        None => None,
    };
    let fields = match &daemon {
        Some(daemon) => vec![
            (
                "State",
                format!("running {}", age(daemon.started_at_ms, banger_host::clock::now_ms())),
            ),
            ("Release", daemon.version.clone()),
            ("Process", daemon.pid.to_string()),
            ("Socket", socket.clone()),
            ("Data", daemon.data_dir.clone()),
        ],
        None => vec![("State", absence(&dirs).await), ("Socket", socket.clone())],
    };
    ui.show(&Status { running: daemon.is_some(), socket, daemon }, &fields)?;
    Ok(0)
}

/// Why there is nobody to talk to.
async fn absence(dirs: &StateDirs) -> String {
    match observe_daemon(dirs).await {
        DaemonFacts::Silent => format!(
            "runs, and does not serve this socket; what ends it: {} (VMs go on running)",
            ending(dirs)
        ),
        _ => "not running".to_owned(),
    }
}

async fn stop(ui: &Ui) -> Result<u8, Failure> {
    match stop_daemon(&StateDirs::locate()?).await? {
        Stopped::Now => ui.note("the daemon has stopped; VMs go on running"),
        Stopped::Already => ui.note("the daemon was not running"),
    }
    Ok(0)
}

impl LogArgs {
    /// Copies the daemon's log to stdout. The daemon need not run for that.
    async fn run(&self, ui: &Ui) -> Result<u8, Failure> {
        let path = StateDirs::locate()?.daemon_log();
        let failed = |error: io::Error| {
            Failure::internal(format!("cannot read the log {}", path.display()), &error)
        };
        let mut reader = LogReader::open(&path, self.tail).map_err(failed)?;
        let mut buffer = vec![0; BLOCK];
        loop {
            match reader.read(&mut buffer).map_err(failed)? {
                0 if self.follow => tokio::time::sleep(FOLLOW_INTERVAL).await,
                0 => return Ok(0),
                count => ui.raw(&buffer[..count])?,
            }
        }
    }
}
