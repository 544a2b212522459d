//! The text of the tree, read once.

use std::path::Path;

use crate::failure::{ChoreFailure, on_file};
use crate::tree;

/// One text file.
#[derive(Debug)]
pub struct Source {
    /// Where it is, relative to the repository.
    pub path: String,
    /// What is in it.
    pub text: String,
}

/// All text files of the repository.
#[derive(Debug)]
pub struct Sources {
    files: Vec<Source>,
}

impl Sources {
    /// Reads the tree; files that are not text are left out.
    ///
    /// # Errors
    /// If the tree cannot be listed or a file not be read.
    pub fn read() -> Result<Self, ChoreFailure> {
        let mut files = Vec::new();
        for path in tree::files()? {
            let full = tree::root().join(&path);
            let bytes = std::fs::read(&full).map_err(on_file("read", &full))?;
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(Source { path: path.to_string_lossy().into_owned(), text });
            }
        }
        Ok(Self { files })
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Source> {
        self.files.iter()
    }

    /// Rust files.
    pub fn rust(&self) -> impl Iterator<Item = &Source> {
        self.all().filter(|source| has_extension(&source.path, "rs"))
    }

    /// Markdown files.
    pub fn markdown(&self) -> impl Iterator<Item = &Source> {
        self.all().filter(|source| has_extension(&source.path, "md"))
    }

    /// The text of one file.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.all().find(|source| source.path == path).map(|source| source.text.as_str())
    }
}

impl Source {
    /// Whether the whole file is test code.
    pub fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.contains("/tests/")
            || self.path.contains("/examples/")
            || self.path.ends_with("tests.rs")
    }

    /// The lines that are compiled into a program, with their numbers: everything before the
    /// module of unit tests, which the style puts last.
    pub fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let test = self.is_test();
        self.text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
            .take_while(move |(_, line)| !test && !line.starts_with("#[cfg(test)]"))
    }
}

/// The line without its comment. A `//` inside a string ends the line too early; clippy.toml, which
/// parses properly, keeps the same doors.
pub fn code_of(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}
