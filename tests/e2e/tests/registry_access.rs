//! Registries that are not for everybody: passwords, certificates, signatures.

use banger_e2e::{LocalImage, configure, file};
use banger_testkit::Host;
use banger_testkit::fixtures::{SigningKey, TestRegistry, base64};
use banger_testkit::registry::{Certificates, PASSWORD, RegistryOptions, TestImage, USER};
use serde_json::json;

/// "Private registries: Docker's and containers' auth files and credential helpers,
/// `--registry-config`"
#[test]
fn a_private_registry_wants_the_right_password() {
    let host = Host::new();
    let registry =
        TestRegistry::with(|_| RegistryOptions { password: true, ..RegistryOptions::default() });
    registry.push(&TestImage::new().file("secret", b"yes\n"), "app:1");
    let app = registry.reference("app:1");
    let auths = |password: &str| {
        let auth = base64(format!("{USER}:{password}"));
        json!({ "auths": { registry.server.address(): { "auth": auth } } }).to_string()
    };
    let docker = file(&host, "docker/config.json", auths(PASSWORD));
    let docker = docker.parent().expect("it has one").to_owned();
    let auth_file = file(&host, "auth.json", auths(PASSWORD));
    let wrong = file(&host, "wrong.json", auths("guessed"));
    let helped = json!({ "credHelpers": { registry.server.address(): "tests" } });
    let helped = file(&host, "helped/config.json", helped.to_string());
    let helped = helped.parent().expect("it has one").to_owned();
    let path = format!("{}:/usr/bin:/bin", helper(&host).display());

    let pull = || host.banger(["image", "pull", "--refresh", &app, "--format", "json"]);
    for refused in [pull(), pull().env("REGISTRY_AUTH_FILE", &wrong)] {
        let output = refused.run().assert_code(125);
        let text = output.stderr_text();
        assert!(text.contains("registry_denied") && text.contains("login"), "{output}");
        assert!(!text.contains("guessed"), "{output}");
    }
    let with_config = ["image", "pull", &app, "--registry-config", &auth_file.to_string_lossy()];
    for allowed in [
        pull().env("DOCKER_CONFIG", &docker),
        pull().env("REGISTRY_AUTH_FILE", &auth_file),
        pull().env("DOCKER_CONFIG", &helped).env("PATH", &path),
        host.banger(with_config),
    ] {
        allowed.run().assert_ok();
        assert_eq!(LocalImage::of(&host, &app).read("/secret"), "yes\n");
        host.banger(["image", "rm", &app]).run().assert_ok();
        host.banger(["image", "prune", "--yes"]).run().assert_ok();
    }
    host.finish();
}

/// A directory with a credential helper that knows the password.
fn helper(host: &Host) -> std::path::PathBuf {
    let answer = json!({ "Username": USER, "Secret": PASSWORD });
    let script = format!("#!/bin/sh\n[ \"$1\" = get ] && cat >&2 && echo '{answer}'\n");
    let program = file(host, "helpers/docker-credential-tests", script);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).expect("ours");
    program.parent().expect("it has one").to_owned()
}

/// "plain-http and custom CA per registry"
#[test]
fn a_registry_with_an_authority_of_its_own() {
    let host = Host::new();
    let mut authority = None;
    let registry = TestRegistry::with(|dir| {
        let certificates = Certificates::create(&dir.join("certificates"));
        authority = Some(std::fs::read(&certificates.authority).expect("just made"));
        RegistryOptions { tls: Some(certificates), ..RegistryOptions::default() }
    });
    registry.push(&TestImage::new().file("safe", b"yes\n"), "app:1");
    let app = registry.reference("app:1");
    let pull = ["image", "pull", &app, "--format", "json"];
    let output = host.banger(pull).run().assert_code(125);
    let text = output.stderr_text();
    assert!(text.contains("registry_unavailable"), "{output}");
    assert!(text.contains("registries.toml") && text.contains("ca = "), "{output}");
    let authority = authority.expect("it was made");
    let address = registry.server.address();
    let settings = format!("[registry.\"{address}\"]\nca = \"ca.pem\"\n");
    file(&host, "settings/ca.pem", &authority);
    let chosen = file(&host, "settings/some.toml", &settings);
    let chosen = chosen.to_string_lossy();
    host.banger([&pull[..], &["--registry-config", &chosen]].concat()).run().assert_ok();
    assert_eq!(LocalImage::of(&host, &app).read("/safe"), "yes\n");
    host.banger(["image", "rm", &app]).run().assert_ok();
    configure(&host, "ca.pem", &String::from_utf8(authority).expect("PEM"));
    configure(&host, "registries.toml", &settings);
    host.banger(pull).run().assert_ok();
    // What is no setting is said with its line.
    configure(&host, "registries.toml", "[registry.x]\nplain-htp = true\n");
    let output = host.banger(["image", "pull", "--refresh", &app]).run().assert_code(125);
    assert!(output.stderr_text().contains("registries.toml:2"), "{output}");
    host.finish();
}

/// "`pull --verify-key KEY` checks a cosign-style key signature where one exists, refusing otherwise"
#[test]
fn a_signature_is_checked_where_one_is_asked_for() {
    let host = Host::new();
    let registry = TestRegistry::empty();
    let [signer, other] = ["signer", "other"].map(|name| SigningKey::create(&host.scratch, name));
    let signed = registry.push(&TestImage::new().file("x", b"signed\n"), "app:signed");
    registry.push(&TestImage::new().file("x", b"unsigned\n"), "app:unsigned");
    let digest = signed["digest"].as_str().expect("a digest").to_owned();
    signer.sign(&registry, "app", &digest);
    let pull = |tag: &str, key: &SigningKey| {
        let reference = registry.reference(&format!("app:{tag}"));
        let key = key.public.to_string_lossy().into_owned();
        host.banger(["image", "pull", &reference, "--verify-key", &key, "--format", "json"]).run()
    };
    for (tag, key) in [("signed", &other), ("unsigned", &signer)] {
        pull(tag, key).assert_code(125).assert_stderr_has("signature_invalid");
    }
    host.banger(["image", "ls", "-q"]).run().assert_ok().assert_stdout("debian-bookworm\n");
    pull("signed", &signer).assert_ok();
    assert_eq!(LocalImage::of(&host, &registry.reference("app:signed")).read("/x"), "signed\n");
    // Nobody signs what comes out of the Debian archive with such a key.
    let key = signer.public.to_string_lossy();
    let debian = ["image", "pull", "debian-bookworm", "--verify-key", &key, "--format", "json"];
    host.banger(debian).run().assert_code(125).assert_stderr_has("signature_invalid");
    host.finish();
}
