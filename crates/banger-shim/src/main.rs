//! `banger-shim`: the one supervisor process of a running VM.
//!
//! The daemon starts `banger-shim run` in the VM's directory. That process enters new namespaces and
//! becomes `banger-shim supervise`, process 1 in there: it makes the network, starts pasta and the
//! VMM (through `banger-shim jail`), brings the guest up, and serves `run/shim.sock` until the VM
//! ends. When it dies, however it dies, the kernel ends all of that with it; so nothing here ever
//! cleans up, and nothing needs to.
//!
//! It keeps no database and knows no registry. What it learns it writes to `status.json`.

mod board;
mod capture;
mod clock_watch;
mod configure;
mod console;
mod dns;
mod ends;
mod exec;
mod failure;
mod farewell;
mod guest;
mod launch;
mod main_process;
mod order;
mod ownership;
mod power;
mod ready;
mod serve;
mod standstill;
mod supervise;
mod wishes;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod testing;

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use banger_api::shim::{LAUNCH_FILE, LaunchSpec};
use banger_api::step;
use banger_host::jail::{self, JailSpec};
use banger_host::systemd::scope::{self, StopLine};
use banger_host::{fault, namespaces};

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let role = std::env::args().nth(1).unwrap_or_default();
    let result = match role.as_str() {
        "run" => enter_namespaces(),
        "supervise" => inherited_stop_line().and_then(supervise::supervise),
        "jail" => enter_jail(),
        _ => Err("this program is started by bangerd; the command for people is banger".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&role, &*error);
            ExitCode::FAILURE
        }
    }
}

fn enter_namespaces() -> Result<(), Failure> {
    let spec = read_launch_spec(Path::new("."))?;
    fault::pass(step::SHIM_NAMESPACES)?;
    let program = std::env::current_exe()?;
    // First of all: later this process has another name for its user, and children.
    let stop_line = scope::enter(&spec.vm_id).unwrap_or_else(|error| {
        complain("run: the VM stays in the control group of its daemon", &error);
        None
    });
    let number = stop_line.map(StopLine::hand_on).transpose()?.map(|number| number.to_string());
    let arguments: Vec<&str> = std::iter::once("supervise").chain(number.as_deref()).collect();
    let never = namespaces::enter_and_exec(&program, &arguments, spec.jail_user)?;
    match never {}
}

/// What `run` handed on to `supervise`.
fn inherited_stop_line() -> Result<Option<StopLine>, Failure> {
    let Some(number) = std::env::args().nth(2) else { return Ok(None) };
    Ok(Some(StopLine::take_over(number.parse()?)?))
}

fn enter_jail() -> Result<(), Failure> {
    let mut spec = Vec::new();
    std::io::stdin().read_to_end(&mut spec)?;
    let spec: JailSpec = serde_json::from_slice(&spec)?;
    fault::pass(step::VM_JAIL)?;
    let never = jail::enter_and_exec(&spec)?;
    match never {}
}

/// Reads what to launch from a VM's directory.
fn read_launch_spec(vm_dir: &Path) -> Result<LaunchSpec, Failure> {
    let path = vm_dir.join(LAUNCH_FILE);
    let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// The shim's standard error is the VM's log; the daemon shows its end when the shim dies early.
fn complain(role: &str, error: &dyn std::error::Error) {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    let prefix = if std::io::stderr().is_terminal() { "error" } else { role };
    // A full disk must not turn a failure into an abort.
    let _ = writeln!(std::io::stderr(), "{prefix}: {text}");
}
