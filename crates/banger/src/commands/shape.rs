//! The options that say what a VM is made of, for `run` and `create`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use banger_api::ErrorCode;
use banger_api::image::{PullPolicy, RegistryAccess};
use banger_api::vm::{EngineChoice, InitMode, NetworkPolicy, RestartPolicy, VmSpec};
use banger_core::{duration, name, size, spec};
use clap::{Args, ValueEnum};

use super::registry::RegistryArgs;
use crate::failure::Failure;
use crate::guest_command::GuestCommand;

/// A `KEY=VALUE`, or a `KEY` alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    key: String,
    value: Option<String>,
}

/// Options of a VM.
#[derive(Debug, Clone, Default, Args)]
pub struct Shape {
    /// Name of the VM and its host [default: two words and a number]
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
    /// Size of a second disk, mounted at the user's home [default: none]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, help_heading = "VM")]
    pub work_disk: Option<u64>,
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
    /// When to fetch the image: missing, always, never [default: missing]
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        hide_possible_values = true,
        hide_default_value = true,
        help_heading = "VM"
    )]
    pub pull: Pull,
    /// First process: banger's agent or its own init [default: the image's]
    #[arg(
        long,
        value_enum,
        value_name = "agent|system",
        hide_possible_values = true,
        help_heading = "VM"
    )]
    pub init: Option<Init>,
    /// Start it again when it ends by itself: no, on-failure, always
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        hide_possible_values = true,
        hide_default_value = true,
        help_heading = "VM"
    )]
    pub restart: Restart,
    /// Stop and remove the VM after so long, for example 30m or 8h
    #[arg(long, value_name = "TIME", value_parser = parse_timeout, help_heading = "VM")]
    pub ttl: Option<Duration>,
    /// Settings (TOML) or credentials (auth.json) of registries
    #[arg(long, value_name = "FILE", help_heading = "VM")]
    pub registry_config: Option<PathBuf>,
    /// Label for filters and scripts, may be repeated
    #[arg(long = "label", value_name = "KEY[=VALUE]", value_parser = parse_pair,
        help_heading = "VM")]
    pub labels: Vec<Pair>,
    /// Program that gets the command as arguments; empty resets the image's
    #[arg(long, value_name = "PROGRAM", value_parser = parse_entrypoint, help_heading = "Command")]
    pub entrypoint: Option<Entrypoint>,
    /// Signal that asks the main command to end [default: the image's]
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal, help_heading = "Command")]
    pub stop_signal: Option<String>,
    /// Environment variable, repeatable; KEY alone takes its value from here
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

/// When the image is fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Pull {
    // If it is not here.
    #[default]
    Missing,
    // If its source has a newer one than is here.
    Always,
    // Never.
    Never,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Missing => Self::Missing,
            Pull::Always => Self::Always,
            Pull::Never => Self::Never,
        }
    }
}

/// Whether a VM that ended by itself is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Restart {
    // Never.
    #[default]
    No,
    // If it failed.
    OnFailure,
    // However it ended.
    Always,
}

impl From<Restart> for RestartPolicy {
    fn from(restart: Restart) -> Self {
        match restart {
            Restart::No => Self::No,
            Restart::OnFailure => Self::OnFailure,
            Restart::Always => Self::Always,
        }
    }
}

/// What is the first process in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Init {
    // Banger's agent.
    Agent,
    // The image's own.
    System,
}

impl From<Init> for InitMode {
    fn from(init: Init) -> Self {
        match init {
            Init::Agent => Self::Agent,
            Init::System => Self::System,
        }
    }
}

