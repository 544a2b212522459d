//! What somebody may have meant who misspelt a command.
//!
//! clap compares words by their letters whatever their places, and takes `rn` for `kernel`.

use std::ffi::OsString;

use banger_core::suggest;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};

/// How many commands are suggested at most.
const MOST: usize = 2;

/// The same complaint with the nearest commands instead of clap's.
pub fn improve(mut error: Error, root: &Command, line: &[OsString]) -> Error {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return error;
    };
    if error.kind() != ErrorKind::InvalidSubcommand {
        return error;
    }
    let near = nearest(word, level(root, line, word));
    if near.is_empty() {
        error.remove(ContextKind::SuggestedSubcommand);
    } else {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(near));
    }
    error
}

/// The command below which the word was looked for.
fn level<'a>(root: &'a Command, line: &[OsString], word: &str) -> &'a Command {
    let words = line.iter().skip(1).map_while(|given| given.to_str().filter(|it| *it != word));
    words.fold(root, |level, word| level.find_subcommand(word).unwrap_or(level))
}

fn nearest(word: &str, level: &Command) -> Vec<String> {
    let visible = level.get_subcommands().filter(|sub| !sub.is_hide_set());
    let mut left: Vec<&str> = visible
        .flat_map(|sub| std::iter::once(sub.get_name()).chain(sub.get_visible_aliases()))
        .collect();
    let mut near = Vec::new();
    while let Some(found) =
        suggest::nearest(word, left.iter().copied()).filter(|_| near.len() < MOST)
    {
        left.retain(|other| *other != found);
        near.push(found.to_owned());
    }
    near
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::{CommandFactory, Parser};

    fn complaint(line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(Into::into).collect();
        let error = Cli::try_parse_from(&words).expect_err("it makes no sense");
        improve(error, &Cli::command(), &words).to_string()
    }

    #[test]
    fn the_nearest_commands_are_suggested() {
        let cases = [
            ("banger rn", "'run', 'rm'"),
            ("banger strat web", "'start'"),
            ("banger imge ls", "'image'"),
            ("banger image pul x", "'pull'"),
            ("banger --quiet image lss", "'ls'"),
            ("banger vm stpo x", "'stop'"),
        ];
        for (line, want) in cases {
            let text = complaint(line);
            assert!(text.contains(want), "{line}: {text}");
        }
    }

    #[test]
    fn what_is_like_nothing_gets_no_suggestion() {
        assert!(!complaint("banger frobnicate").contains("tip:"));
        // Other complaints stay as they are.
        assert!(complaint("banger run --nmae x").contains("--name"));
    }
}
