//! What the kernel keeps in its own tables: mounts, sockets, network devices, rules, control groups.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::processes::namespace_id;
use super::{Observation, Scope, Thing};
use crate::command::{Cancel, Tool};

/// How deep control groups are looked through.
const CGROUP_DEPTH: u32 = 8;
/// The flag of a listening socket in `/proc/net/unix`.
const ACCEPTS: u64 = 0x1_0000;

pub(super) fn mounts(scope: &Scope, observation: &mut Observation) {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let Some(point) = words.get(4).map(|point| unescape(point)) else { continue };
        let after = words.iter().position(|word| *word == "-").map_or(0, |at| at + 1);
        let filesystem = words.get(after).copied().unwrap_or_default().to_owned();
        if !scope.whole_machine && !scope.holds(&point) {
            continue;
        }
        // A namespace that is mounted lives without any process.
        if filesystem == "nsfs"
            && let Some(root) = words.get(3)
            && let (Some((of, _)), Some(id)) = (root.split_once(':'), namespace_id(root))
        {
            observation.add(Thing::Namespace { of: of.to_owned(), id }, None);
        }
        observation.add(Thing::Mount { point, filesystem }, None);
    }
}

/// The kernel writes blanks, tabs, newlines and backslashes as octal numbers.
fn unescape(text: &str) -> String {
    let mut plain = text.to_owned();
    for (octal, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(octal, character);
    }
    plain
}

pub(super) fn sockets(scope: &Scope, observation: &mut Observation) {
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    for line in text.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(flags), Some(inode), Some(path)) = (words.get(3), words.get(6), words.get(7))
        else {
            continue;
        };
        let listens = u64::from_str_radix(flags, 16).is_ok_and(|flags| flags & ACCEPTS != 0);
        // Ours are bound through a descriptor of their directory.
        let by_descriptor = scope.whole_machine && path.starts_with("/proc/self/fd/");
        if listens && (scope.concerns(path) || by_descriptor) {
            let inode = inode.parse().unwrap_or(0);
            observation.add(Thing::Socket { path: (*path).to_owned(), inode }, None);
        }
    }
}

pub(super) fn network_devices(observation: &mut Observation) {
    // Not /sys/class/net, which shows the namespace of whoever mounted /sys.
    let text = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    for name in text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()) {
        observation.add(Thing::NetworkDevice { name: name.to_owned() }, None);
    }
}

pub(super) fn firewall(observation: &mut Observation) {
    let asked = Tool::new("nft").args(["--stateless", "list", "ruleset"]).run(&Cancel::new());
    // Without the right to ask, or without the program, there is nothing to tell.
    let text = asked.map(|answer| answer.text()).unwrap_or_default();
    for (table, line) in rules(&text) {
        observation.add(Thing::FirewallRule { table, line }, None);
    }
}

/// The lines of a rule set, each with its table; one that is there several times is numbered.
fn rules(text: &str) -> Vec<(String, String)> {
    let mut table = String::new();
    let mut seen: BTreeMap<(String, String), u32> = BTreeMap::new();
    let mut rules = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches([' ', '{']).to_owned();
        }
        let line = line.trim();
        if line.is_empty() || line == "}" {
            continue;
        }
        let count = seen.entry((table.clone(), line.to_owned())).or_insert(0);
        *count += 1;
        let line = if *count > 1 { format!("{line} ({count})") } else { line.to_owned() };
        rules.push((table.clone(), line));
    }
    rules
}

pub(super) fn cgroups(observation: &mut Observation) {
    look_for_cgroups(Path::new("/sys/fs/cgroup"), CGROUP_DEPTH, observation);
}

fn look_for_cgroups(dir: &Path, depth: u32, observation: &mut Observation) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().contains("banger") {
            let path = entry.path().to_string_lossy().into_owned();
            observation.add(Thing::Cgroup { path }, None);
        }
        if depth > 1 {
            look_for_cgroups(&entry.path(), depth - 1, observation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_know_their_table_and_doubles_count() {
        let text =
            "table inet banger {\n\tchain out {\n\t\tdrop\n\t\tdrop\n\t}\n}\ntable ip x {\n}\n";
        let found = rules(text);
        let lines: Vec<String> =
            found.iter().map(|(table, line)| format!("{table} | {line}")).collect();
        assert_eq!(
            lines,
            [
                "inet banger | table inet banger {",
                "inet banger | chain out {",
                "inet banger | drop",
                "inet banger | drop (2)",
                "ip x | table ip x {",
            ]
        );
    }

    #[test]
    fn mount_points_are_written_as_they_are() {
        assert_eq!(unescape("/tmp/a\\040b\\134c"), "/tmp/a b\\c");
    }
}
