//! The settings that buildah gets: the host's where there are any, else what Docker does.

use std::io;
use std::path::{Path, PathBuf};

use banger_host::{environment, files};

use super::place::Place;

/// Registries of this machine that speak plain HTTP, as for Docker.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
/// Takes every image: what containers-common installs, and what buildah needs to do anything.
const POLICY: &str = "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}\n";

/// File name of credentials for registries.
const AUTH: &str = "auth.json";

/// Files of a build's own for what the host has not, or not as needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// containers.conf, which keeps buildah from making directories in the user's home.
    pub containers: PathBuf,
    /// registries.conf; None leaves it to the host's.
    pub registries: Option<PathBuf>,
    /// policy.json; None leaves it to the host's.
    pub policy: Option<PathBuf>,
    /// What buildah takes for the user's runtime directory, with the credentials of the real one.
    pub runtime: PathBuf,
}

impl Settings {
    /// Writes what is needed into the build's own directory.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write(place: &Place) -> io::Result<Self> {
        let write = |name: &str, text: &str| {
            let path = place.work.join(name);
            std::fs::write(&path, text).map(|()| path)
        };
        let network = place.work.join("network").display().to_string();
        // A JSON string is a TOML string.
        let network = serde_json::Value::from(network);
        let registries = registries(host_registries()?.as_deref());
        Ok(Self {
            containers: write(
                "containers.conf",
                &format!("[network]\nnetwork_config_dir = {network}\n"),
            )?,
            registries: registries.map(|text| write("registries.conf", &text)).transpose()?,
            policy: match host_file("policy.json") {
                Some(_) => None,
                None => Some(write("policy.json", POLICY)?),
            },
            runtime: runtime_dir(place)?,
        })
    }
}

/// Makes a directory for what buildah keeps while it runs, where `podman login` seems to have left
/// what it leaves in the real one.
fn runtime_dir(place: &Place) -> io::Result<PathBuf> {
    let real = environment::get("XDG_RUNTIME_DIR").map_or_else(
        || format!("/run/containers/{}", place.uid),
        |dir| format!("{dir}/containers"),
    );
    let runtime = place.work.join("runtime");
    let containers = runtime.join("containers");
    files::create_private_dir(&containers)?;
    std::os::unix::fs::symlink(Path::new(&real).join(AUTH), containers.join(AUTH))?;
    Ok(runtime)
}

fn host_registries() -> io::Result<Option<String>> {
    let chosen = environment::get("CONTAINERS_REGISTRIES_CONF").map(PathBuf::from);
    chosen.or_else(|| host_file("registries.conf")).map(std::fs::read_to_string).transpose()
}

/// A file of containers-common, the user's own first.
fn host_file(name: &str) -> Option<PathBuf> {
    let own = environment::get("HOME").map(|home| Path::new(&home).join(".config"));
    let dirs = own.into_iter().chain([PathBuf::from("/etc")]);
    dirs.map(|dir| dir.join("containers").join(name)).find(|path| path.is_file())
}

/// The host's settings, completed: short names are Docker Hub's unless it says otherwise, and the
/// loopback speaks plain HTTP. None leaves them as they are.
fn registries(host: Option<&str>) -> Option<String> {
    let host = host.unwrap_or_default();
    let lines = || host.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    if lines().any(|line| line.starts_with("[registries.")) {
        // The old form, which cannot be mixed with the new one.
        return None;
    }
    let mut text = String::new();
    if !lines().any(|line| line.starts_with("unqualified-search-registries")) {
        text.push_str("unqualified-search-registries = [\"docker.io\"]\n");
    }
    text.push_str(host);
    for name in LOOPBACK {
        if !lines().any(|line| line.contains(&format!("\"{name}\""))) {
            text.push_str(&format!("\n[[registry]]\nlocation = \"{name}\"\ninsecure = true\n"));
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_settings_it_is_as_with_docker() {
        insta::assert_snapshot!(registries(None).expect("some"), @r#"
        unqualified-search-registries = ["docker.io"]

        [[registry]]
        location = "localhost"
        insecure = true

        [[registry]]
        location = "127.0.0.1"
        insecure = true

        [[registry]]
        location = "[::1]"
        insecure = true
        "#);
    }

    #[test]
    fn what_the_host_says_stays() {
        let host = "# unqualified-search-registries = []\n\
            unqualified-search-registries = [\"registry.example\"]\n\
            [[registry]]\nlocation = \"localhost\"\ninsecure = false\n";
        insta::assert_snapshot!(registries(Some(host)).expect("some"), @r#"
        # unqualified-search-registries = []
        unqualified-search-registries = ["registry.example"]
        [[registry]]
        location = "localhost"
        insecure = false

        [[registry]]
        location = "127.0.0.1"
        insecure = true

        [[registry]]
        location = "[::1]"
        insecure = true
        "#);
    }

    #[test]
    fn the_old_form_is_left_alone() {
        assert_eq!(registries(Some("[registries.search]\nregistries = ['x']\n")), None);
    }
}
