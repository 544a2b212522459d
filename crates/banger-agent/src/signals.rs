//! What the agent does with signals. As the first process it keeps the conventions of small init
//! programs, so that the image's own `poweroff`, `halt` and `reboot` work. Beside another first
//! process it ignores what that one sends to everybody on the way down.

use std::sync::Arc;

use banger_api::agent::{Shutdown, ShutdownAction};
use nix::sys::reboot::set_cad_enabled;
use nix::sys::signal::{SigHandler, Signal};
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::Agent;
use crate::{console, shutdown};

/// How long processes may take to end when the guest itself asked to go down.
const GRACE_MS: u64 = 5_000;

/// Which signal asks for what. Real-time signals are what systemd's tools send.
const REQUESTS: [(libc::c_int, ShutdownAction); 8] = [
    (libc::SIGUSR1, ShutdownAction::PowerOff),
    (libc::SIGUSR2, ShutdownAction::PowerOff),
    (libc::SIGPWR, ShutdownAction::PowerOff),
    (libc::SIGTERM, ShutdownAction::Reboot),
    (libc::SIGINT, ShutdownAction::Reboot),
    (37, ShutdownAction::PowerOff),
    (38, ShutdownAction::PowerOff),
    (39, ShutdownAction::Reboot),
];

/// Obeys or ignores signals from now on. As the first process all others stay ignored, as the kernel
/// has it.
pub fn listen(agent: &Arc<Agent>) {
    if agent.init().is_separate() {
        return ignore();
    }
    // Ctrl-Alt-Del then arrives as SIGINT instead of resetting the machine under the disks.
    let _ = set_cad_enabled(false);
    for (number, action) in REQUESTS {
        let mut requests = match signal(SignalKind::from_raw(number)) {
            Ok(requests) => requests,
            Err(error) => {
                console::say(&format!("signal {number} cannot be obeyed: {error}"));
                continue;
            }
        };
        let agent = Arc::clone(agent);
        tokio::spawn(async move {
            while requests.recv().await.is_some() {
                if !agent.begin_shutdown() {
                    continue;
                }
                let request = Shutdown { action, grace_ms: GRACE_MS, main: None };
                if let Err(error) = shutdown::run(&agent, request).await {
                    console::say_error("going down", &error);
                }
                agent.end(action);
            }
        });
    }
}

fn ignore() {
    for number in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        // SAFETY: a signal that is ignored runs no handler.
        let _ = unsafe { nix::sys::signal::signal(number, SigHandler::SigIgn) };
    }
}
