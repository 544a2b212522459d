//! Names of VMs: which ones are allowed, and how one is made up.
//!
//! A name is also the guest's host name, so the rule is that of a DNS label:
//! `[a-z0-9][a-z0-9-]{0,62}`.

/// Longest name, in bytes; the longest DNS label.
pub const MAX_LENGTH: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no characters.
    #[error("a name cannot be empty")]
    Empty,
    /// It is longer than [`MAX_LENGTH`].
    #[error("a name has at most {MAX_LENGTH} characters, this one has {length}")]
    TooLong {
        /// Its length in characters.
        length: usize,
    },
    /// It begins with a hyphen.
    #[error("a name begins with a letter or a digit")]
    BadStart,
    /// It contains something else than lower-case letters, digits and hyphens.
    #[error("a name has only lower-case letters, digits and hyphens, not {found:?}")]
    BadCharacter {
        /// The first character that is not allowed.
        found: char,
    },
}

/// Checks a name.
///
/// # Errors
/// [`NameError`] with the first rule that the text breaks.
pub fn validate(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if let Some(found) = name.chars().find(|c| !is_allowed(*c)) {
        return Err(NameError::BadCharacter { found });
    }
    if name.starts_with('-') {
        return Err(NameError::BadStart);
    }
    if name.len() > MAX_LENGTH {
        return Err(NameError::TooLong { length: name.len() });
    }
    Ok(())
}

/// The nearest valid name to a text that is not one, for a hint; None if nothing is left of it.
#[must_use]
pub fn mend(text: &str) -> Option<String> {
    let mut name = String::new();
    for c in text.to_lowercase().chars() {
        match c {
            c if is_allowed(c) && c != '-' => name.push(c),
            _ if name.is_empty() || name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    name.truncate(MAX_LENGTH);
    let name = name.trim_end_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

/// A name for people, two words and a number: `brave-otter-7`. The same seed gives the same name;
/// neighbouring seeds give names that have nothing in common.
#[must_use]
pub fn generate(seed: u64) -> String {
    let bits = mix(seed);
    let adjective = pick(&ADJECTIVES, bits);
    let animal = pick(&ANIMALS, bits >> 16);
    let number = 1 + (bits >> 32) % 99;
    format!("{adjective}-{animal}-{number}")
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}

fn pick<'a>(words: &[&'a str; 64], bits: u64) -> &'a str {
    // Six bits always fit a usize.
    words[usize::try_from(bits & 63).unwrap_or(0)]
}

/// The finaliser of splitmix64: every bit of the result depends on every bit of the seed.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[rustfmt::skip]
const ADJECTIVES: [&str; 64] = [
    "able", "agile", "amber", "apt", "bold", "brave", "bright", "brisk",
    "calm", "candid", "clear", "clever", "cosy", "crisp", "daring", "deft",
    "eager", "early", "easy", "fair", "fleet", "fond", "frank", "free",
    "gentle", "glad", "golden", "grand", "happy", "hardy", "honest", "humble",
    "jolly", "keen", "kind", "lively", "loyal", "lucid", "lucky", "mellow",
    "merry", "mild", "modest", "neat", "nimble", "noble", "patient", "plain",
    "proud", "quick", "quiet", "rapid", "ready", "serene", "sharp", "silent",
    "sleek", "smart", "snug", "steady", "sunny", "swift", "vivid", "witty",
];

#[rustfmt::skip]
const ANIMALS: [&str; 64] = [
    "ant", "badger", "bat", "bear", "beaver", "bee", "bison", "carp",
    "cat", "cod", "crab", "crane", "crow", "deer", "dog", "dove",
    "duck", "eagle", "eel", "elk", "falcon", "ferret", "finch", "fox",
    "frog", "gecko", "goat", "goose", "hare", "hawk", "heron", "horse",
    "ibis", "jay", "koala", "lark", "lemur", "lion", "llama", "lynx",
    "magpie", "mole", "moose", "moth", "newt", "otter", "owl", "panda",
    "perch", "pike", "puffin", "quail", "rabbit", "raven", "robin", "seal",
    "shrew", "stork", "swan", "tiger", "toad", "trout", "wolf", "wren",
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_dns_labels() {
        let long = "a".repeat(63);
        let too_long = "a".repeat(64);
        let cases = [
            ("web", Ok(())),
            ("7", Ok(())),
            ("brave-otter-7", Ok(())),
            (&*long, Ok(())),
            (&*too_long, Err(NameError::TooLong { length: 64 })),
            ("", Err(NameError::Empty)),
            ("-web", Err(NameError::BadStart)),
            ("Web", Err(NameError::BadCharacter { found: 'W' })),
            ("my vm", Err(NameError::BadCharacter { found: ' ' })),
            ("../etc", Err(NameError::BadCharacter { found: '.' })),
            ("naïve", Err(NameError::BadCharacter { found: 'ï' })),
            ("a\n", Err(NameError::BadCharacter { found: '\n' })),
        ];
        for (name, want) in cases {
            assert_eq!(validate(name), want, "{name:?}");
        }
    }

    #[test]
    fn bad_names_are_mended() {
        let cases = [
            ("My VM", Some("my-vm")),
            ("--web--", Some("web")),
            ("a_b.c", Some("a-b-c")),
            ("", None),
            ("...", None),
        ];
        for (text, want) in cases {
            assert_eq!(mend(text).as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn a_seed_always_gives_the_same_name() {
        assert_eq!(generate(0), generate(0));
        assert_ne!(generate(0), generate(1));
    }

    proptest! {
        #[test]
        fn generated_names_are_valid(seed: u64) {
            prop_assert_eq!(validate(&generate(seed)), Ok(()));
        }

        #[test]
        fn mended_names_are_valid(text: String) {
            if let Some(name) = mend(&text) {
                prop_assert_eq!(validate(&name), Ok(()));
            }
        }
    }
}
