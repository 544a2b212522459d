//! The user's settings: `config.toml` in the configuration directory.
//!
//! ```toml
//! reserve_disk_mib = 512      # refuse new work when less than this is free
//! boot_timeout_s = 90         # how long a guest may take to answer
//!
//! [logs]
//! max_size_mib = 8            # most that each log of a VM takes, from 1 to 1024
//!
//! [templates]
//! enabled = true              # VMs go on from a saved guest instead of booting
//! max_size_mib = 8192         # most that all templates take; those longest unused go first
//!
//! [pool]
//! size = 0                    # guests that stand ready for each kind of VM that is made; 0 is none
//! max_memory_mib = 1024       # most memory that all of them take
//!
//! [guest]
//! ca_certificates = ["/etc/ssl/company.pem"]   # trusted in every guest
//! ```

use std::io;
use std::path::{Path, PathBuf};

use banger_api::shim::DEFAULT_LOG_BYTES;
use banger_api::{ErrorCode, Problem};
use banger_core::size::MIB;
use serde::Deserialize;

/// File name in the configuration directory.
pub const CONFIG_FILE: &str = "config.toml";
/// The least and the most that a log may take. Less would not hold the end of a boot.
const LOG_MIB: (u64, u64) = (1, 1024);
/// The least and the most guests of a kind that stand ready.
const POOL_SIZE: (u64, u64) = (0, 64);
/// Largest certificate file that is read.
const MAX_CERTIFICATES: u64 = 1024 * 1024;

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Space that must stay free on the file system of the state directory.
    pub reserve_disk_mib: u64,
    /// How long a guest may take to answer.
    pub boot_timeout_s: u64,
    /// How VMs are logged.
    pub logs: LogsConfig,
    /// Whether and how many guests are saved for others to begin from.
    pub templates: TemplatesConfig,
    /// How many guests stand ready.
    pub pool: PoolConfig,
    /// Settings of every guest.
    pub guest: GuestConfig,
}

/// Whether and how many guests are saved for others to begin from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemplatesConfig {
    /// Whether VMs begin from templates, which are then made when they are first wanted.
    pub enabled: bool,
    /// Most that all of them take on the host's disk.
    pub max_size_mib: u64,
}

impl Default for TemplatesConfig {
    fn default() -> Self {
        // Some sixty of them.
        Self { enabled: true, max_size_mib: 8192 }
    }
}

/// How many guests stand ready, before anybody asks for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolConfig {
    /// Guests of each kind of VM that was started lately; none if it is 0.
    pub size: u64,
    /// Most memory that all of them take on the host. Those of the kind that was started longest ago go
    /// first.
    pub max_memory_mib: u64,
}

impl Default for PoolConfig {
    fn default() -> Self {
        // Some ten of them.
        Self { size: 0, max_memory_mib: 1024 }
    }
}

/// How VMs are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogsConfig {
    /// Most that each log of a VM takes with its older half. VMs that run keep what they were started
    /// with.
    pub max_size_mib: u64,
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self { max_size_mib: DEFAULT_LOG_BYTES / MIB }
    }
}

/// Settings of every guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuestConfig {
    /// Files with certificates, PEM, to be trusted in every guest.
    pub ca_certificates: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        // A tcg guest answers within five seconds on an idle machine, and on a busy one in a minute.
        Self {
            reserve_disk_mib: 512,
            boot_timeout_s: 90,
            logs: LogsConfig::default(),
            templates: TemplatesConfig::default(),
            pool: PoolConfig::default(),
            guest: GuestConfig::default(),
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no TOML, or has a key that there is not.
    #[error("{} makes no sense: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A number is too small or too large.
    #[error("{}: {key} is {found}; from {least} to {most} are possible", path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: &'static str,
        /// What it is.
        found: u64,
        /// The least that it can be.
        least: u64,
        /// The most that it can be.
        most: u64,
    },
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Self::new(ErrorCode::InvalidArgument, "banger's settings cannot be used")
            .because(&error)
            .hint("mend the file, then try again")
    }
}

