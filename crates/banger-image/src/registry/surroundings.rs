//! What this process's environment says that matters to registries.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use banger_api::image::RegistryAccess;
use banger_host::environment;
use banger_host::paths::StateDirs;

use super::credentials::{Credentials, read_bounded};
use super::error::RegistryError;
use super::retry::Patience;
use super::settings::Settings;
use crate::error::LibraryError;

/// Where files are looked for, how the network is reached, how long is waited.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// The user's home directory.
    pub(crate) home: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`.
    pub(crate) runtime_dir: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`, else `~/.config`.
    pub(crate) config_home: Option<PathBuf>,
    /// The directory of `registries.toml`.
    pub(crate) banger_config: Option<PathBuf>,
    /// Proxy variables.
    pub(crate) proxies: BTreeMap<String, String>,
    /// How long is waited.
    pub(crate) patience: Patience,
}

impl Surroundings {
    /// Those of this process.
    pub(crate) fn of_this_process() -> Self {
        let dir = |name: &str| {
            environment::get(name).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        let home = dir("HOME");
        let config_home = dir("XDG_CONFIG_HOME").or(home.as_ref().map(|home| home.join(".config")));
        Self {
            config_home,
            runtime_dir: dir("XDG_RUNTIME_DIR"),
            banger_config: StateDirs::locate().ok().map(|dirs| dirs.config),
            proxies: environment::proxies(),
            patience: Patience::default(),
            home,
        }
    }

    /// The settings of all registries, and where credentials are.
    pub(super) fn read(
        &self,
        access: &RegistryAccess,
    ) -> Result<(Settings, Credentials), RegistryError> {
        let mut settings = Settings::default();
        let mut credentials = Credentials::new(access.path.clone());
        if let Some(file) = self.banger_config.as_ref().map(|dir| dir.join("registries.toml"))
            && file.exists()
        {
            settings = read_settings(&file, &read_file(&file)?)?;
        }
        if let Some(file) = &access.config {
            let file = Path::new(file);
            let bytes = read_file(file)?;
            // TOML never begins with a brace, JSON auth files always do.
            if bytes.trim_ascii_start().starts_with(b"{") {
                credentials = credentials.then_in(file);
            } else {
                settings = settings.overridden_by(read_settings(file, &bytes)?);
            }
        }
        let below = |dir: &Option<PathBuf>, path: &str| dir.as_ref().map(|dir| dir.join(path));
        let docker = match &access.docker_config {
            Some(dir) => Some(Path::new(dir).join("config.json")),
            None => below(&self.home, ".docker/config.json"),
        };
        let credentials = credentials
            .then_maybe_in(access.auth_file.as_ref().map(PathBuf::from))
            .then_maybe_in(below(&self.runtime_dir, "containers/auth.json"))
            .then_maybe_in(below(&self.config_home, "containers/auth.json"))
            .then_maybe_in(docker);
        Ok((settings, credentials))
    }
}

pub(super) fn read_file(file: &Path) -> Result<Vec<u8>, RegistryError> {
    read_bounded(file).map_err(|error| LibraryError::io("read", file)(error).into())
}

fn read_settings(file: &Path, bytes: &[u8]) -> Result<Settings, RegistryError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Settings::parse(text, file),
        Err(_) => Err(RegistryError::Settings {
            place: file.display().to_string(),
            reason: "it is no text".to_owned(),
        }),
    }
}
