//! What is said on stderr: `error: …`, `caused by: …`, `hint: …`, `warning: …`.

use banger_api::Problem;
use owo_colors::OwoColorize;

/// A failure as a person reads it. The styles are left out by the stream where they cannot be shown.
pub fn problem(problem: &Problem) -> String {
    let mut text = format!("{} {}\n", "error:".red().bold(), clean(&problem.title));
    for cause in &problem.causes {
        text.push_str(&format!("{} {}\n", "caused by:".red(), indented(cause)));
    }
    if let Some(hint) = &problem.hint {
        text.push_str(&self::hint(hint));
    }
    text
}

/// What to type next.
pub fn hint(text: &str) -> String {
    format!("{} {}\n", "hint:".cyan().bold(), indented(text))
}

/// A warning as a person reads it.
pub fn warning(text: &str) -> String {
    format!("{} {}\n", "warning:".yellow().bold(), indented(text))
}

/// The text without control characters, which could come from a guest and move a cursor.
pub fn clean(text: &str) -> String {
    text.trim_end().chars().filter(|c| *c == '\n' || *c == '\t' || !c.is_control()).collect()
}

/// The same, with further lines set off from what follows.
fn indented(text: &str) -> String {
    clean(text).replace('\n', "\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_api::ErrorCode;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_failure_says_what_because_of_what_and_what_to_type() {
        let full = Problem::new(ErrorCode::PullFailed, "cannot pull the image debian-bookworm")
            .cause("mmdebstrap ended with exit status 1:\nE: no such suite")
            .cause("E: \x1b[31mred\x1b[0m\r")
            .hint("banger doctor");
        insta::assert_snapshot!(plain(&problem(&full)), @r"
        error: cannot pull the image debian-bookworm
        caused by: mmdebstrap ended with exit status 1:
            E: no such suite
        caused by: E: [31mred[0m
        hint: banger doctor
        ");
        let bare = Problem::new(ErrorCode::VmNotFound, "no VM is called web");
        insta::assert_snapshot!(plain(&problem(&bare)), @"error: no VM is called web");
    }

    #[test]
    fn a_warning_is_one() {
        insta::assert_snapshot!(plain(&warning("old\nimage")), @r"
        warning: old
            image
        ");
    }
}
