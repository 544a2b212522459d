//! Making this guest the VM that the host says it is.
//!
//! The order is fixed: entropy, clock, machine-id, hostname, network, drives, certificates, host
//! keys, the image's own init if it shall be the first process, and only then the settings by which
//! commands may run. It fails closed: after the first step that fails the guest is unconfigured, and
//! no command runs in it.
//!
//! A configured guest takes `configure` again only as the same VM (the same machine-id): a shim
//! that lost the answer may ask once more, and everything is applied anew. Another machine-id is
//! refused, for by then commands have seen the first one; unless the guest is a copy of that VM, which
//! loses what it has of it right after it has entropy and time of its own.

pub mod clock;

mod certificates;
mod copied;
mod drives;
mod entropy;
mod host_keys;
mod identity;
mod network;
mod rehearsal;
mod resolver;
mod work_disk;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use banger_api::agent::{Configure, Configured, Drive, GuestNetwork};
use banger_api::{ErrorCode, Problem, step};

use crate::agent::{Agent, Settings};
use crate::init::HandOverError;
use crate::{console, fault};

/// Why a guest could not be configured. The sources say because of what.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// The host asked for something that makes no sense.
    #[error("{field} makes no sense: {reason}")]
    Invalid {
        /// What of the request.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The guest's kernel or root disk did not let it happen.
    #[error("{step} failed")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// There is no network interface.
    #[error("the guest has no network interface")]
    NoInterface,
    /// The image's init could not become the first process.
    #[error(transparent)]
    Init(#[from] HandOverError),
}

impl ConfigureError {
    fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }

    /// Turns the failure of a system call into the failure of a step.
    fn step<E: Into<std::io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Step { step, source: source.into() }
    }
}

/// Configures the guest. See the module's documentation for what a second time means.
pub async fn run(agent: &Arc<Agent>, request: Configure) -> Result<Configured, Problem> {
    let _one_at_a_time = agent.configuring().await;
    let mut warnings = agent.root_warnings().await?;
    if let Some(settings) = agent.settings()
        && settings.machine_id != request.machine_id
        && !request.copy
    {
        let title = "the guest is already configured as another VM";
        return Err(Problem::new(ErrorCode::VmWrongState, title));
    }
    agent.set_settings(None);
    let is_copy = request.copy;
    let applied = blocking(move || apply(request)).await?;
    warnings.extend(applied.warnings);
    if is_copy {
        warnings.extend(copied::run_hooks(agent).await);
    }
    if applied.keys_removed || agent.init().is_separate() {
        let made = host_keys::ensure(agent).await;
        warnings.extend(made.err().map(|problem| format!("no ssh host keys: {problem}")));
    }
    // A thread for nothing would cost a tenth of an emulated guest's start.
    if agent.init().is_separate() {
        let init = Arc::clone(agent);
        blocking(move || Ok(hand_over(&init)?)).await?;
    }
    agent.set_settings(Some(applied.settings));
    Ok(Configured { warnings })
}

/// Does what needs no identity, ahead of time; `drives` are those that are the same for every VM.
///
/// # Errors
/// [`ConfigureError`].
pub fn prepare(drives: &[Drive], network: Option<&GuestNetwork>) -> Result<(), ConfigureError> {
    network::bring_up_loopback()?;
    network.map_or(Ok(()), network::bring_up)?;
    drives::mount_all(drives, None, &mut Vec::new())?;
    rehearsal::run();
    Ok(())
}

/// Does a step that blocks.
async fn blocking<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, ConfigureError> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(step).await.map_err(|error| {
        Problem::new(ErrorCode::Internal, "Configuring was interrupted").because(&error)
    })?;
    done.map_err(|error| problem(&error))
}

fn problem(error: &ConfigureError) -> Problem {
    let code = match error {
        ConfigureError::Invalid { .. } => ErrorCode::InvalidArgument,
        _ => ErrorCode::BootFailed,
    };
    let problem = Problem::new(code, "the guest could not be configured").because(error);
    match error {
        ConfigureError::Init(_) => problem.hint(
            "use --init agent, or an image whose /sbin/init starts a system, such as systemd's",
        ),
        _ => problem,
    }
}

/// Makes the image's init the first process.
fn hand_over(agent: &Agent) -> Result<(), HandOverError> {
    if let Err(error) = agent.cgroups().hold_agent() {
        // Its init will sort it in with its own, which most commands do not notice.
        console::say(&format!("the agent has no cgroup of its own: {error}"));
    }
    agent.init().hand_over()
}

/// What applying a request gave.
struct Applied {
    settings: Settings,
    warnings: Vec<String>,
    /// The image had ssh host keys, which are gone now.
    keys_removed: bool,
}

fn apply(request: Configure) -> Result<Applied, ConfigureError> {
    check_environment(&request.env)?;
    fault::pass(step::GUEST_CONFIGURE).map_err(ConfigureError::step("configuring"))?;
    let mut warnings = Vec::new();
    entropy::add(&request.entropy_hex)?;
    clock::set(request.time_unix_ns).map_err(ConfigureError::step("setting the clock"))?;
    if request.copy {
        copied::renew_boot_id().map_err(ConfigureError::step("renewing the boot id"))?;
        copied::reset_connections();
    }
    let keys_removed = host_keys::forget_foreign(&request.machine_id)
        .map_err(ConfigureError::step("removing the image's ssh host keys"))?;
    identity::set_machine_id(&request.machine_id)?;
    identity::set_hostname(&request.hostname)?;
    network::bring_up_loopback()?;
    if let Some(network) = &request.network {
        network::bring_up(network)?;
        resolver::configure(network)?;
    }
    drives::mount_all(&request.drives, request.user.as_deref(), &mut warnings)?;
    let trust = certificates::install(&request.ca_certificates, &mut warnings)?;
    if let Some(dir) = &request.workdir {
        ensure_workdir(Path::new(dir), &mut warnings);
    }
    let mut env = trust;
    env.extend(request.env);
    let settings = Settings {
        machine_id: request.machine_id,
        env,
        user: request.user,
        workdir: request.workdir,
    };
    Ok(Applied { settings, warnings, keys_removed })
}

/// An image may name a directory that it does not have; then it is made, as other tools make it. A
/// relative one lies in the home of whoever runs a command there.
fn ensure_workdir(dir: &Path, warnings: &mut Vec<String>) {
    if !dir.is_absolute() || dir.exists() {
        return;
    }
    if let Err(error) = fs::create_dir_all(dir) {
        warnings.push(format!("the working directory {} cannot be made: {error}", dir.display()));
    }
}

fn check_environment(env: &BTreeMap<String, String>) -> Result<(), ConfigureError> {
    let bad = env.iter().find(|(name, value)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    });
    match bad {
        Some((name, _)) => {
            Err(ConfigureError::invalid("env", format!("the variable {name:?} cannot be set")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_variables_are_refused() {
        let cases = [("A", "b", true), ("", "b", false), ("A=B", "c", false), ("A", "\0", false)];
        for (name, value, fine) in cases {
            let env = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            assert_eq!(check_environment(&env).is_ok(), fine, "{name:?}={value:?}");
        }
    }
}
