//! Doors: things that only some places may do.
//!
//! `clippy.toml` keeps most of them too; this rule also sees what clippy is not run on, and does
//! not listen to `allow`.

use super::Finding;
use super::sources::{Source, Sources, code_of};

/// Something that only some places may do.
struct Door {
    /// What it looks like in code.
    signs: &'static [&'static str],
    /// Path prefixes of those who may.
    keepers: &'static [&'static str],
    /// What everybody else does instead.
    instead: &'static str,
}

const HOST: &str = "crates/banger-host/";
const AGENT: &str = "crates/banger-agent/";
const TESTKIT: &str = "crates/banger-testkit/";
const XTASK: &str = "crates/xtask/";

const DOORS: &[Door] = &[
    Door {
        signs: &["Command::new("],
        keepers: &[HOST, AGENT, TESTKIT, XTASK],
        instead: "use banger_host::command",
    },
    Door {
        signs: &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"],
        keepers: &[HOST, AGENT, TESTKIT],
        instead: "put a safe function into banger-host",
    },
    Door {
        signs: &["println!(", "print!("],
        // The shim's last words, when it cannot begin, go where its log will be.
        keepers: &["crates/banger/src/ui", "crates/banger-shim/src/main.rs", XTASK, TESTKIT],
        instead: "only banger::ui prints; daemon, shim and agent log",
    },
    Door {
        signs: &["env::var", "env::vars"],
        keepers: &[HOST, AGENT, TESTKIT, XTASK],
        instead: "the environment is read by banger-host, see docs/environment.md",
    },
    Door {
        signs: &["SystemTime::now"],
        keepers: &[HOST, AGENT, TESTKIT, XTASK],
        instead: "use banger_host::clock",
    },
    Door {
        signs: &["fs::copy("],
        keepers: &[TESTKIT, XTASK],
        instead: "it fills the holes of sparse files; write the bytes, or use banger_host::cow",
    },
    Door {
        signs: &["rusqlite"],
        keepers: &["crates/bangerd/src/store"],
        instead: "only the store knows SQL",
    },
];

pub(super) fn check(sources: &Sources) -> Vec<Finding> {
    // This rule and its neighbour spell the signs out.
    let others = |source: &&Source| !source.path.starts_with("crates/xtask/src/tidy/");
    sources.rust().filter(others).flat_map(check_file).collect()
}

fn check_file(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let closed: Vec<&Door> = DOORS
        .iter()
        .filter(|door| !door.keepers.iter().any(|keeper| source.path.starts_with(keeper)))
        .collect();
    for (number, line) in source.product_lines() {
        let code = code_of(line);
        for door in &closed {
            if let Some(sign) = door.signs.iter().find(|sign| code.contains(*sign)) {
                let place = format!("{}:{number}", source.path);
                findings.push(Finding::new(place, format!("`{sign}`: {}", door.instead)));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check_file(&Source { path: path.into(), text: text.into() }).len()
    }

    #[test]
    fn doors_are_closed_except_to_their_keepers() {
        let cases = [
            ("crates/bangerd/src/main.rs", "Command::new(\"sh\")", 1),
            ("crates/banger-host/src/command/mod.rs", "Command::new(\"sh\")", 0),
            ("crates/banger/src/commands/run.rs", "eprintln!(\"x\")", 1),
            ("crates/banger/src/ui/table.rs", "println!(\"x\")", 0),
            ("crates/bangerd/src/api.rs", "use rusqlite::Row;", 1),
            ("crates/bangerd/src/api.rs", "// unsafe { is a word }", 0),
            ("crates/bangerd/src/api.rs", "#[cfg(test)]\nmod tests { println!(\"x\") }", 0),
        ];
        for (path, text, want) in cases {
            assert_eq!(count(path, text), want, "{path}: {text}");
        }
    }
}
