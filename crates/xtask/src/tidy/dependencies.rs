//! Dependencies point one way, and dangerous or heavy libraries stay where they belong.

use std::collections::BTreeMap;

use super::Finding;
use super::sources::Sources;

/// Which of our crates each of our crates may use.
const OURS: &[(&str, &[&str])] = &[
    ("banger-api", &[]),
    ("banger-core", &["banger-api"]),
    ("banger-host", &["banger-api", "banger-core"]),
    ("banger-ext4", &[]),
    ("banger-image", &["banger-api", "banger-core", "banger-ext4", "banger-host"]),
    ("bangerd", &["banger-api", "banger-core", "banger-host", "banger-image"]),
    ("banger-shim", &["banger-api", "banger-core", "banger-host"]),
    ("banger", &["banger-api", "banger-core", "banger-host"]),
    ("banger-agent", &["banger-api"]),
    ("banger-testkit", &["banger-api", "banger-host"]),
    ("banger-e2e", &["banger-api", "banger-testkit"]),
    ("xtask", &["banger-api", "banger-host", "banger-testkit"]),
    ("banger-fuzz", &["banger-api", "banger-core", "banger-ext4", "banger-host", "banger-image"]),
    ("banger-fuzz-targets", &["banger-fuzz"]),
];

/// Libraries that only some crates may use, and why.
const THEIRS: &[(&str, &[&str], &str)] = &[
    ("rusqlite", &["bangerd"], "only the daemon's store knows SQL"),
    ("clap", &["banger", "xtask"], "only the command line has a command line"),
    ("indicatif", &["banger"], "only the command line shows progress"),
    ("owo-colors", &["banger"], "only the command line has colours"),
    ("comfy-table", &["banger"], "only the command line prints tables"),
    ("libc", &["banger-host", "banger-agent", "banger-testkit", "xtask"], SYSTEM_CALLS),
    // banger-image and banger-ext4 make and keep the holes of sparse disks, and call for nothing
    // else.
    (
        "nix",
        &["banger-host", "banger-image", "banger-ext4", "banger-agent", "banger-testkit", "xtask"],
        SYSTEM_CALLS,
    ),
    ("rustix", &["banger-host", "banger-agent", "banger-testkit"], SYSTEM_CALLS),
    ("seccompiler", &["banger-host"], SYSTEM_CALLS),
    ("utoipa", &["banger-api", "bangerd"], "the OpenAPI document is the daemon's"),
];
const SYSTEM_CALLS: &str = "system calls are made by banger-host, and by the agent in the guest";

/// What the crates that only think and speak may use at all.
const PURE: &[(&str, &[&str])] =
    &[("banger-api", &["serde", "serde_json", "utoipa"]), ("banger-core", &["serde", "thiserror"])];

pub(super) fn check(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.all().filter(|source| source.path.ends_with("/Cargo.toml")) {
        match source.text.parse::<toml::Table>() {
            Ok(manifest) => check_manifest(&source.path, &manifest, &mut findings),
            Err(error) => findings.push(Finding::new(&source.path, error.to_string())),
        }
    }
    findings
}

fn check_manifest(path: &str, manifest: &toml::Table, findings: &mut Vec<Finding>) {
    let name = manifest
        .get("package")
        .and_then(|package| package.get("name"))
        .and_then(toml::Value::as_str)
        .unwrap_or_default();
    let ours: BTreeMap<_, _> = OURS.iter().copied().collect();
    let Some(allowed) = ours.get(name) else {
        let text = "a crate that the dependency table of tidy does not know; add it there";
        findings.push(Finding::new(path, text));
        return;
    };
    for (dependency, dev) in dependencies(manifest) {
        let refusal = if ours.contains_key(dependency) {
            // Tests start programs too, through the same door.
            let in_tests = dev && ["banger-testkit", "banger-host"].contains(&dependency);
            let fine = allowed.contains(&dependency) || in_tests;
            (!fine).then_some("dependencies point one way, see ARCHITECTURE.md")
        } else {
            refuse_foreign(name, dependency, dev)
        };
        if let Some(reason) = refusal {
            findings
                .push(Finding::new(path, format!("{name} must not use {dependency}: {reason}")));
        }
    }
}

fn refuse_foreign(name: &str, dependency: &str, dev: bool) -> Option<&'static str> {
    if dev {
        return None;
    }
    let pure = PURE.iter().find(|(package, _)| *package == name);
    if pure.is_some_and(|(_, allowed)| !allowed.contains(&dependency)) {
        return Some("this crate only thinks and speaks");
    }
    let (_, allowed, reason) = THEIRS.iter().find(|(library, ..)| *library == dependency)?;
    (!allowed.contains(&name)).then_some(*reason)
}

/// Every dependency, and whether only tests use it.
fn dependencies(manifest: &toml::Table) -> Vec<(&str, bool)> {
    let mut found = Vec::new();
    for (section, dev) in
        [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)]
    {
        if let Some(table) = manifest.get(section).and_then(toml::Value::as_table) {
            found.extend(table.keys().map(|key| (key.as_str(), dev)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(manifest: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_manifest("m", &manifest.parse().unwrap(), &mut findings);
        findings.into_iter().map(|finding| finding.text).collect()
    }

    #[test]
    fn a_dependency_against_the_grain_is_found() {
        let found = findings("[package]\nname='banger-core'\n[dependencies]\nbanger-host={}\n");
        assert_eq!(found.len(), 1, "{found:?}");
        let found = findings("[package]\nname='banger'\n[dependencies]\nrusqlite='1'\n");
        assert_eq!(found, ["banger must not use rusqlite: only the daemon's store knows SQL"]);
        let found = findings("[package]\nname='banger-core'\n[dependencies]\ntokio='1'\n");
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn what_the_table_allows_is_not_found() {
        let manifest = "[package]\nname='banger-image'\n[dependencies]\nbanger-host={}\ntar='1'\n\
            [dev-dependencies]\nbanger-testkit={}\n";
        assert!(findings(manifest).is_empty());
    }
}
