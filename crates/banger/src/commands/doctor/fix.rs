//! `banger doctor --fix`: what is left over goes, one thing after the other, each with its reason.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use banger_api::shim::{LOCK_FILE, RUN_DIR, SHIM_SOCKET};
use banger_api::system::{Leftover, Remedy};
use banger_api::vm::StopVm;
use banger_core::doctor::{KnownVms, judge_remains};
use banger_host::leftovers::state;
use banger_host::lock::is_locked;
use banger_host::paths::StateDirs;
use banger_host::{connect, http};
use hyper::Method;

use super::ask;
use crate::client::Client;
use crate::failure::Failure;
use crate::ui::{Row, Ui};

/// How long a VM that no database knows may take to go down.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// How long the kernel may take to clear up after a process was killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How often to look.
const INTERVAL: Duration = Duration::from_millis(50);
/// Exit code if something could not be mended.
const UNMENDED: u8 = 1;

/// Removes what is left over, and says what came of it.
pub(super) async fn run(discard: bool, ui: &Ui) -> Result<u8, Failure> {
    let dirs = StateDirs::resolve()?;
    // Before the daemon is asked which VMs there are: one that is made meanwhile is known then. A
    // daemon that starts also clears up after the last one.
    let found = state::find(&dirs);
    let known = match Client::ready(ui).await {
        Ok(client) => ask(Some(client)).await,
        Err(Failure::Problem(problem)) => {
            let why = std::iter::once(&problem.title).chain(&problem.causes);
            let why: Vec<&str> = why.map(String::as_str).collect();
            ui.warning(&format!("the daemon cannot be asked: {}", why.join(": ")));
            KnownVms::Unknown
        }
        Err(quiet) => return Err(quiet),
    };
    if known == KnownVms::Unknown {
        ui.warning("directories of VMs are left alone, as nobody says which VMs there are");
    }
    let mut leftovers = judge_remains(&found, &known, discard);
    let mut code = 0;
    for leftover in &mut leftovers {
        let outcome = mend(&dirs, leftover).await.unwrap_or_else(|why| {
            code = UNMENDED;
            format!("failed: {why}")
        });
        leftover.outcome = Some(outcome);
    }
    if ui.is_json() {
        ui.list(&leftovers)?;
    } else if leftovers.is_empty() {
        ui.note("nothing is left over");
    } else {
        ui.text(&text(&leftovers))?;
    }
    Ok(code)
}

/// What a leftover is called.
pub(super) fn name(leftover: &Leftover) -> String {
    match leftover.pid {
        Some(pid) => format!("process {pid}"),
        None => format!("{} {}", leftover.kind, leftover.path),
    }
}

fn text(leftovers: &[Leftover]) -> String {
    let lines = leftovers.iter().map(|leftover| {
        let outcome = leftover.outcome.as_deref().unwrap_or_default();
        format!("{}: {outcome}\n    {}\n", name(leftover), leftover.why)
    });
    lines.collect()
}

/// Does what was judged. What came of it, or why nothing did.
async fn mend(dirs: &StateDirs, leftover: &Leftover) -> Result<String, String> {
    let path = Path::new(&leftover.path);
    match leftover.remedy {
        Remedy::End => end(dirs, leftover).await,
        Remedy::Remove => match state::remove(dirs, path) {
            Ok(()) => Ok("removed".to_owned()),
            // Its lock is the daemon's.
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && leftover.kind == "socket" =>
            {
                Ok("replaced by the daemon".to_owned())
            }
            Err(error) => Err(refusal(&error)),
        },
        Remedy::SetAside => match state::set_aside(dirs, path) {
            Ok(to) => Ok(format!("set aside as {}", to.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok("gone".to_owned()),
            Err(error) => Err(refusal(&error)),
        },
        Remedy::RestartDaemon if !path.exists() => Ok("removed by the daemon".to_owned()),
        Remedy::RestartDaemon => Ok("goes when the daemon starts: banger daemon stop, then \
                                     banger daemon start"
            .to_owned()),
        Remedy::Keep if leftover.kind == "set-aside" => {
            Ok("kept; banger doctor --fix --discard deletes it".to_owned())
        }
        Remedy::Keep => Ok("kept".to_owned()),
    }
}

fn refusal(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock => "something alive holds its lock".to_owned(),
        _ => error.to_string(),
    }
}

/// Ends what runs there: politely where somebody still listens, so that the guest's data is saved.
async fn end(dirs: &StateDirs, leftover: &Leftover) -> Result<String, String> {
    let lock = Path::new(&leftover.path);
    let vm_dir = lock.parent().unwrap_or(dirs.data.as_path());
    if stop(vm_dir).await.is_ok() && unlocked(lock, STOP_LIMIT).await {
        return Ok("stopped".to_owned());
    }
    let pid = leftover.pid.unwrap_or_default();
    let ended = state::end(dirs, pid).map_err(|error| error.to_string())?;
    if !unlocked(&vm_dir.join(LOCK_FILE), KILL_LIMIT).await {
        return Err("it was killed, and something of it is still alive".to_owned());
    }
    Ok(if ended { "killed" } else { "gone" }.to_owned())
}

async fn stop(vm_dir: &Path) -> Result<(), Failure> {
    let stream = connect::unix(&vm_dir.join(RUN_DIR), SHIM_SOCKET)
        .await
        .map_err(|error| Failure::internal("the VM cannot be reached", &error))?;
    Ok(http::json(stream, Method::POST, "/v1/stop", Some(&StopVm::default())).await?)
}

async fn unlocked(lock: &Path, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        match is_locked(lock) {
            Ok(false) => return true,
            _ if Instant::now() > deadline => return false,
            _ => tokio::time::sleep(INTERVAL).await,
        }
    }
}

impl Row for Leftover {
    const HEADERS: &'static [&'static str] = &["WHAT", "WHY", "OUTCOME"];

    fn name(&self) -> &str {
        &self.path
    }

    fn cells(&self) -> Vec<String> {
        vec![name(self), self.why.clone(), self.outcome.clone().unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_told_with_its_reason_and_what_came_of_it() {
        let leftover = |kind: &str, pid, remedy, outcome: &str| Leftover {
            kind: kind.to_owned(),
            path: format!("/d/vms/0123456789ab/{kind}"),
            pid,
            why: format!("about the {kind}"),
            remedy,
            outcome: Some(outcome.to_owned()),
        };
        let leftovers = [
            leftover("process", Some(7), Remedy::End, "stopped"),
            leftover("directory", None, Remedy::SetAside, "set aside as /d/set-aside/x"),
        ];
        insta::assert_snapshot!(text(&leftovers), @r"
        process 7: stopped
            about the process
        directory /d/vms/0123456789ab/directory: set aside as /d/set-aside/x
            about the directory
        ");
    }
}
