//! `banger daemon enable` and `disable`: the daemon as a service of systemd.

use banger_api::{ErrorCode, Problem};
use banger_host::paths::{Programs, StateDirs};
use banger_host::systemd::service::{self, ServiceError, UNIT};

use crate::client::stop_daemon;
use crate::failure::Failure;
use crate::ui::Ui;

/// Where systemd writes down why a service did not start.
const JOURNAL: &str = "journalctl --user -u bangerd.service (as root without --user)";

/// Has systemd run the daemon from now on.
pub async fn enable(ui: &Ui) -> Result<u8, Failure> {
    let dirs = StateDirs::resolve()?;
    let banger = std::env::current_exe()
        .map_err(|error| Failure::internal("cannot tell where banger is", &error))?;
    let unit = service::install(&banger, &Programs::locate_daemon()?, &dirs).map_err(failed)?;
    stop_daemon(&dirs).await?;
    service::enable().map_err(failed)?;
    ui.note(&format!("{UNIT} is enabled and runs: {}", unit.display()));
    if service::outlives_logins() == Some(false) {
        ui.note(
            "it ends, and its VMs with it, when you log out for the last time; \
             `loginctl enable-linger` lets them go on",
        );
    }
    Ok(0)
}

/// Takes the service away. The next command that needs a daemon starts one.
pub fn disable(ui: &Ui) -> Result<u8, Failure> {
    if service::remove().map_err(failed)? {
        ui.note("the service is gone and the daemon has stopped; VMs go on running");
    } else {
        ui.note("the daemon was no service");
    }
    Ok(0)
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn failed(error: ServiceError) -> Failure {
    let (code, hint) = match &error {
        ServiceError::NoManager | ServiceError::NoHome => {
            (ErrorCode::HostNotPermitted, "without a service, any banger command starts the daemon")
        }
        ServiceError::File { .. } => (ErrorCode::HostNotPermitted, "banger doctor"),
        ServiceError::Refused(_) => (ErrorCode::DaemonUnavailable, JOURNAL),
    };
    Problem::new(code, "the daemon's service was not set up").because(&error).hint(hint).into()
}
