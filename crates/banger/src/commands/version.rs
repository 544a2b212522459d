//! `banger version`.

use banger_api::version::{DAEMON_PROTOCOL, DaemonVersion, ProtocolRange};
use clap::Args;
use serde::Serialize;

use crate::client::{Client, VERSION};
use crate::failure::Failure;
use crate::ui::Ui;

/// Arguments of `banger version`.
#[derive(Debug, Args)]
pub struct Version {}

#[derive(Debug, Serialize)]
struct Versions {
    version: &'static str,
    protocol: ProtocolRange,
    daemon: Option<DaemonVersion>,
}

impl Version {
    /// Shows them. A daemon that does not run is not started for this.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let daemon: Option<DaemonVersion> = match Client::running().await {
            Ok(Some(client)) => client.get("/v1/version").await.ok(),
            _ => None,
        };
        let theirs = match &daemon {
            Some(daemon) => format!("{} (protocol {})", daemon.version, daemon.protocol),
            None => "not running".to_owned(),
        };
        let fields =
            [("banger", format!("{VERSION} (protocol {DAEMON_PROTOCOL})")), ("daemon", theirs)];
        ui.show(&Versions { version: VERSION, protocol: DAEMON_PROTOCOL, daemon }, &fields)?;
        Ok(0)
    }
}
