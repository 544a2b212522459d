//! What a VM runs, as Docker would: the image's `ENTRYPOINT` and `CMD`, and what the user said instead.

use banger_api::image::ImageConfig;
use banger_api::vm::{InitMode, VmSpec};

/// Programs that, as an image's whole `CMD`, only mean "nothing in particular".
const SHELLS: [&str; 5] = ["sh", "bash", "ash", "dash", "zsh"];

/// What a VM runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commands {
    /// What every command of `run` is arguments of.
    pub entrypoint: Vec<String>,
    /// What is run if no command is given.
    pub default_command: Vec<String>,
    /// The main process; empty if there is none.
    pub main: Vec<String>,
}

/// What a VM of this specification and image runs. `with_main` says that it has a main process: the
/// specification's command, or else the image's.
///
/// - An entrypoint of the user's own also takes the place of the image's `CMD`, as in Docker.
/// - A system image's commands are its init system's business, so they are not taken.
/// - A VM whose image has only a shell to offer runs until it is stopped: a shell that reads nothing
///   would end at once.
#[must_use]
pub fn commands(spec: &VmSpec, image: &ImageConfig, init: InitMode, with_main: bool) -> Commands {
    let (entrypoint, default_command) = match (&spec.entrypoint, init) {
        (Some(own), _) => (own.clone(), Vec::new()),
        (None, InitMode::System) => (Vec::new(), Vec::new()),
        (None, InitMode::Agent) => (image.entrypoint.clone(), image.cmd.clone()),
    };
    let main = if !with_main {
        Vec::new()
    } else if !spec.command.is_empty() {
        [&entrypoint[..], &spec.command].concat()
    } else if entrypoint.is_empty() && is_shell(&default_command) {
        Vec::new()
    } else {
        [&entrypoint[..], &default_command].concat()
    };
    Commands { entrypoint, default_command, main }
}

fn is_shell(command: &[String]) -> bool {
    let [program] = command else { return false };
    SHELLS.contains(&program.rsplit('/').next().unwrap_or(program))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::any_spec;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn it_is_as_in_docker() {
        // ENTRYPOINT, CMD, --entrypoint, command; what a detached VM runs.
        let cases = [
            ("", "/bin/sh", None, "", ""),
            ("", "bash", None, "make test", "make test"),
            ("", "nginx -g x", None, "", "nginx -g x"),
            ("/start", "a b", None, "", "/start a b"),
            ("/start", "a b", None, "c", "/start c"),
            ("/start", "a b", Some("/other"), "", "/other"),
            ("/start", "a b", Some("/other"), "c", "/other c"),
            ("/start", "a b", Some(""), "c", "c"),
            ("/start", "a b", Some(""), "", ""),
            ("/start", "sh", None, "", "/start sh"),
        ];
        for (entrypoint, cmd, own, command, want) in cases {
            let image = ImageConfig {
                entrypoint: words(entrypoint),
                cmd: words(cmd),
                ..ImageConfig::default()
            };
            let spec = VmSpec { entrypoint: own.map(words), command: words(command), ..any_spec() };
            let found = commands(&spec, &image, InitMode::Agent, true);
            assert_eq!(found.main, words(want), "{entrypoint:?} {cmd:?} {own:?} {command:?}");
            assert_eq!(commands(&spec, &image, InitMode::Agent, false).main, words(""));
        }
    }

    #[test]
    fn a_system_image_runs_its_own_init() {
        let image = ImageConfig { cmd: words("/sbin/init"), ..ImageConfig::default() };
        let found = commands(&any_spec(), &image, InitMode::System, true);
        assert_eq!(found, Commands::default());
        let spec = VmSpec { command: words("journalctl -f"), ..any_spec() };
        let found = commands(&spec, &image, InitMode::System, true);
        assert_eq!(found.main, words("journalctl -f"));
    }
}
