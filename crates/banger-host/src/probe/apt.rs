//! Whether apt has a source of packages.

use std::fs;
use std::path::Path;

/// Whether a file below apt's directory names a source, in either format.
pub(super) fn has_source(dir: &Path) -> bool {
    let parts = fs::read_dir(dir.join("sources.list.d")).into_iter().flatten().flatten();
    let files = parts.map(|entry| entry.path()).chain([dir.join("sources.list")]);
    files.into_iter().any(|file| {
        fs::read_to_string(&file).is_ok_and(|text| {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("sources") => has_stanza(&text),
                Some("list") => has_line(&text),
                _ => false,
            }
        })
    })
}

/// `deb … suite component`
fn has_line(text: &str) -> bool {
    text.lines().any(|line| line.trim_start().starts_with("deb "))
}

/// `Types: deb` in a paragraph that is not switched off.
fn has_stanza(text: &str) -> bool {
    let has = |paragraph: &str, field: &str, word: &str| {
        paragraph.lines().any(|line| {
            line.split_once(':').is_some_and(|(name, value)| {
                name.eq_ignore_ascii_case(field) && value.split_whitespace().any(|w| w == word)
            })
        })
    };
    text.split("\n\n")
        .any(|paragraph| has(paragraph, "Types", "deb") && !has(paragraph, "Enabled", "no"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_understood() {
        let cases = [
            ("sources.list", "deb file:/mirror bookworm main\n", true),
            ("sources.list", "# deb file:/mirror bookworm main\n", false),
            ("sources.list", "deb-src file:/mirror bookworm main\n", false),
            ("sources.list.d/a.list", " deb [trusted=yes] file:/mirror bookworm main\n", true),
            ("sources.list.d/a.list.save", "deb file:/mirror bookworm main\n", false),
            ("sources.list.d/a.sources", "Types: deb deb-src\nURIs: file:/mirror\n", true),
            ("sources.list.d/a.sources", "Types: deb-src\nURIs: file:/mirror\n", false),
            ("sources.list.d/a.sources", "Enabled: no\nTypes: deb\n", false),
            ("sources.list.d/a.sources", "Enabled: no\nTypes: deb\n\nTypes: deb\n", true),
        ];
        for (file, text, want) in cases {
            let tmp = tempfile::tempdir().expect("a temporary directory");
            fs::create_dir(tmp.path().join("sources.list.d")).expect("writable");
            fs::write(tmp.path().join(file), text).expect("writable");
            assert_eq!(has_source(tmp.path()), want, "{file}: {text}");
        }
        assert!(!has_source(Path::new("/no/such/directory")));
    }
}