impl Config {
    /// Reads the settings; a missing file is the defaults.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(config_dir: &Path) -> Result<Self, ConfigError> {
        let path = config_dir.join(CONFIG_FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => match toml::from_str::<Self>(&text) {
                Ok(config) => config.checked(path),
                Err(error) => {
                    let reason = error.to_string().trim().to_owned();
                    Err(ConfigError::Syntax { path, reason })
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }
}

impl Config {
    fn checked(self, path: PathBuf) -> Result<Self, ConfigError> {
        let ranges = [
            ("logs.max_size_mib", self.logs.max_size_mib, LOG_MIB),
            ("pool.size", self.pool.size, POOL_SIZE),
        ];
        let wrong =
            ranges.into_iter().find(|(_, found, (least, most))| found < least || found > most);
        if let Some((key, found, (least, most))) = wrong {
            return Err(ConfigError::OutOfRange { path, key, found, least, most });
        }
        if self.pool.size > 0 && !self.templates.enabled {
            let reason = "pool.size needs templates, and templates.enabled is false".to_owned();
            return Err(ConfigError::Syntax { path, reason });
        }
        Ok(self)
    }
}

/// The certificates in these files, one text per file, and a warning for each that cannot be used:
/// a VM without them is better than none.
#[must_use]
pub fn read_certificates(files: &[PathBuf]) -> (Vec<String>, Vec<String>) {
    let (mut certificates, mut warnings) = (Vec::new(), Vec::new());
    for file in files {
        match read_certificate(file) {
            Ok(text) => certificates.push(text),
            Err(why) => {
                warnings.push(format!("the CA file {} is not used: {why}", file.display()));
            }
        }
    }
    (certificates, warnings)
}

fn read_certificate(file: &Path) -> Result<String, String> {
    let bytes = file.metadata().map_err(|error| error.to_string())?.len();
    if bytes > MAX_CERTIFICATES {
        return Err("it is larger than 1 MiB".to_owned());
    }
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    if text.contains("-----BEGIN CERTIFICATE-----") {
        Ok(text)
    } else {
        Err("it holds no PEM certificate".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join(CONFIG_FILE), text).expect("write");
        Config::load(dir.path())
    }

    #[test]
    fn no_file_is_the_defaults() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(Config::load(dir.path()).expect("defaults"), Config::default());
    }

    #[test]
    fn what_is_set_is_taken_and_the_rest_stays() {
        let config = load("reserve_disk_mib = 7\n[guest]\nca_certificates = [\"/a.pem\"]\n")
            .expect("good settings");
        assert_eq!(config.reserve_disk_mib, 7);
        assert_eq!(config.boot_timeout_s, Config::default().boot_timeout_s);
        assert_eq!(config.guest.ca_certificates, [PathBuf::from("/a.pem")]);
    }

    #[test]
    fn logs_are_neither_useless_nor_endless() {
        let size = |mib: u64| load(&format!("[logs]\nmax_size_mib = {mib}\n"));
        for mib in [1, 64, 1024] {
            assert_eq!(size(mib).expect("possible").logs.max_size_mib, mib);
        }
        for mib in [0, 1025, u64::from(u32::MAX)] {
            let error = size(mib).expect_err("impossible").to_string();
            assert!(error.contains("logs.max_size_mib is") && error.contains("1024"), "{error}");
        }
    }

    #[test]
    fn a_pool_is_bounded_and_needs_templates() {
        let pool = load("[pool]\nsize = 2\n").expect("possible").pool;
        assert_eq!((pool.size, pool.max_memory_mib), (2, PoolConfig::default().max_memory_mib));
        let error = load("[pool]\nsize = 65\n").expect_err("too many").to_string();
        assert!(error.contains("pool.size is 65") && error.contains("64"), "{error}");
        let error = load("[pool]\nsize = 1\n[templates]\nenabled = false\n");
        let error = error.expect_err("a contradiction").to_string();
        assert!(error.contains("templates.enabled is false"), "{error}");
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let error = load("reserve_disk = 7").expect_err("unknown key");
        assert!(error.to_string().contains("reserve_disk"), "{error}");
    }

    #[test]
    fn certificates_that_are_none_are_warned_of() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("write");
            path
        };
        let good = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let files = [file("good", good), file("bad", "no"), dir.path().join("missing")];
        let (certificates, warnings) = read_certificates(&files);
        assert_eq!(certificates, [good]);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }
}
