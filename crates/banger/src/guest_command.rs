//! Where banger's own command line ends and the guest's begins.

use banger_api::ErrorCode;

use crate::failure::Failure;

/// The image and the command of `banger run [IMAGE] [[--] CMD…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestCommand {
    /// None takes the default image.
    pub image: Option<String>,
    /// Empty: a shell.
    pub command: Vec<String>,
    /// Whether `--` marked the command, so that the first word cannot have been meant as one.
    pub marked: bool,
}

impl GuestCommand {
    /// `banger run ls /` takes `ls` for an image. Where there is no such image, or none can be asked
    /// for, the words may all have been meant as a command, and the hint says how to write that.
    pub fn hint_at_marker(&self, failure: Failure, verb: &str) -> Failure {
        let Failure::Problem(mut problem) = failure else { return failure };
        let Some(word) = self.image.as_deref().filter(|word| !self.marked && may_be_program(word))
        else {
            return Failure::Problem(problem);
        };
        let words = [&[word.to_owned()], &*self.command].concat().join(" ");
        let ours = format!("banger {verb} -- {words}  # to run it in the default image");
        let is_near = problem.hint.as_ref().is_some_and(|hint| hint.contains("did you mean"));
        match problem.code {
            ErrorCode::ImageNotFound if !is_near => problem.hint = Some(ours),
            ErrorCode::RegistryDenied | ErrorCode::RegistryUnavailable => {
                let theirs =
                    problem.hint.take().map(|hint| format!("{hint}\n")).unwrap_or_default();
                problem.hint = Some(theirs + &ours);
            }
            // No image is called `./serve`.
            ErrorCode::InvalidArgument if is_path(word) => {
                let is_general = |hint: &String| hint == "banger image catalog";
                if problem.hint.as_ref().is_none_or(is_general) {
                    problem.hint = Some(ours);
                }
            }
            _ => {}
        }
        Failure::Problem(problem)
    }
}

/// Whether a word that was taken for an image can be the name of a program.
fn may_be_program(word: &str) -> bool {
    is_path(word) || !word.contains(['/', ':', '@'])
}

fn is_path(word: &str) -> bool {
    word.starts_with(['/', '.'])
}

/// Splits what follows the options of `run`. `words` is the end of the command line, and
/// `escaped` tells whether a `--` stood right before it. An image given by option leaves all words
/// to the command.
///
/// ```text
/// run                    default image, shell
/// run IMAGE              shell
/// run IMAGE CMD…         CMD
/// run IMAGE -- CMD…      CMD
/// run -- CMD…            default image, CMD
/// ```
pub fn split(image: Option<&str>, words: &[String], escaped: bool) -> GuestCommand {
    if escaped || image.is_some() {
        let image = image.map(str::to_owned);
        return GuestCommand { image, command: words.to_vec(), marked: true };
    }
    let Some((image, rest)) = words.split_first() else {
        return GuestCommand { image: None, command: Vec::new(), marked: false };
    };
    let marked = rest.first().is_some_and(|word| word == "--");
    let command = if marked { &rest[1..] } else { rest };
    GuestCommand { image: Some(image.clone()), command: command.to_vec(), marked }
}

/// Whether the last `count` words of this process's command line follow a `--`.
pub fn is_escaped(command_line: &[std::ffi::OsString], count: usize) -> bool {
    let before = command_line.len().checked_sub(count + 1);
    before.is_some_and(|at| at > 0 && command_line[at] == "--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        let cases: [(&str, bool, Option<&str>, &str); 8] = [
            ("", false, None, ""),
            ("", true, None, ""),
            ("debian", false, Some("debian"), ""),
            ("debian ls /", false, Some("debian"), "ls /"),
            ("debian -- ls -l", false, Some("debian"), "ls -l"),
            ("make test", true, None, "make test"),
            ("debian sh -- x", false, Some("debian"), "sh -- x"),
            ("-- ls", true, None, "-- ls"),
        ];
        for (text, escaped, image, command) in cases {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            let found = split(None, &words, escaped);
            assert_eq!(found.image.as_deref(), image, "{text:?}");
            assert_eq!(found.command.join(" "), command, "{text:?}");
        }
    }

    #[test]
    fn an_image_by_option_leaves_all_words_to_the_command() {
        let words = ["ls".to_owned(), "/".to_owned()];
        for escaped in [false, true] {
            let found = split(Some("debian"), &words, escaped);
            assert_eq!(found.image.as_deref(), Some("debian"));
            assert_eq!(found.command, words);
        }
    }

    #[test]
    fn a_command_that_was_taken_for_an_image_is_hinted_at() {
        use banger_api::Problem;

        let hint = |line: &str, code, hint: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let what = split(None, &words, false);
            let failure = what.hint_at_marker(Problem::new(code, "x").hint(hint).into(), "run");
            let Failure::Problem(problem) = failure else { panic!("something to tell") };
            problem.hint.unwrap_or_default()
        };
        let (missing, denied) = (ErrorCode::ImageNotFound, ErrorCode::RegistryDenied);
        let marker = "banger run -- ls /  # to run it in the default image";
        let near = "did you mean debian-bookworm?";
        assert_eq!(hint("ls /", missing, "banger image catalog"), marker);
        assert_eq!(hint("debian-bokworm ls", missing, near), near);
        assert_eq!(hint("nope -- ls", missing, "theirs"), "theirs");
        assert_eq!(hint("ls /", ErrorCode::PullFailed, "theirs"), "theirs");
        assert_eq!(hint("ls /", denied, "theirs"), format!("theirs\n{marker}"));
        assert_eq!(hint("ls /", ErrorCode::RegistryUnavailable, "x"), format!("x\n{marker}"));
        for image in ["localhost:5000/x", "team/app", "alpine:3.20", "x@sha256:aa"] {
            assert_eq!(hint(&format!("{image} ls"), denied, "theirs"), "theirs", "{image}");
        }
        let invalid = ErrorCode::InvalidArgument;
        assert_eq!(hint("./serve", invalid, "theirs"), "theirs");
        assert_eq!(hint("ls", invalid, "theirs"), "theirs");
        assert!(
            hint("/bin/ls", invalid, "banger image catalog").starts_with("banger run -- /bin/ls")
        );
        assert!(
            hint("./serve -p 80", missing, "theirs").starts_with("banger run -- ./serve -p 80")
        );
    }

    #[test]
    fn the_escape_is_found_in_the_command_line() {
        let cases = [
            ("banger run -- make test", 2, true),
            ("banger run --rm -- make", 1, true),
            ("banger run debian -- make", 3, false),
            ("banger run", 0, false),
            ("banger run --", 0, true),
        ];
        for (line, count, want) in cases {
            let words: Vec<_> = line.split(' ').map(Into::into).collect();
            assert_eq!(is_escaped(&words, count), want, "{line}");
        }
    }
}
