//! What the host says on the kernel's command line: nothing that makes a guest one VM or another.

use std::fs;

/// The value of the argument `name`, if the kernel was given one.
pub fn value(name: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    find(&line, name).map(str::to_owned)
}

fn find<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
        .find_map(|(known, value)| (known == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_found_among_others() {
        let cases = [
            ("quiet banger.x=4096 panic=-1", Some("4096")),
            ("banger.x=a=b", Some("a=b")),
            ("xbanger.x=1 banger.xx=2 banger.x", None),
            ("", None),
        ];
        for (line, want) in cases {
            assert_eq!(find(line, "banger.x"), want, "{line}");
        }
    }
}
