//! What can go wrong between us and a registry, and what a person can do about it.

use banger_api::ErrorCode;
use banger_host::command::ToolError;

use crate::blobs::BlobError;
use crate::error::LibraryError;

/// Longest text of a registry that is passed on to a person, in characters.
const MAX_SAID: usize = 200;

/// Why a registry did not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Somebody called it off.
    #[error("it was cancelled")]
    Cancelled,
    /// A file of settings or credentials says nonsense.
    #[error("cannot understand {place}: {reason}")]
    Settings {
        /// The file, with the line where that is known.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A key to check signatures with is none.
    #[error("the key to check signatures with is not usable: {reason}")]
    Key {
        /// What is wrong with it.
        reason: String,
    },
    /// A credential helper failed.
    #[error("the credential helper for {registry} failed")]
    Helper {
        /// The registry that wants credentials.
        registry: String,
        /// What the helper did.
        source: ToolError,
    },
    /// The registry refuses.
    #[error(
        "{registry} refuses access to {what}{}{}",
        if *anonymous { ": it is private, or is not there" } else { ", with these credentials" },
        told(said)
    )]
    Denied {
        /// The registry.
        registry: String,
        /// To what: a repository.
        what: String,
        /// Whether nobody was named who might be allowed.
        anonymous: bool,
        /// What the registry said.
        said: Option<String>,
    },
    /// It does not have it.
    #[error("{registry} has no {what}{}", told(said))]
    NotFound {
        /// The registry.
        registry: String,
        /// What it lacks.
        what: String,
        /// What the registry said.
        said: Option<String>,
    },
    /// The registry cannot be reached, or keeps failing.
    #[error("the registry {registry} cannot be used: {reason}")]
    Unavailable {
        /// The registry.
        registry: String,
        /// What happened.
        reason: String,
        /// What may help.
        remedy: Remedy,
    },
    /// What came is not what it should be.
    #[error("{what} is not usable: {reason}")]
    Invalid {
        /// What came.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image is not for this machine.
    #[error("{what} is not made for {wanted}, only for {}", list(found))]
    NoPlatform {
        /// The image.
        what: String,
        /// What this machine is.
        wanted: String,
        /// What the image is made for.
        found: Vec<String>,
    },
    /// The registry sends other bytes than a digest promises, and does so again.
    #[error("{registry} sends something else than layer {digest}: {reason}")]
    WrongBlob {
        /// The registry.
        registry: String,
        /// The digest.
        digest: String,
        /// How it differs.
        reason: String,
    },
    /// There is no signature, or none of the wanted key.
    #[error("{what} has no signature of this key: {reason}")]
    Signature {
        /// The image.
        what: String,
        /// What there is instead.
        reason: String,
    },
    /// The host's disk cannot hold it.
    #[error("not enough disk space: {needed_mib} MiB are needed, {free_mib} MiB are free")]
    NoRoom {
        /// What is to be fetched.
        needed_mib: u64,
        /// What there is.
        free_mib: u64,
    },
    /// The store's own files failed it.
    #[error(transparent)]
    Library(#[from] LibraryError),
}

/// What may help where a registry cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing that is known.
    None,
    /// It speaks no TLS: to allow that.
    PlainHttp,
    /// Its certificate is not trusted: to name the authority that signed it.
    Authority,
    /// It limits how much strangers may fetch: to log in.
    Login,
    /// Nobody is there under that name: to look at the name.
    Name,
}

