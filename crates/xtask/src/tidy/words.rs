//! Words that do not belong in the tree: notes to oneself, and names of one's own machines.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::Finding;
use super::sources::Sources;

pub(super) fn check(sources: &Sources) -> Vec<Finding> {
    // Put together here so that this file does not find itself.
    let notes = ["TO", "FIX", "XX"].map(|start| match start {
        "TO" => format!("{start}DO"),
        "FIX" => format!("{start}ME"),
        _ => format!("{start}X"),
    });
    let hosts = registry_hosts();
    let mut findings = Vec::new();
    for source in sources.all() {
        for (index, line) in source.text.lines().enumerate() {
            let place = || format!("{}:{}", source.path, index + 1);
            if let Some(note) = notes.iter().find(|note| has_word(line, note)) {
                findings.push(Finding::new(place(), format!("{note}: do it, or open an issue")));
            }
            if hosts.iter().any(|host| line.contains(host.as_str())) {
                let text = "names a package registry of this machine; such settings are each \
                            machine's own";
                findings.push(Finding::new(place(), text));
            }
        }
    }
    findings
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        ![before, after].into_iter().flatten().any(|c| c.is_alphanumeric() || c == '_')
    })
}

/// Host names of the registries that this machine's apt and cargo are set up with.
fn registry_hosts() -> BTreeSet<String> {
    let mut hosts = BTreeSet::new();
    for file in registry_settings() {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        hosts.extend(text.lines().filter(|line| !line.starts_with('#')).flat_map(hosts_in));
    }
    hosts
}

fn registry_settings() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
        let read = |path: &PathBuf| path.extension().is_some_and(|e| e == "list" || e == "sources");
        files.extend(entries.flatten().map(|entry| entry.path()).filter(read));
    }
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    for dir in [home, cargo_home].into_iter().flatten() {
        files.extend(["config", "config.toml"].map(|name| dir.join(name)));
    }
    files
}

fn hosts_in(line: &str) -> Vec<String> {
    line.split("://")
        .skip(1)
        .filter_map(|rest| rest.split(['/', ' ', '"', '\'', ':']).next())
        .map(|host| host.rsplit('@').next().unwrap_or(host).to_owned())
        .filter(|host| host.contains('.'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole_words() {
        assert!(has_word("a NOTE: b", "NOTE"));
        assert!(!has_word("NOTED", "NOTE"));
        assert!(!has_word("A_NOTE", "NOTE"));
    }

    #[test]
    fn hosts_are_read_from_settings() {
        assert_eq!(hosts_in("deb https://u:p@a.example/debian x main"), ["u"; 0]);
        assert_eq!(hosts_in("URIs: http://a.example/debian"), ["a.example"]);
        assert_eq!(hosts_in("index = \"sparse+https://b.example:8080/i/\""), ["b.example"]);
    }
}
