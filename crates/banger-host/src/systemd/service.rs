//! The daemon as a service of the user's systemd, or as root of the system's.

use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};

use crate::command::{Cancel, Tool, ToolError};
use crate::files;
use crate::paths::StateDirs;

/// The unit, with places to fill in.
const TEMPLATE: &str = include_str!("../../../../packaging/systemd/bangerd.service");
/// The unit's name.
pub const UNIT: &str = "bangerd.service";

/// Why the service could not be set up or taken away.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// There is no systemd, or none for this user.
    #[error("there is no systemd that could run services for this user")]
    NoManager,
    /// The user's configuration has no place.
    #[error("cannot tell where the user's units are: HOME is not set")]
    NoHome,
    /// The unit's file would not be written or removed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The unit's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// systemctl failed.
    #[error("systemd refuses")]
    Refused(#[source] ToolError),
}

/// Whether the user's services outlive the user's sessions; None where nobody would end them.
#[must_use]
pub fn outlives_logins() -> Option<bool> {
    let uid = geteuid();
    let user = User::from_uid(uid).ok().flatten()?;
    (!uid.is_root()).then(|| super::lingers(&user.name))
}

/// Writes the unit and has systemd load it. Returns where the unit is. Nothing is started.
///
/// # Errors
/// [`ServiceError`].
pub fn install(banger: &Path, daemon: &Path, dirs: &StateDirs) -> Result<PathBuf, ServiceError> {
    let path = ensure_manager()?;
    let file = |action| {
        let path = path.clone();
        move |source| ServiceError::File { action, path, source }
    };
    let parent = path.parent().expect("the unit has a directory");
    std::fs::create_dir_all(parent).map_err(file("create the directory of"))?;
    let target = if geteuid().is_root() { "multi-user.target" } else { "default.target" };
    let unit = render(banger, daemon, dirs, target);
    files::write_replacing(&path, unit.as_bytes()).map_err(file("write"))?;
    systemctl(&["daemon-reload"])?;
    Ok(path)
}

/// Has systemd start the service now and whenever the user's manager starts.
///
/// # Errors
/// [`ServiceError`].
pub fn enable() -> Result<(), ServiceError> {
    systemctl(&["--quiet", "enable", "--now", UNIT])
}

/// Ends the service and takes its unit away. Returns whether there was one.
///
/// # Errors
/// [`ServiceError`].
pub fn remove() -> Result<bool, ServiceError> {
    let path = ensure_manager()?;
    if !path.exists() {
        return Ok(false);
    }
    systemctl(&["--quiet", "disable", "--now", UNIT])?;
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(ServiceError::File { action: "remove", path, source });
        }
        _ => {}
    }
    systemctl(&["daemon-reload"])?;
    Ok(true)
}

/// Where the unit belongs, if there is a manager that would read it.
fn ensure_manager() -> Result<PathBuf, ServiceError> {
    let uid = geteuid();
    let reachable = uid.is_root() || Path::new(&format!("/run/user/{uid}/systemd")).is_dir();
    if !super::is_booted() || !reachable {
        return Err(ServiceError::NoManager);
    }
    if uid.is_root() {
        return Ok(Path::new("/etc/systemd/system").join(UNIT));
    }
    let home = || {
        let home = crate::environment::get("HOME").filter(|home| home.starts_with('/'));
        home.map(|home| Path::new(&home).join(".config"))
    };
    let config = crate::environment::get("XDG_CONFIG_HOME").filter(|path| path.starts_with('/'));
    let config = config.map(PathBuf::from).or_else(home).ok_or(ServiceError::NoHome)?;
    Ok(config.join("systemd/user").join(UNIT))
}

fn systemctl(words: &[&str]) -> Result<(), ServiceError> {
    let mut tool = Tool::new("systemctl");
    if !geteuid().is_root() {
        // After su or in cron nobody has said where the user's manager is.
        let runtime = format!("/run/user/{}", geteuid());
        tool = tool.arg("--user").env("XDG_RUNTIME_DIR", runtime);
    }
    tool.args(words.iter().copied()).run(&Cancel::new()).map(drop).map_err(ServiceError::Refused)
}

fn render(banger: &Path, daemon: &Path, dirs: &StateDirs, target: &str) -> String {
    let variables = [
        ("BANGER_DATA_DIR", &dirs.data),
        ("BANGER_RUNTIME_DIR", &dirs.runtime),
        ("BANGER_CONFIG_DIR", &dirs.config),
    ];
    let environment = variables.map(|(name, path)| quoted(&format!("{name}={}", path.display())));
    TEMPLATE
        .replace("@BANGER@", &quoted(&banger.display().to_string()))
        .replace("@BANGERD@", &quoted(&daemon.display().to_string()))
        .replace("@ENVIRONMENT@", &environment.join(" "))
        .replace("@TARGET@", target)
}

/// A word as systemd reads it in a unit: neither a quote nor a specifier in it means anything.
fn quoted(word: &str) -> String {
    let mut text = String::from("\"");
    for letter in word.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            '%' => text.push_str("%%"),
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_of_the_unit_is_filled() {
        let dirs = StateDirs {
            data: "/home/a b/data".into(),
            runtime: "/run/user/1000/banger".into(),
            config: "/home/50%/\"c\"".into(),
        };
        let unit =
            render(Path::new("/opt/bin/banger"), Path::new("/opt/x/bangerd"), &dirs, "a.target");
        let lines: Vec<&str> = unit.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(lines.iter().all(|line| !line.contains('@')), "{unit}");
        assert!(lines.contains(&"ExecStart=\"/opt/x/bangerd\" --foreground"), "{unit}");
        assert!(lines.contains(&"ExecStartPre=-\"/opt/bin/banger\" daemon stop"), "{unit}");
        let environment = "Environment=\"BANGER_DATA_DIR=/home/a b/data\" \
            \"BANGER_RUNTIME_DIR=/run/user/1000/banger\" \
            \"BANGER_CONFIG_DIR=/home/50%%/\\\"c\\\"\"";
        assert!(lines.contains(&environment), "{unit}");
        assert!(lines.contains(&"WantedBy=a.target"), "{unit}");
    }
}
