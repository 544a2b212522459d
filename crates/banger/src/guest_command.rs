//! Where banger's own command line ends and the guest's begins.

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
