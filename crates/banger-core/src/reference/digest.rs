//! Digests: names that are computed from what they name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const PREFIX: &str = "sha256:";

/// The sha256 of some bytes, `sha256:<64 lower-case hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// It is one, of a kind that nobody uses.
    #[error("digests of the kind {algorithm} are not supported, only sha256")]
    Algorithm {
        /// Which kind.
        algorithm: String,
    },
    /// It is none.
    #[error("{text:?} is not a digest: that is sha256: and 64 lower-case hex digits")]
    Form {
        /// What it is.
        text: String,
    },
}

impl Digest {
    /// Reads a digest.
    ///
    /// # Errors
    /// [`DigestError`] if it is none, or not of sha256.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let form = || DigestError::Form { text: text.to_owned() };
        let (algorithm, hex) = text.split_once(':').ok_or_else(form)?;
        let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let known = matches!(algorithm, "sha384" | "sha512" | "blake3");
        if known && hex.bytes().all(is_hex) {
            return Err(DigestError::Algorithm { algorithm: algorithm.to_owned() });
        }
        if algorithm != "sha256" || hex.len() != 64 || !hex.bytes().all(is_hex) {
            return Err(form());
        }
        Ok(Self(text.to_owned()))
    }

    /// The digest that a sha256 sum makes.
    #[must_use]
    pub fn of_sum(sum: [u8; 32]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
        let hex = sum.into_iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
        Self(PREFIX.chars().chain(hex).collect())
    }

    /// `sha256:<hex>`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hex digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }

    /// The first twelve hex digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read() {
        let hex = "0123456789abcdef".repeat(4);
        let digest = Digest::parse(&format!("sha256:{hex}")).expect("a digest");
        assert_eq!((digest.hex(), digest.short()), (&*hex, "0123456789ab"));
        let sum = std::array::from_fn(|i| [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef][i % 8]);
        assert_eq!(Digest::of_sum(sum), digest);
        for text in [
            String::new(),
            hex.clone(),
            format!("sha256-{hex}"),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{hex}0"),
            format!("sha256:{}", &hex[1..]),
            format!("md5:{hex}"),
            "sha256:".to_owned(),
        ] {
            assert_eq!(Digest::parse(&text), Err(DigestError::Form { text: text.clone() }));
        }
        let error = Digest::parse(&format!("sha512:{hex}{hex}")).expect_err("not supported");
        assert_eq!(error.to_string(), "digests of the kind sha512 are not supported, only sha256");
    }
}
