//! References: the names of images in registries.
//!
//! What people write is short for something: `alpine` is `docker.io/library/alpine:latest`. A
//! [`Reference`] is always the whole of it. The rules are those of Docker's own references, so that
//! what works there works here.

mod digest;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use digest::{Digest, DigestError};

/// The registry of a reference that names none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of a reference that has neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
/// Where the default registry keeps what has no owner: `alpine` is `library/alpine`.
const OFFICIAL: &str = "library/";
/// An older name of the default registry.
const OLD_DEFAULT_REGISTRY: &str = "index.docker.io";

/// Longest registry and repository together, in bytes; Docker's limit.
pub const MAX_NAME_LENGTH: usize = 255;
/// Longest tag, in bytes; Docker's limit.
pub const MAX_TAG_LENGTH: usize = 128;

/// The whole name of an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It has no characters, or nothing before its tag.
    #[error("the name of an image cannot be empty")]
    Empty,
    /// It is a URL.
    #[error("an image is named without {scheme}: HOST/NAME:TAG")]
    Scheme {
        /// What it begins with: `https://`.
        scheme: String,
    },
    /// Its repository has upper-case letters.
    #[error("the name of an image is lower-case: {lower}, not {name}")]
    Uppercase {
        /// The repository as it was written.
        name: String,
        /// The same in lower case.
        lower: String,
    },
    /// A part of its repository is not a name.
    #[error("{part:?} cannot be part of an image's name: {reason}")]
    Part {
        /// The part between two slashes.
        part: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Its registry is no host name or address.
    #[error("{host:?} is not the name of a registry: {reason}")]
    Host {
        /// What stands before the first slash.
        host: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Its tag is none.
    #[error("{tag:?} is not a tag: {reason}")]
    Tag {
        /// What stands after the last colon.
        tag: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Its digest is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// It is longer than [`MAX_NAME_LENGTH`].
    #[error("the name of an image has at most {MAX_NAME_LENGTH} characters, this one has {length}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// It is 64 hex digits: an identity without saying of what.
    #[error("{0} is a digest without an image: NAME@sha256:{0}")]
    BareDigest(String),
}

impl Reference {
    /// Reads a reference, short or whole.
    ///
    /// # Errors
    /// [`ReferenceError`] with the first rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(ReferenceError::Scheme { scheme: format!("{scheme}://") });
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        if name.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if is_bare_digest(name) {
            return Err(ReferenceError::BareDigest(name.to_owned()));
        }
        let (registry, repository) = split_registry(name);
        check_host(registry)?;
        check_repository(repository)?;
        let named = Self::untagged(registry, repository);
        // What stands for it everywhere else counts: it has to be readable, too.
        let length = named.registry.len() + 1 + named.repository.len();
        if length > MAX_NAME_LENGTH {
            return Err(ReferenceError::TooLong { length });
        }
        let tag = tag.or((digest.is_none()).then_some(DEFAULT_TAG)).map(str::to_owned);
        Ok(Self { digest, tag, ..named })
    }

    fn untagged(registry: &str, repository: &str) -> Self {
        let registry = match registry {
            "" | OLD_DEFAULT_REGISTRY => DEFAULT_REGISTRY,
            other => other,
        };
        let is_official = registry == DEFAULT_REGISTRY && !repository.contains('/');
        let repository =
            if is_official { format!("{OFFICIAL}{repository}") } else { repository.to_owned() };
        Self { registry: registry.to_owned(), repository, tag: None, digest: None }
    }

    /// The registry: a host name or address, with the port if one was given.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry: `library/alpine`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. None only where there is a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which names exactly one image whatever the tag stands for.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository with another tag and no digest.
    ///
    /// # Errors
    /// If that is not a tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        check_tag(tag)?;
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// Exactly that image of the same repository, whatever the tag stands for.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// All of it: `docker.io/library/alpine:3.20`.
    #[must_use]
    pub fn canonical(&self) -> String {
        format!("{}/{}{}", self.registry, self.repository, self.suffix())
    }

    /// As people write it: `alpine:3.20`. Means the same as [`Reference::canonical`].
    #[must_use]
    pub fn familiar(&self) -> String {
        let suffix = self.suffix();
        let official = self.repository.strip_prefix(OFFICIAL);
        let shorter = official.into_iter().chain([&*self.repository]);
        // `docker.io/localhost/x` without its registry would be on another one.
        shorter
            .map(|name| format!("{name}{suffix}"))
            .find(|text| Self::parse(text).as_ref() == Ok(self))
            .unwrap_or_else(|| self.canonical())
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}"));
        let digest = self.digest.as_ref().map(|digest| format!("@{digest}"));
        tag.unwrap_or_default() + &digest.unwrap_or_default()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.canonical())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// What stands before and after the colon of the tag. A colon before a slash is that of a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

/// Registry and repository; the registry is empty if the name has none. As in Docker, what stands
/// before the first slash is a registry if it could not be the owner of a repository.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((host, rest)) if looks_like_a_host(host) => (host, rest),
        _ => ("", name),
    }
}

