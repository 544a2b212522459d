//! The options that say what a VM is made of, for `run` and `create`.

use std::collections::BTreeMap;
use std::time::Duration;

use banger_api::vm::{EngineChoice, NetworkPolicy, VmSpec};
use banger_core::{duration, name, size, spec};
use clap::{Args, ValueEnum};

/// A `KEY=VALUE`, or a `KEY` alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    key: String,
    value: Option<String>,
}

/// Options of a VM.
#[derive(Debug, Clone, Default, Args)]
pub struct Shape {
    /// Name of the VM and of its host [default: two words and a number]
    #[arg(long, value_parser = parse_name, help_heading = "VM")]
    pub name: Option<String>,
    /// Image; the words after the options are then all the command's
    #[arg(long, value_name = "NAME", help_heading = "VM")]
    pub image: Option<String>,
    /// Virtual CPUs
    #[arg(short, long, value_name = "N", default_value_t = spec::DEFAULT_CPUS,
        value_parser = clap::value_parser!(u32).range(1..), help_heading = "VM")]
    pub cpus: u32,
    /// Memory, for example 512M or 2G [default: 1G]
    #[arg(short, long, value_name = "SIZE", value_parser = size::parse_memory_mib,
        help_heading = "VM")]
    pub memory: Option<u32>,
    /// Size of the root disk, for example 20G [default: 8G]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, help_heading = "VM")]
    pub disk: Option<u64>,
    /// Kernel to boot [default: the image's]
    #[arg(long, value_name = "NAME", help_heading = "VM")]
    pub kernel: Option<String>,
    /// Program that runs the guest [default: the best that works here]
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "auto|qemu",
        hide_possible_values = true,
        hide_default_value = true,
        help_heading = "VM"
    )]
    pub engine: Engine,
    /// `host-access` lets the guest reach this host's own addresses
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "NET",
        hide_possible_values = true,
        hide_default_value = true,
        help_heading = "VM"
    )]
    pub net: Net,
    /// Label for filters and scripts, may be repeated
    #[arg(long = "label", value_name = "KEY[=VALUE]", value_parser = parse_pair,
        help_heading = "VM")]
    pub labels: Vec<Pair>,
    /// Environment variable, may be repeated; a name alone takes its value from here
    #[arg(short, long = "env", value_name = "KEY[=VALUE]", value_parser = parse_pair,
        help_heading = "Command")]
    pub env: Vec<Pair>,
    /// Working directory of commands
    #[arg(short, long, value_name = "DIR", help_heading = "Command")]
    pub workdir: Option<String>,
    /// User of commands: name, uid, or either with :group
    #[arg(short, long, value_name = "USER", help_heading = "Command")]
    pub user: Option<String>,
}

/// Which engine runs the VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    // The best one that works here.
    #[default]
    Auto,
    Qemu,
}

/// What the guest's network reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Net {
    // What this host reaches, but not the host itself.
    #[default]
    Default,
    // Also this host's own addresses.
    HostAccess,
}

impl Shape {
    /// The specification of the VM, with an image and nothing to run.
    pub fn spec(&self, image: Option<&str>) -> VmSpec {
        VmSpec {
            image: image.unwrap_or(spec::DEFAULT_IMAGE).to_owned(),
            kernel: self.kernel.clone(),
            engine: match self.engine {
                Engine::Auto => EngineChoice::Auto,
                Engine::Qemu => EngineChoice::Qemu,
            },
            cpus: self.cpus,
            memory_mib: self.memory.unwrap_or(spec::DEFAULT_MEMORY_MIB),
            disk_bytes: self.disk,
            env: environment(&self.env, banger_host::environment::get),
            user: self.user.clone(),
            workdir: self.workdir.clone(),
            command: Vec::new(),
            init: None,
            entrypoint: None,
            default_command: Vec::new(),
            stop_signal: None,
            timeout_ms: None,
            remove_on_exit: false,
            network: match self.net {
                Net::Default => NetworkPolicy::Default,
                Net::HostAccess => NetworkPolicy::HostAccess,
            },
            labels: self.labels.iter().map(Pair::or_empty).collect(),
        }
    }
}

impl Pair {
    fn or_empty(&self) -> (String, String) {
        (self.key.clone(), self.value.clone().unwrap_or_default())
    }
}

/// The variables of `-e`; one that is only named is taken from our own environment, or not at all.
pub fn environment(
    pairs: &[Pair],
    ours: impl Fn(&str) -> Option<String>,
) -> BTreeMap<String, String> {
    pairs
        .iter()
        .filter_map(|pair| {
            let value = pair.value.clone().or_else(|| ours(&pair.key))?;
            Some((pair.key.clone(), value))
        })
        .collect()
}

/// Reads `KEY` or `KEY=VALUE`.
pub fn parse_pair(text: &str) -> Result<Pair, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, None),
    };
    if key.is_empty() {
        return Err("expected KEY or KEY=VALUE".to_owned());
    }
    Ok(Pair { key: key.to_owned(), value })
}

/// Reads the limit of a command, in milliseconds.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(Duration::ZERO) => Err("leave it out for no limit".to_owned()),
        Ok(limit) => Ok(limit),
        Err(error) => Err(error.to_string()),
    }
}

/// The limit as it travels.
pub fn timeout_ms(timeout: Option<Duration>) -> Option<u64> {
    timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
}

fn parse_name(text: &str) -> Result<String, String> {
    match name::validate(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(error) => Err(match name::mend(text) {
            Some(mended) => format!("{error} (try {mended})"),
            None => error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read() {
        let pair = |key: &str, value: Option<&str>| {
            Ok(Pair { key: key.to_owned(), value: value.map(str::to_owned) })
        };
        assert_eq!(parse_pair("A=b=c"), pair("A", Some("b=c")));
        assert_eq!(parse_pair("A="), pair("A", Some("")));
        assert_eq!(parse_pair("A"), pair("A", None));
        assert!(parse_pair("=x").is_err());
        assert!(parse_pair("").is_err());
    }

    #[test]
    fn named_variables_come_from_here_or_not_at_all() {
        let pairs = ["A=1", "TOKEN", "UNSET", "A=2"].map(|text| parse_pair(text).expect("fine"));
        let ours = |name: &str| (name == "TOKEN").then(|| "secret".to_owned());
        let found = environment(&pairs, ours);
        let want = [("A", "2"), ("TOKEN", "secret")];
        assert_eq!(found, want.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn a_limit_of_nothing_is_refused() {
        assert_eq!(parse_timeout("5"), Ok(Duration::from_secs(5)));
        assert!(parse_timeout("0s").is_err());
        assert!(parse_timeout("soon").is_err());
    }

    #[test]
    fn a_bad_name_comes_with_a_better_one() {
        assert_eq!(parse_name("web"), Ok("web".to_owned()));
        let error = parse_name("My VM").expect_err("bad");
        assert!(error.contains("try my-vm"), "{error}");
    }
}
