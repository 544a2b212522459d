//! Everything that banger prints. The rule: data goes to stdout, all else to stderr.
//!
//! Nothing here needs colour to be understood. Text that may come from a guest loses its control
//! characters before it reaches a terminal.

mod marks;
mod message;
mod progress;
mod table;

use std::io::{self, BufRead, ErrorKind, IsTerminal, Write};

use banger_api::trace::Mark;
use banger_api::{ErrorCode, Problem};
use banger_host::process::limit_hint;
use serde::Serialize;

use crate::args::{Format, OutputArgs};
use crate::failure::Failure;

pub use progress::Stages;
pub use table::Row;
#[cfg(test)]
pub use table::{fields as render_fields, render as render_table};

/// Exit code of a Unix tool whose reader went away: 128 + SIGPIPE.
pub const BROKEN_PIPE_EXIT: u8 = 141;

/// Where and how to print.
#[derive(Debug)]
pub struct Ui {
    format: Format,
    quiet: bool,
    progress: bool,
}

impl Ui {
    /// What the options ask for.
    pub fn new(options: &OutputArgs) -> Self {
        Self { format: options.format, quiet: options.quiet, progress: !options.no_progress }
    }

    /// A display for work that nobody needs to see.
    pub fn silent() -> Self {
        Self { format: Format::Table, quiet: true, progress: false }
    }

    /// Whether programs read the output.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether a person reads stderr.
    pub fn has_reader(&self) -> bool {
        self.shows_notes() && io::stderr().is_terminal()
    }

    /// A line of data.
    pub fn line(&self, text: &str) -> Result<(), Failure> {
        write_data(&format!("{text}\n"))
    }

    /// Lines of data.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        write_data(text)
    }

    /// Data as it is, control characters included.
    pub fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(|error| output_failure(&error))
    }

    /// An object as one line of JSON.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::internal("cannot write the result as JSON", &error))?;
        write_data(&format!("{text}\n"))
    }

    /// A list: a table, one JSON object per line, or, if quiet, one name per line.
    pub fn list<T: Row + Serialize>(&self, rows: &[T]) -> Result<(), Failure> {
        if self.is_json() {
            return rows.iter().try_for_each(|row| self.json(row));
        }
        let text = if self.quiet {
            rows.iter().map(|row| format!("{}\n", row.name())).collect()
        } else {
            table::render(rows)
        };
        write_data(&text)
    }

    /// One thing: a summary for people, or one JSON object.
    pub fn show<T: Serialize>(&self, value: &T, fields: &[(&str, String)]) -> Result<(), Failure> {
        if self.is_json() { self.json(value) } else { write_data(&table::fields(fields)) }
    }

    /// That something was done to what has this name: the name, or the JSON object if there is one.
    pub fn done<T: Serialize>(&self, name: &str, value: Option<&T>) -> Result<(), Failure> {
        match value {
            Some(value) if self.is_json() => self.json(value),
            None if self.is_json() => self.json(&serde_json::json!({ "name": name })),
            _ => self.line(name),
        }
    }

    /// Whether [`Ui::note`] shows anything.
    pub fn shows_notes(&self) -> bool {
        !self.quiet && !self.is_json()
    }

    /// Something worth knowing that is not what was asked for.
    pub fn note(&self, text: &str) {
        if self.shows_notes() {
            write_message(&format!("{}\n", message::clean(text)));
        }
    }

    /// Something that should be looked at although it worked.
    pub fn warning(&self, text: &str) {
        if !self.quiet {
            write_message(&message::warning(text));
        }
    }

    /// Where the time went, if that was asked for. Not on stdout, which is the command's.
    pub fn marks(&self, marks: &[Mark]) {
        match marks {
            [] => {}
            marks if self.is_json() => write_message(&marks::as_json(marks)),
            marks => write_message(&marks::as_table(marks)),
        }
    }

    /// A failure: for people, or as JSON on one line.
    pub fn problem(&self, problem: &Problem) {
        match serde_json::to_string(problem) {
            Ok(text) if self.is_json() => write_message(&format!("{text}\n")),
            _ => write_message(&message::problem(problem)),
        }
    }

    /// A display of progress that suits stderr.
    pub fn stages(&self) -> Stages {
        Stages::new(!self.shows_notes(), self.progress && io::stderr().is_terminal())
    }

    /// Asks a person yes or no. Without a terminal nobody can be asked.
    pub fn confirm(&self, question: &str) -> Result<bool, Failure> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            let problem =
                Problem::new(ErrorCode::InvalidArgument, "nobody is there to confirm this");
            return Err(problem.hint("add --yes, or --dry-run to see what would happen").into());
        }
        write_message(&format!("{question} [y/N] "));
        let mut answer = String::new();
        let _ = io::stdin().lock().read_line(&mut answer);
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }
}

fn write_data(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| output_failure(&error))
}

/// What clap says about a command line: help on stdout, complaints on stderr in our own words.
pub fn usage(error: &clap::Error) {
    let text = error.render().ansi().to_string();
    if error.use_stderr() {
        write_message(
            &text
                .replace("\n  tip: ", "\nhint: ")
                .replace("\n  \u{1b}[32mtip:", "\n\u{1b}[32mhint:"),
        );
    } else {
        // A reader that goes away in the middle of a help text has seen enough.
        let _ = write_data(&text);
    }
}

/// Nobody can be told when even this fails.
fn write_message(text: &str) {
    let _ = anstream::stderr().lock().write_all(text.as_bytes());
}

/// A reader that went away ends the program quietly, as it ends any Unix tool.
pub fn output_failure(error: &io::Error) -> Failure {
    if error.kind() == ErrorKind::BrokenPipe {
        return Failure::Quiet(BROKEN_PIPE_EXIT);
    }
    let failure = Failure::internal("cannot write to standard output", error);
    match limit_hint(error) {
        Some(hint) => failure.or_hint(hint),
        None => failure,
    }
}