fn looks_like_a_host(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':']) || text.contains(char::is_uppercase)
}

fn check_host(host: &str) -> Result<(), ReferenceError> {
    let wrong = |reason| Err(ReferenceError::Host { host: host.to_owned(), reason });
    if host.is_empty() {
        return Ok(());
    }
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return wrong("its address has no closing bracket");
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return wrong("what stands in brackets is no IPv6 address");
            }
            match port.strip_prefix(':') {
                None if !port.is_empty() => return wrong("only a port may follow the brackets"),
                port => ("", port),
            }
        }
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    if port.is_some_and(|port| !is_port(port)) {
        return wrong("its port is no number from 1 to 65535");
    }
    if name.is_empty() && !host.starts_with('[') {
        return wrong("there is no name before the port");
    }
    let is_label = |label: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
        !label.is_empty()
            && label.chars().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !name.is_empty() && !name.split('.').all(is_label) {
        return wrong("a host name has letters, digits, hyphens and dots between them");
    }
    Ok(())
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn check_repository(repository: &str) -> Result<(), ReferenceError> {
    let lower = repository.to_ascii_lowercase();
    let name = repository.to_owned();
    if lower != repository && lower.split('/').all(|part| part_fault(part).is_none()) {
        return Err(ReferenceError::Uppercase { name, lower });
    }
    let fault = repository.split('/').find_map(|part| Some((part, part_fault(part)?)));
    match fault {
        Some((part, reason)) => Err(ReferenceError::Part { part: part.to_owned(), reason }),
        None => Ok(()),
    }
}

/// What is wrong with a part of a repository: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` is right.
fn part_fault(part: &str) -> Option<&'static str> {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if part.is_empty() {
        return Some("it is empty (is there a slash too many?)");
    }
    if !part.chars().all(|c| is_alphanumeric(c) || matches!(c, '.' | '_' | '-')) {
        return Some("it has only lower-case letters, digits, dots, hyphens and underscores");
    }
    if !part.starts_with(is_alphanumeric) || !part.ends_with(is_alphanumeric) {
        return Some("it begins and ends with a letter or a digit");
    }
    let is_separator =
        |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|b| b == b'-');
    if !part.split(is_alphanumeric).all(is_separator) {
        return Some(
            "between letters and digits stands one dot, one or two underscores, or hyphens",
        );
    }
    None
}

fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let reason = if tag.is_empty() {
        "it is empty"
    } else if !tag.chars().all(fits) {
        "a tag has only letters, digits, underscores, dots and hyphens"
    } else if tag.starts_with(['.', '-']) {
        "a tag begins with a letter, a digit or an underscore"
    } else if tag.len() > MAX_TAG_LENGTH {
        "a tag has at most 128 characters"
    } else {
        return Ok(());
    };
    Err(ReferenceError::Tag { tag: tag.to_owned(), reason })
}

fn is_bare_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
