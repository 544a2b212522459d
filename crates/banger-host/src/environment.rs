//! The environment variables that commands in a guest shall see.
//!
//! `docs/environment.md` lists every variable that banger reads, here and in [`crate::paths`].

use std::collections::BTreeMap;

/// Proxy variables; each also exists in capitals.
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"];

/// The value of a variable; None if it is not set, or not UTF-8.
#[must_use]
pub fn get(name: &str) -> Option<String> {
    #[allow(clippy::disallowed_methods, reason = "this crate reads the environment for all others")]
    std::env::var(name).ok()
}

/// The proxy variables that are set, as they are spelled.
#[must_use]
pub fn proxies() -> BTreeMap<String, String> {
    PROXIES
        .iter()
        .flat_map(|name| [(*name).to_owned(), name.to_uppercase()])
        .filter_map(|name| get(&name).filter(|value| !value.is_empty()).map(|value| (name, value)))
        .collect()
}

/// What a command needs to know to use the terminal: its type, its colours, the language.
#[must_use]
pub fn of_the_terminal() -> BTreeMap<String, String> {
    #[allow(clippy::disallowed_methods, reason = "this crate reads the environment for all others")]
    let all = std::env::vars_os();
    all.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| is_of_the_terminal(name) && !value.is_empty())
        .collect()
}

fn is_of_the_terminal(name: &str) -> bool {
    matches!(name, "TERM" | "COLORTERM" | "LANG") || name.starts_with("LC_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_terminal_needs_goes_along() {
        for name in ["TERM", "COLORTERM", "LANG", "LC_ALL", "LC_CTYPE"] {
            assert!(is_of_the_terminal(name), "{name}");
        }
        for name in ["HOME", "PATH", "AWS_SECRET_ACCESS_KEY", "TERMINFO", "lc_all"] {
            assert!(!is_of_the_terminal(name), "{name}");
        }
    }
}
