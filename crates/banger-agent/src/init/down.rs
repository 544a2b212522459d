//! Asking the image's init to go down: systemd by its signals, every other by the programs that the
//! image has for it.

use std::path::Path;
use std::time::Duration;

use banger_api::agent::ShutdownAction;

use crate::agent::Agent;
use crate::{console, exec, files};

/// Whose processes sysvinit's scripts neither end nor wait for.
const SPARED: &str = "/run/sendsigs.omit.d/banger-agent";
/// There as long as systemd is the first process, as `sd_booted` has it.
const SYSTEMD: &str = "/run/systemd/system";

/// Has the agent spared when the image's init ends all processes, by inits that do not know it by its
/// name. Without that sysvinit would wait for it, for ten seconds.
pub fn spare_agent() {
    // Nothing of the image is changed, and nothing but time is lost if it fails.
    let _ = files::put(Path::new(SPARED), format!("{}\n", std::process::id()).as_bytes(), 0o644);
}

/// Asks, and does not wait until it is down.
pub async fn ask(agent: &Agent, action: ShutdownAction, limit: Duration) {
    if Path::new(SYSTEMD).exists() {
        return signal_first(systemd_signal(action));
    }
    let name = match action {
        ShutdownAction::PowerOff => "poweroff",
        ShutdownAction::Reboot => "reboot",
    };
    if let Err(problem) = exec::run_quietly(agent, &[name], limit).await {
        console::say(&problem.to_string());
        signal_first(small_init_signal(action));
    }
}

/// `SIGRTMIN+4` and `SIGRTMIN+5`.
fn systemd_signal(action: ShutdownAction) -> i32 {
    match action {
        ShutdownAction::PowerOff => 38,
        ShutdownAction::Reboot => 39,
    }
}

/// What busybox's init obeys, and those made after it.
fn small_init_signal(action: ShutdownAction) -> i32 {
    match action {
        ShutdownAction::PowerOff => libc::SIGUSR2,
        ShutdownAction::Reboot => libc::SIGTERM,
    }
}

fn signal_first(number: i32) {
    // SAFETY: a plain system call. `nix` has no names for real-time signals.
    unsafe { libc::kill(1, number) };
}
