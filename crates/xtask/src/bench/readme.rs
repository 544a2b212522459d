//! The places of README.md that a bench writes.

use crate::failure::{ChoreFailure, on_file};
use crate::tree;

/// Two lines, between which stands what a bench wrote.
pub(super) type Marks = [&'static str; 2];

/// The table of everything.
pub(super) const EVERYTHING: Marks = ["<!-- bench:begin -->\n", "<!-- bench:end -->"];
/// The table of starts beside others'.
pub(super) const INSTANT: Marks = ["<!-- instant:begin -->\n", "<!-- instant:end -->"];

/// Replaces what stands between the marks.
pub(super) fn write(marks: Marks, text: &str) -> Result<(), ChoreFailure> {
    let path = tree::root().join("README.md");
    let before = std::fs::read_to_string(&path).map_err(on_file("read", &path))?;
    let Some(fresh) = replaced(&before, marks, text) else {
        return Err(ChoreFailure::Found("README.md has no place for the table".to_owned()));
    };
    std::fs::write(&path, fresh).map_err(on_file("write", &path))
}

fn replaced(text: &str, marks: Marks, fresh: &str) -> Option<String> {
    let (before, rest) = text.split_once(marks[0])?;
    let (_, after) = rest.split_once(marks[1])?;
    Some([before, marks[0], fresh, marks[1], after].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_replaces_the_one_before() {
        let text = "a\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nb\n";
        let fresh = replaced(text, EVERYTHING, "new\n").unwrap();
        assert_eq!(fresh, "a\n<!-- bench:begin -->\nnew\n<!-- bench:end -->\nb\n");
        assert_eq!(replaced("nothing", EVERYTHING, "new"), None);
    }

    #[test]
    fn there_is_a_place_for_each() {
        let text = std::fs::read_to_string(tree::root().join("README.md")).unwrap();
        for marks in [EVERYTHING, INSTANT] {
            assert!(replaced(&text, marks, "").is_some(), "{marks:?}");
        }
    }
}
