//! Identities of VMs, and how a person's word for one becomes one.
//!
//! An id is 12 lower-case hex digits from 6 random bytes. Everything on disk that belongs to a VM is
//! named after its id, never after its name. People may use the name, the id, or the beginning of
//! the id where only one VM's begins so.

use std::fmt;

/// How many random bytes an id is made of.
pub const ID_BYTES: usize = 6;
/// How many hex digits an id has.
pub const ID_DIGITS: usize = ID_BYTES * 2;

/// The identity of a VM or of an operation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(String);

impl Id {
    /// The id that these random bytes make.
    #[must_use]
    pub fn from_bytes(bytes: [u8; ID_BYTES]) -> Self {
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Reads an id; None if it is not exactly one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == ID_DIGITS && is_id_prefix(text)).then(|| Self(text.to_owned()))
    }

    /// The hex digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<std::path::Path> for Id {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

/// Why a word names no VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Neither a name nor the beginning of an id.
    #[error("no VM is called {wanted:?}")]
    NotFound {
        /// The word.
        wanted: String,
    },
    /// More than one id begins so.
    #[error("more than one VM's id begins with {wanted:?}")]
    Ambiguous {
        /// The word.
        wanted: String,
        /// The names of those VMs, sorted.
        names: Vec<String>,
    },
}

/// Finds the one VM that `wanted` means among pairs of id and name. A name wins over an id, so that
/// a VM that is called like the beginning of another's id can still be reached.
///
/// # Errors
/// [`ResolveError`] if there is none, or more than one.
pub fn resolve<'a>(
    wanted: &str,
    vms: impl Iterator<Item = (&'a Id, &'a str)>,
) -> Result<&'a Id, ResolveError> {
    let mut by_prefix: Vec<(&Id, &str)> = Vec::new();
    for (id, name) in vms {
        if name == wanted {
            return Ok(id);
        }
        if is_id_prefix(wanted) && id.as_str().starts_with(wanted) {
            by_prefix.push((id, name));
        }
    }
    match by_prefix.as_slice() {
        [] => Err(ResolveError::NotFound { wanted: wanted.to_owned() }),
        [(id, _)] => Ok(id),
        several => {
            let mut names: Vec<String> =
                several.iter().map(|(_, name)| (*name).to_owned()).collect();
            names.sort();
            Err(ResolveError::Ambiguous { wanted: wanted.to_owned(), names })
        }
    }
}

fn is_id_prefix(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= ID_DIGITS
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Id {
        Id::parse(text).expect("a test's id")
    }

    #[test]
    fn an_id_is_twelve_hex_digits() {
        assert_eq!(Id::from_bytes([0, 1, 2, 0xab, 0xff, 9]).as_str(), "000102abff09");
        for bad in
            ["", "000102abff0", "000102abff099", "000102ABFF09", "000102abff0g", "../../../etc"]
        {
            assert_eq!(Id::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_ids_and_unique_beginnings_are_found() {
        let vms = [
            (id("aaaaaaaaaaaa"), "web"),
            (id("aabbbbbbbbbb"), "aab"),
            (id("aaccccccaaaa"), "db"),
            (id("cccccccccccc"), "aabb"),
        ];
        let find = |wanted: &str| {
            resolve(wanted, vms.iter().map(|(id, name)| (id, *name)))
                .map(|id| id.as_str().to_owned())
        };
        assert_eq!(find("web").as_deref(), Ok("aaaaaaaaaaaa"));
        assert_eq!(find("aaaaaaaaaaaa").as_deref(), Ok("aaaaaaaaaaaa"));
        assert_eq!(find("aaa").as_deref(), Ok("aaaaaaaaaaaa"));
        assert_eq!(find("aab").as_deref(), Ok("aabbbbbbbbbb"), "the name and the id agree");
        assert_eq!(find("aabb").as_deref(), Ok("cccccccccccc"), "the name wins");
        assert_eq!(
            find("aa"),
            Err(ResolveError::Ambiguous {
                wanted: "aa".into(),
                names: vec!["aab".into(), "db".into(), "web".into()]
            })
        );
        for unknown in ["", "x", "AAA", "aaaaaaaaaaaaa"] {
            assert_eq!(find(unknown), Err(ResolveError::NotFound { wanted: unknown.into() }));
        }
    }
}
