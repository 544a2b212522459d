//! Documents are true: what they name exists, and what exists is named.

use std::collections::BTreeSet;

use super::Finding;
use super::sources::{Source, Sources};
use crate::tree;

/// Names that say nothing.
const EMPTY_NAMES: [&str; 8] =
    ["util", "utils", "common", "helper", "helpers", "manager", "types", "misc"];

/// Every module says what it is for, and has a name that does too.
pub(super) fn check_modules(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.rust() {
        if !source.text.starts_with("//!") && !source.path.ends_with("/tests.rs") {
            findings
                .push(Finding::new(&source.path, "begins without `//!` that says what it is for"));
        }
        let parts = source.path.split(['/', '.']);
        if let Some(name) = parts.into_iter().find(|part| EMPTY_NAMES.contains(part)) {
            findings
                .push(Finding::new(&source.path, format!("`{name}` says nothing; name the noun")));
        }
    }
    findings
}

/// Links lead somewhere; the tables of files, variables, codes and invariants are complete.
pub(super) fn check_documents(sources: &Sources) -> Vec<Finding> {
    let mut findings: Vec<Finding> = sources.markdown().flat_map(broken_links).collect();
    findings.extend(same_names("docs/environment.md", sources, &variables_in_code(sources)));
    findings.extend(missing_names("docs/on-disk.md", sources, &files_in_code(sources)));
    findings.extend(missing_names("docs/exit-codes.md", sources, &codes_in_code(sources)));
    findings.extend(invariants_without_test(sources));
    findings
}

fn broken_links(source: &Source) -> Vec<Finding> {
    let here = tree::root().join(&source.path);
    let dir = here.parent().expect("a file is in a directory");
    links_in(&source.text)
        .into_iter()
        .filter(|link| !link.contains("://") && !link.starts_with('#') && !link.contains("mailto:"))
        .filter(|link| !dir.join(link.split('#').next().unwrap_or_default()).exists())
        .map(|link| Finding::new(&source.path, format!("the link to {link} leads nowhere")))
        .collect()
}

fn links_in(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ', '\n']).next()).collect()
}

/// `BANGER_*` variables that the programs read.
fn variables_in_code(sources: &Sources) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let readers =
        ["crates/banger-host/", "crates/banger/", "crates/bangerd/", "crates/banger-shim/"];
    for source in sources.rust().filter(|source| readers.iter().any(|r| source.path.starts_with(r)))
    {
        names.extend(source.product_lines().flat_map(|(_, line)| variables_in(line)));
    }
    names
}

/// Names that stand in quotes: `BANGER_*` in prose and constants of that name do not count.
fn variables_in(line: &str) -> Vec<String> {
    line.split(['"', '`'])
        .filter_map(|part| part.split(['=', ':']).next())
        .filter(|part| part.len() > "BANGER_".len() && part.starts_with("BANGER_"))
        .filter(|part| part.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .map(str::to_owned)
        .collect()
}

/// Names of files, as the API's constants have them.
fn files_in_code(sources: &Sources) -> BTreeSet<String> {
    let text = sources.text("crates/banger-api/src/shim.rs").unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with("pub const") && line.contains(": &str"))
        .filter_map(|line| line.split('"').nth(1))
        .map(str::to_owned)
        .collect()
}

/// Error codes, as the API has them.
fn codes_in_code(sources: &Sources) -> BTreeSet<String> {
    let text = sources.text("crates/banger-api/src/error.rs").unwrap_or_default();
    text.lines()
        .filter(|line| line.trim().starts_with("Self::") && line.contains("=> \""))
        .filter_map(|line| line.split('"').nth(1))
        .map(str::to_owned)
        .collect()
}

fn missing_names(document: &str, sources: &Sources, names: &BTreeSet<String>) -> Vec<Finding> {
    let text = sources.text(document).unwrap_or_default();
    names
        .iter()
        .filter(|name| !text.contains(&format!("`{name}`")))
        .map(|name| Finding::new(document, format!("does not say what `{name}` is")))
        .collect()
}

fn same_names(document: &str, sources: &Sources, names: &BTreeSet<String>) -> Vec<Finding> {
    let text = sources.text(document).unwrap_or_default();
    let mut findings = missing_names(document, sources, names);
    let told: BTreeSet<String> = text
        .lines()
        .filter(|line| line.starts_with("| `BANGER_"))
        .flat_map(|line| variables_in(line).into_iter().take(1))
        .collect();
    findings.extend(
        told.difference(names)
            .map(|name| Finding::new(document, format!("`{name}` is read by nobody"))),
    );
    findings
}

/// Each numbered invariant of ARCHITECTURE.md ends in `*Test: …*`; what stands there in code quotes
/// must be a function, a file or a rule that exists.
fn invariants_without_test(sources: &Sources) -> Vec<Finding> {
    const DOCUMENT: &str = "ARCHITECTURE.md";
    let text = sources.text(DOCUMENT).unwrap_or_default();
    let section = text.split("\n## ").find(|part| part.starts_with("Invariants"));
    let Some(section) = section else {
        return vec![Finding::new(DOCUMENT, "has no section `Invariants`")];
    };
    let mut findings = Vec::new();
    for item in numbered_items(section) {
        let number = item.split('.').next().unwrap_or_default();
        let Some((_, tests)) = item.split_once("*Test: ") else {
            findings.push(Finding::new(DOCUMENT, format!("invariant {number} names no test")));
            continue;
        };
        for name in tests.split('`').skip(1).step_by(2).filter(|name| !exists(name, sources)) {
            let text = format!("invariant {number} names `{name}`, which does not exist");
            findings.push(Finding::new(DOCUMENT, text));
        }
    }
    findings
}

fn numbered_items(section: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for line in section.lines() {
        if line.starts_with(|c: char| c.is_ascii_digit()) {
            items.push(line.to_owned());
        } else if let Some(item) = items.last_mut().filter(|_| line.starts_with(' ')) {
            item.push_str(line);
        }
    }
    items
}

fn exists(name: &str, sources: &Sources) -> bool {
    let function = format!("fn {}(", name.rsplit("::").next().unwrap_or(name));
    let command = name.starts_with("cargo xtask ");
    command
        || tree::root().join(name).exists()
        || sources.rust().any(|source| source.text.contains(&function))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_variables_are_found() {
        assert_eq!(links_in("see [a](docs/a.md) and [b](#b)"), ["docs/a.md", "#b"]);
        assert_eq!(variables_in("env(\"BANGER_DATA_DIR\") BANGER_*"), ["BANGER_DATA_DIR"]);
    }

    #[test]
    fn an_item_goes_on_in_indented_lines() {
        let section = "Invariants\n1. one\n   *Test: `a`*\n2. two\n\ntext\n";
        assert_eq!(numbered_items(section), ["1. one   *Test: `a`*", "2. two"]);
    }
}
