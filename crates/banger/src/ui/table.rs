//! Lists as tables, single things as aligned fields.

use comfy_table::{ContentArrangement, Table, presets};

use super::message::clean;

/// A thing that can stand in a table.
pub trait Row {
    /// The columns' titles.
    const HEADERS: &'static [&'static str];

    /// Its name, which is all that `-q` shows.
    fn name(&self) -> &str;

    /// Its cells, one per title.
    fn cells(&self) -> Vec<String>;
}

/// A table with titles, also when it is empty: an empty answer is an answer.
pub fn render<T: Row>(rows: &[T]) -> String {
    let mut table = plain_table();
    table.set_header(T::HEADERS);
    for row in rows {
        table.add_row(row.cells().iter().map(|cell| clean(cell).replace(['\n', '\t'], " ")));
    }
    lines(&table)
}

/// One field per line, values aligned; further lines of a value under its first. Fields without a
/// value are left out.
pub fn fields(fields: &[(&str, String)]) -> String {
    let mut table = plain_table();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([format!("{name}:"), clean(value)]);
    }
    lines(&table)
}

fn plain_table() -> Table {
    let mut table = Table::new();
    // Cells are never wrapped: a narrow terminal wraps lines by itself, and `grep` needs them whole.
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn lines(table: &Table) -> String {
    let mut text = String::new();
    for line in table.to_string().lines() {
        // The preset puts a space before the first column.
        text.push_str(line.strip_prefix(' ').unwrap_or(line).trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pair(&'static str, &'static str);

    impl Row for Pair {
        const HEADERS: &'static [&'static str] = &["NAME", "STATE"];

        fn name(&self) -> &str {
            self.0
        }

        fn cells(&self) -> Vec<String> {
            vec![self.0.to_owned(), self.1.to_owned()]
        }
    }

    #[test]
    fn columns_are_aligned_and_clean() {
        let rows = [Pair("brave-otter-7", "running"), Pair("web", "fail\x1b[2Jed\nx")];
        insta::assert_snapshot!(render(&rows), @r"
        NAME           STATE
        brave-otter-7  running
        web            fail[2Jed x
        ");
        insta::assert_snapshot!(render::<Pair>(&[]), @"NAME  STATE");
    }

    #[test]
    fn fields_are_aligned() {
        let shown = fields(&[
            ("Name", "web".into()),
            ("User", String::new()),
            ("Labels", "a=b\nc=d".into()),
        ]);
        insta::assert_snapshot!(shown, @r"
        Name:    web
        Labels:  a=b
                 c=d
        ");
    }
}