/// What the command is arguments of; nothing resets what the image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrypoint(pub Vec<String>);

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
            init: self.init.map(Into::into),
            entrypoint: self.entrypoint.clone().map(|Entrypoint(words)| words),
            default_command: Vec::new(),
            stop_signal: self.stop_signal.clone(),
            timeout_ms: None,
            remove_on_exit: false,
            restart: self.restart.into(),
            ttl_ms: timeout_ms(self.ttl),
            work_disk_bytes: self.work_disk.map(|bytes| bytes.next_multiple_of(size::MIB)),
            network: match self.net {
                Net::Default => NetworkPolicy::Default,
                Net::HostAccess => NetworkPolicy::HostAccess,
            },
            labels: self.labels.iter().map(Pair::or_empty).collect(),
        }
    }

    /// How to talk to registries.
    pub fn registry(&self) -> Result<RegistryAccess, Failure> {
        RegistryArgs { registry_config: self.registry_config.clone() }.access()
    }

    /// Refuses a command that cannot be one before anything is made. What an entrypoint gets may be
    /// empty.
    pub fn check(&self, what: &GuestCommand) -> Result<(), Failure> {
        let has_entrypoint = self.entrypoint.as_ref().is_some_and(|given| !given.0.is_empty());
        if has_entrypoint { Ok(()) } else { check_command(&what.command) }
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

/// Refuses a command whose program has no name.
pub fn check_command(command: &[String]) -> Result<(), Failure> {
    if command.first().is_some_and(String::is_empty) {
        let failure = Failure::new(ErrorCode::InvalidArgument, "the command is an empty word");
        return Err(failure.or_hint("is a variable empty? Without a command you get a shell"));
    }
    Ok(())
}

/// The limit as it travels.
pub fn timeout_ms(timeout: Option<Duration>) -> Option<u64> {
    timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
}

/// Reads one program, or words in a JSON array.
fn parse_entrypoint(text: &str) -> Result<Entrypoint, String> {
    if text.trim_start().starts_with('[') {
        return match serde_json::from_str(text) {
            Ok(words) => Ok(Entrypoint(words)),
            Err(error) => Err(format!("not a JSON array of words: {error}")),
        };
    }
    let words = if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
    Ok(Entrypoint(words))
}

/// Reads a signal by name, with or without `SIG`, or by number. Whether there is such a one, the
/// daemon says.
fn parse_signal(text: &str) -> Result<String, String> {
    let is_number = text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number));
    let name = text.to_ascii_uppercase();
    let is_name = name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-'));
    match (is_number, is_name) {
        (true, _) => Ok(text.to_owned()),
        (false, true) if name.starts_with("SIG") => Ok(name),
        (false, true) => Ok(format!("SIG{name}")),
        (false, false) => Err("expected a name such as SIGINT, or a number".to_owned()),
    }
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
    fn an_entrypoint_is_a_program_or_words_or_nothing() {
        let words =
            |words: &[&str]| Ok(Entrypoint(words.iter().map(|word| (*word).to_owned()).collect()));
        assert_eq!(parse_entrypoint("/bin/my app"), words(&["/bin/my app"]));
        assert_eq!(parse_entrypoint(""), words(&[]));
        assert_eq!(parse_entrypoint(r#"["sh", "-c"]"#), words(&["sh", "-c"]));
        assert_eq!(parse_entrypoint("[]"), words(&[]));
        assert!(parse_entrypoint("[1]").is_err());
    }

    #[test]
    fn signals_have_names_and_numbers() {
        let cases =
            [("SIGINT", "SIGINT"), ("quit", "SIGQUIT"), ("9", "9"), ("rtmin+3", "SIGRTMIN+3")];
        for (text, want) in cases {
            assert_eq!(parse_signal(text).as_deref(), Ok(want));
        }
        for text in ["", "0", "65", "-1", "SIG INT", "TERM;"] {
            assert!(parse_signal(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_empty_word_is_no_command() {
        let what = |words: &[&str]| GuestCommand {
            image: None,
            command: words.iter().map(|word| (*word).to_owned()).collect(),
            marked: true,
        };
        let plain = Shape::default();
        plain.check(&what(&[])).expect("a shell");
        plain.check(&what(&["echo", ""])).expect("an empty argument");
        let failure = plain.check(&what(&["", "x"])).expect_err("no program");
        assert_eq!(failure.code(), Some(ErrorCode::InvalidArgument));
        let echo =
            Shape { entrypoint: Some(Entrypoint(vec!["echo".to_owned()])), ..Shape::default() };
        echo.check(&what(&[""])).expect("an argument of echo");
        let reset = Shape { entrypoint: Some(Entrypoint(Vec::new())), ..Shape::default() };
        reset.check(&what(&[""])).expect_err("no program");
    }

    #[test]
    fn a_specification_says_what_was_asked_for() {
        let shape = Shape {
            init: Some(Init::System),
            entrypoint: Some(Entrypoint(Vec::new())),
            stop_signal: Some("SIGINT".to_owned()),
            ..Shape::default()
        };
        let spec = shape.spec(Some("alpine"));
        assert_eq!(spec.init, Some(InitMode::System));
        assert_eq!(spec.entrypoint, Some(Vec::new()));
        assert_eq!(spec.stop_signal.as_deref(), Some("SIGINT"));
        let bare = Shape::default().spec(None);
        assert_eq!((bare.init, bare.entrypoint, bare.stop_signal), (None, None, None));
    }

    #[test]
    fn a_bad_name_comes_with_a_better_one() {
        assert_eq!(parse_name("web"), Ok("web".to_owned()));
        let error = parse_name("My VM").expect_err("bad");
        assert!(error.contains("try my-vm"), "{error}");
    }
}
