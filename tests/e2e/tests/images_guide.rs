//! docs/images.md is true: what it shows is run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_e2e::configure;
use banger_testkit::Host;
use banger_testkit::fixtures::{Fixtures, TestRegistry};

/// The whole tour, with seven boots and a build.
const TOUR: Duration = Duration::from_secs(400);

fn guide() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/images.md");
    std::fs::read_to_string(path).expect("the guide is there")
}

/// The contents of its blocks of that kind.
fn blocks(kind: &str) -> Vec<String> {
    let guide = guide();
    let begin = format!("```{kind}\n");
    guide
        .split(&begin)
        .skip(1)
        .map(|text| text.split("```").next().unwrap_or_default().to_owned())
        .collect()
}

/// "docs/images.md explains it all with commands that a test runs."
#[test]
fn the_commands_of_the_guide_work() {
    let host = Host::new();
    let fixtures = Fixtures::prepared();
    let hub = fixtures.registry();
    let own = TestRegistry::empty();
    let settings = format!("[registry.\"docker.io\"]\nmirror = \"{}/hub\"\n", hub.server.address());
    configure(&host, "registries.toml", &settings);
    // Buildah has settings of its own.
    let mirror = format!(
        "unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nlocation = \"docker.io\"\n\
         [[registry.mirror]]\nlocation = \"{}/hub\"\ninsecure = true\n",
        hub.server.address()
    );
    let mirror = banger_e2e::file(&host, "registries.conf", mirror);
    for (name, target) in [
        ("rootfs.tar", fixtures.rootfs_tar()),
        ("layout", fixtures.layout()),
        ("saved.tar", fixtures.archive()),
    ] {
        std::os::unix::fs::symlink(target, host.scratch.join(name)).expect("a new name");
    }
    let lines = blocks("console").concat();
    let commands: Vec<&str> = lines.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(commands.len() >= 20, "{commands:?}");
    let script = commands.join("\n").replace("localhost:5000", &own.server.address());
    let bin = host.programs().join("bin");
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", bin.display());
    let output = host
        .program(Path::new("/bin/bash"), ["-euxo", "pipefail", "-c", &script])
        .env("PATH", path)
        .env("CONTAINERS_REGISTRIES_CONF", mirror)
        .timeout(TOUR)
        .run()
        .assert_ok();
    for said in ["root:x:0:0", "\nagain\n", "green\n/tmp\n", "hello\n", "mine\n", "tools\n"] {
        output.clone().assert_stdout_has(said);
    }
    host.finish();
}

/// What it shows of settings and catalogs is understood.
#[test]
fn the_files_of_the_guide_are_understood() {
    let host = Host::new();
    let own = TestRegistry::empty();
    own.push(&banger_testkit::registry::TestImage::new().file("x", b"y"), "app:1");
    let [settings, catalog] = &blocks("toml")[..] else { panic!("a settings file and a catalog") };
    configure(&host, "registries.toml", settings);
    configure(&host, "catalog.toml", catalog);
    host.banger(["image", "pull", &own.reference("app:1")]).run().assert_ok();
    let listed = host.banger(["image", "catalog", "-q"]).run().assert_ok().stdout_text();
    for name in ["team", "slim", "appliance", "debian-bookworm-dev"] {
        assert!(listed.lines().any(|line| line == name), "{name}: {listed}");
    }
    host.finish();
}

/// Commands that stand in a sentence exist, with their options.
#[test]
fn what_the_guide_mentions_exists() {
    let host = Host::new();
    let guide = guide();
    let mentioned = guide.split('`').skip(1).step_by(2).filter(|text| text.starts_with("banger "));
    let mut seen: Vec<PathBuf> = Vec::new();
    for text in mentioned {
        let words: Vec<&str> = text.split_whitespace().skip(1).collect();
        let is_verb = |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase());
        let verbs = if ["image", "kernel", "system"].contains(&words[0]) { 2 } else { 1 };
        let verbs: Vec<&str> = words.iter().take(verbs).filter(is_verb).copied().collect();
        let help = host.banger([&verbs[..], &["--help"]].concat()).run().assert_ok().stdout_text();
        for option in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "`{text}`: no {option} in\n{help}");
        }
        seen.push(verbs.join("/").into());
    }
    assert!(seen.len() >= 8, "{seen:?}");
    host.finish();
}
