//! What a VM runs, as Docker would: the image's `ENTRYPOINT` and `CMD`, and what the user said instead.

use banger_api::image::{Image, ImageConfig};
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

/// The specification of a VM whose image is replaced: what it had of the old image it now has of the
/// new one, what the user chose stays.
#[must_use]
pub fn with_image(spec: &VmSpec, from: &Image, to: &Image) -> VmSpec {
    let own_init = spec.init.filter(|init| *init != from.init);
    let init = own_init.unwrap_or(to.init);
    let nothing = VmSpec { entrypoint: None, command: Vec::new(), ..spec.clone() };
    let was = commands(&nothing, &from.config, spec.init.unwrap_or(from.init), true);
    let is = commands(&nothing, &to.config, init, true);
    let mut spec = VmSpec { image: to.name.clone(), init: Some(init), ..spec.clone() };
    if !spec.command.is_empty() && spec.command == was.main {
        spec.command = is.main;
    } else if let Some(own) = spec.command.strip_prefix(&was.entrypoint[..]) {
        let has_own = !own.is_empty() && spec.entrypoint.as_ref() == Some(&was.entrypoint);
        if has_own {
            spec.command = [&is.entrypoint[..], own].concat();
        }
    }
    if spec.entrypoint.as_ref() == Some(&was.entrypoint) {
        spec.entrypoint = Some(is.entrypoint);
        spec.default_command = is.default_command;
    }
    spec
}

fn is_shell(command: &[String]) -> bool {
    let [program] = command else { return false };
    SHELLS.contains(&program.rsplit('/').next().unwrap_or(program))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::spec::tests::any_spec;

    pub(crate) fn any_image(name: &str, disk_bytes: u64) -> Image {
        Image {
            name: name.into(),
            digest: format!("sha256:{name}"),
            disk_sha256: "0".repeat(64),
            disk_bytes,
            allocated_bytes: 1,
            source: "a test".into(),
            created_at_ms: 1,
            config: ImageConfig::default(),
            oci: None,
            kernel: None,
            init: InitMode::Agent,
            superseded: false,
        }
    }

    #[test]
    fn what_an_image_said_is_replaced_and_what_a_user_said_stays() {
        let image = |name: &str, entrypoint: &str, cmd: &str| {
            let mut image = any_image(name, 1);
            image.config.entrypoint = words(entrypoint);
            image.config.cmd = words(cmd);
            image
        };
        let (from, to) = (image("old", "/old", "serve"), image("new", "/new", "run all"));
        // What the VM has (entrypoint, default command, main), and what it then has.
        let table = [
            (("/old", "serve", "/old serve"), ("/new", "run all", "/new run all")),
            (("/old", "serve", "/old mine"), ("/new", "run all", "/new mine")),
            (("/old", "serve", ""), ("/new", "run all", "")),
            (("/mine", "", "/mine x"), ("/mine", "", "/mine x")),
            (("", "", "x"), ("", "", "x")),
        ];
        for ((entrypoint, default_command, main), want) in table {
            let spec = VmSpec {
                entrypoint: Some(words(entrypoint)),
                default_command: words(default_command),
                command: words(main),
                init: Some(InitMode::Agent),
                ..any_spec()
            };
            let after = with_image(&spec, &from, &to);
            let found = (after.entrypoint, after.default_command, after.command);
            assert_eq!(found, (Some(words(want.0)), words(want.1), words(want.2)), "{main}");
            assert_eq!(after.image, "new");
        }
    }

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