impl RegistryError {
    /// The kind of failure.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Cancelled => ErrorCode::Cancelled,
            Self::Settings { .. } | Self::Key { .. } => ErrorCode::InvalidArgument,
            Self::Helper { source, .. } => source.code(ErrorCode::RegistryDenied),
            Self::Denied { .. } => ErrorCode::RegistryDenied,
            Self::NotFound { .. } => ErrorCode::ImageNotFound,
            Self::Unavailable { .. } => ErrorCode::RegistryUnavailable,
            Self::Invalid { .. } | Self::NoPlatform { .. } | Self::WrongBlob { .. } => {
                ErrorCode::ImageInvalid
            }
            Self::Signature { .. } => ErrorCode::SignatureInvalid,
            Self::NoRoom { .. } => ErrorCode::HostDiskFull,
            Self::Library(error) => error.code(),
        }
    }

    /// What to type next, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Denied { registry, .. } => Some(login_hint(registry)),
            Self::Unavailable { registry, remedy, .. } => remedy.hint(registry),
            Self::NotFound { .. } => Some("check the name and the tag".to_owned()),
            Self::NoRoom { .. } => Some("banger system df".to_owned()),
            Self::Library(error) => error.hint(),
            Self::Helper { source, .. } => source.hint(),
            _ => None,
        }
    }

    /// Whether another registry with the same content might do better.
    pub(super) fn is_of_this_registry(&self) -> bool {
        !matches!(
            self,
            Self::Cancelled
                | Self::Settings { .. }
                | Self::Key { .. }
                | Self::NoRoom { .. }
                | Self::Library(_)
        )
    }
}

impl Remedy {
    fn hint(self, registry: &str) -> Option<String> {
        let setting = |what: &str| {
            format!(
                "add to registries.toml, if you trust the network: registry.\"{registry}\".{what}"
            )
        };
        match self {
            Self::None => None,
            Self::PlainHttp => Some(setting("plain-http = true")),
            Self::Authority => Some(format!(
                "add to registries.toml: registry.\"{registry}\".ca = \"/path/of/its/ca.pem\""
            )),
            Self::Login => Some(login_hint(registry)),
            Self::Name => {
                Some(format!("check the name of the registry, {registry}, and the network"))
            }
        }
    }
}

impl From<BlobError> for RegistryError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Cancelled => Self::Cancelled,
            BlobError::Library(error) => Self::Library(error),
            BlobError::WrongDigest { .. } | BlobError::Source(_) => {
                Self::Invalid { what: "a blob".to_owned(), reason: error.to_string() }
            }
        }
    }
}

fn login_hint(registry: &str) -> String {
    format!("docker login {registry} (or: skopeo login {registry})")
}

fn told(said: &Option<String>) -> String {
    said.as_ref().map(|said| format!(" (it says: {said})")).unwrap_or_default()
}

fn list(found: &[String]) -> String {
    if found.is_empty() { "no platform that it names".to_owned() } else { found.join(", ") }
}

/// A text of a stranger, fit to be shown: one line, no control characters, not too long.
pub(super) fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_whitespace() { ' ' } else { c };
    let text: String =
        text.trim().chars().map(clean).filter(|c| !c.is_control()).take(MAX_SAID + 1).collect();
    match text.char_indices().nth(MAX_SAID) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_strangers_are_tamed() {
        assert_eq!(printable(" no\r\n\x1b[31mred "), "no  [31mred");
        assert_eq!(printable(&"é".repeat(300)).chars().count(), MAX_SAID + 1);
    }

    #[test]
    fn a_refusal_says_both_reasons_and_how_to_log_in() {
        let error = RegistryError::Denied {
            registry: "example.com".to_owned(),
            what: "team/app".to_owned(),
            anonymous: true,
            said: Some("authentication required".to_owned()),
        };
        assert_eq!(
            error.to_string(),
            "example.com refuses access to team/app: it is private, or is not there (it says: \
             authentication required)"
        );
        assert_eq!(error.code(), ErrorCode::RegistryDenied);
        assert!(error.hint().is_some_and(|hint| hint.contains("docker login example.com")));
    }

    #[test]
    fn a_registry_without_tls_gets_a_setting() {
        let error = RegistryError::Unavailable {
            registry: "nas:5000".to_owned(),
            reason: "it speaks no TLS".to_owned(),
            remedy: Remedy::PlainHttp,
        };
        let hint = error.hint().expect("one");
        let setting = hint.split(": ").last().expect("a setting");
        let table: toml::Table = setting.parse().expect("it is TOML");
        assert_eq!(table["registry"]["nas:5000"]["plain-http"].as_bool(), Some(true));
    }
}
