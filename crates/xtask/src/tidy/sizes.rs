//! Files of at most 500 lines, functions of at most 70: a ratchet.
//!
//! What is larger stands in `crates/xtask/tidy-exceptions.toml` with its size and the reason. The
//! size written there may only shrink, and an exception that is no longer needed must go.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Finding;
use super::sources::{Source, Sources};

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;
const EXCEPTIONS: &str = "crates/xtask/tidy-exceptions.toml";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exceptions {
    #[serde(default)]
    large: Vec<Exception>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    /// `path` or `path::function`.
    what: String,
    lines: usize,
    reason: String,
}

pub(super) fn check(sources: &Sources) -> Vec<Finding> {
    let large = sources.rust().filter(|source| !source.is_test()).flat_map(large_parts).collect();
    match toml::from_str(sources.text(EXCEPTIONS).unwrap_or_default()) {
        Ok(exceptions) => compare(large, exceptions),
        Err(error) => vec![Finding::new(EXCEPTIONS, error.to_string())],
    }
}

fn compare(mut large: BTreeMap<String, usize>, exceptions: Exceptions) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Exception { what, lines, reason } in exceptions.large {
        let text = match large.remove(&what) {
            None => format!("{what} is small now; remove its exception"),
            Some(now) if now < lines => format!("{what} has {now} lines now; write that down"),
            Some(now) if now > lines => format!("{what} grew from {lines} to {now} lines"),
            Some(_) if reason.trim().is_empty() => format!("{what} needs a reason"),
            Some(_) => continue,
        };
        findings.push(Finding::new(EXCEPTIONS, text));
    }
    findings.extend(large.into_iter().map(|(what, lines)| {
        let text = format!(
            "{lines} lines; at most {MAX_FILE_LINES} in a file and {MAX_FUNCTION_LINES} in a \
             function: split it"
        );
        Finding::new(what, text)
    }));
    findings
}

/// The file and the functions in it that are too large, with their sizes.
fn large_parts(source: &Source) -> Vec<(String, usize)> {
    let lines: Vec<&str> = source.product_lines().map(|(_, line)| line).collect();
    let mut large = Vec::new();
    if lines.len() > MAX_FILE_LINES {
        large.push((source.path.clone(), lines.len()));
    }
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let size = function_size(&lines[index..]);
        if size > MAX_FUNCTION_LINES {
            large.push((format!("{}::{name}", source.path), size));
        }
    }
    large
}

fn function_name(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let qualifiers = ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe", "extern"];
    let word = words.find(|word| !qualifiers.contains(word) && !word.starts_with('"'))?;
    (word == "fn").then(|| words.next())??.split(['(', '<']).next()
}

/// Lines of code of the function that starts the slice. Counts on rustfmt: the closing brace stands
/// as far right as the `fn`.
fn function_size(lines: &[&str]) -> usize {
    let indent = lines[0].len() - lines[0].trim_start().len();
    let header = lines.iter().position(|line| line.ends_with(['{', '}', ';'])).unwrap_or(0);
    if !lines[header].ends_with('{') {
        return header + 1;
    }
    let closing = format!("{}}}", " ".repeat(indent));
    let end = lines[header..].iter().position(|line| *line == closing).unwrap_or(0);
    let body = &lines[..=header + end];
    body.iter().filter(|line| !line.trim().is_empty() && !line.trim().starts_with("//")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_and_measured_without_comments() {
        assert_eq!(function_name("    pub(crate) async fn go<T>(x: T)"), Some("go"));
        assert_eq!(function_name("    let fn_x = 1;"), None);
        let text =
            ["    fn f(", "        a: u8,", "    ) {", "", "        // why", "        x", "    }"];
        assert_eq!(function_size(&text), 5);
        assert_eq!(function_size(&["fn f();", "fn g() {", "}"]), 1);
    }

    #[test]
    fn the_ratchet_only_goes_down() {
        let exceptions = |lines| Exceptions {
            large: vec![Exception { what: "a".into(), lines, reason: "a table".into() }],
        };
        let large = |lines| BTreeMap::from([("a".to_owned(), lines)]);
        assert!(compare(large(600), exceptions(600)).is_empty());
        assert_eq!(compare(large(601), exceptions(600)).len(), 1);
        assert_eq!(compare(large(599), exceptions(600)).len(), 1);
        assert_eq!(compare(BTreeMap::new(), exceptions(600)).len(), 1);
        assert_eq!(compare(large(600), Exceptions::default()).len(), 1);
    }
}
