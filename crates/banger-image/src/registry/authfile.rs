//! Auth files, as Docker, podman, skopeo and buildah write them when somebody logs in.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// What Docker calls its own registry in these files.
pub(super) const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Something that must not be seen.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

/// What lets somebody in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token that a token service changes into others.
    Identity(Secret),
    /// A token for the registry itself.
    Registry(Secret),
}

/// Where credentials are to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// Here.
    Here(Credential),
    /// `docker-credential-NAME` has them.
    Helper(String),
}

/// An auth file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AuthFile {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
    #[serde(default)]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
struct Entry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

impl Secret {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself: not for logs or errors.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl AuthFile {
    /// Read one. An empty file is one without entries.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        // serde's texts show at most single values of the wrong type, which are no secrets' place.
        serde_json::from_slice(bytes)
            .map_err(|error| format!("line {}: {}", error.line(), kind_of(&error)))
    }

    /// The credentials for a repository: a helper that is set for its registry, else the entry with
    /// the longest matching path, else the common helper.
    pub(super) fn find(&self, registry: &str, repository: &str) -> Option<Source> {
        let registry = normal_host(registry);
        let helper = self
            .cred_helpers
            .iter()
            .flatten()
            .find(|(key, _)| normal_key(key).0 == registry)
            .map(|(_, name)| Source::Helper(name.clone()));
        helper
            .or_else(|| self.entry(&registry, repository).map(Source::Here))
            .or_else(|| self.creds_store.clone().filter(|n| !n.is_empty()).map(Source::Helper))
    }

    fn entry(&self, registry: &str, repository: &str) -> Option<Credential> {
        let mut best: Option<(usize, Credential)> = None;
        for (key, entry) in self.auths.iter().flatten() {
            let (host, path) = normal_key(key);
            let matches = host == registry
                && (path.is_empty()
                    || repository
                        .strip_prefix(path)
                        .is_some_and(|r| r.is_empty() || r.starts_with('/')));
            let longer = best.as_ref().is_none_or(|(length, _)| path.len() > *length);
            if matches
                && longer
                && let Some(credential) = entry.credential()
            {
                best = Some((path.len(), credential));
            }
        }
        best.map(|(_, credential)| credential)
    }
}

impl Entry {
    /// None if the entry only says that a helper has the credentials.
    fn credential(&self) -> Option<Credential> {
        let filled = |secret: &Option<Secret>| secret.clone().filter(|s| !s.reveal().is_empty());
        if let Some(token) = filled(&self.identitytoken) {
            return Some(Credential::Identity(token));
        }
        if let Some(token) = filled(&self.registrytoken) {
            return Some(Credential::Registry(token));
        }
        if let Some(auth) = filled(&self.auth) {
            let decoded = STANDARD.decode(auth.reveal().trim()).ok()?;
            let text = String::from_utf8(decoded).ok()?;
            let (user, password) = text.split_once(':')?;
            // Docker has written zeros at the end.
            let password = Secret::new(password.trim_matches('\0'));
            return Some(Credential::Password { user: user.to_owned(), password });
        }
        let user = self.username.clone().filter(|user| !user.is_empty())?;
        Some(Credential::Password { user, password: self.password.clone()? })
    }
}

/// What kind of mistake it is, without a word of the file.
fn kind_of(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Data => "not what an auth file has there",
        _ => "not JSON",
    }
}

/// Host and path of a key: `https://host/v1/`, `host`, `host/team`.
fn normal_key(key: &str) -> (String, &str) {
    let bare = key.split_once("://").map_or(key, |(_, rest)| rest);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    // Docker's keys end in the version of the API.
    let path = path.trim_matches('/');
    (normal_host(host), if matches!(path, "v1" | "v2") { "" } else { path })
}

/// The one name of a registry that has several.
fn normal_host(host: &str) -> String {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(text: &str) -> String {
        STANDARD.encode(text)
    }

    fn password(user: &str, password: &str) -> Option<Source> {
        let password = Secret::new(password);
        Some(Source::Here(Credential::Password { user: user.to_owned(), password }))
    }

    #[test]
    fn the_longest_path_wins() {
        let file = format!(
            r#"{{"auths": {{
                "example.com": {{"auth": "{}"}},
                "example.com/team": {{"auth": "{}"}},
                "example.com/team/app": {{"auth": "{}"}},
                "https://index.docker.io/v1/": {{"auth": "{}"}},
                "https://old.example/v2/": {{"username": "u", "password": "p:q"}},
                "token.example": {{"auth": "{}", "identitytoken": "t"}},
                "direct.example": {{"registrytoken": "r"}},
                "empty.example": {{}}, "broken.example": {{"auth": "%%"}}
            }}, "HttpHeaders": {{}} }}"#,
            auth("a:1"),
            auth("b:2"),
            auth("c:3"),
            auth("hub:x:y"),
            auth("0000:"),
        );
        let file = AuthFile::parse(file.as_bytes()).expect("it is one");
        let cases = [
            ("example.com", "other", password("a", "1")),
            ("example.com", "teams/x", password("a", "1")),
            ("example.com", "team", password("b", "2")),
            ("example.com", "team/other", password("b", "2")),
            ("example.com", "team/app", password("c", "3")),
            ("example.com", "team/app/sub", password("c", "3")),
            ("example.com:5000", "team/app", None),
            ("docker.io", "library/alpine", password("hub", "x:y")),
            ("old.example", "x", password("u", "p:q")),
            ("token.example", "x", Some(Source::Here(Credential::Identity(Secret::new("t"))))),
            ("direct.example", "x", Some(Source::Here(Credential::Registry(Secret::new("r"))))),
            ("empty.example", "x", None),
            ("broken.example", "x", None),
        ];
        for (registry, repository, want) in cases {
            assert_eq!(file.find(registry, repository), want, "{registry}/{repository}");
        }
    }

    #[test]
    fn helpers_are_asked_where_the_file_says_so() {
        let file = format!(
            r#"{{"auths": {{"a.example": {{"auth": "{}"}}, "b.example": {{}}}},
                "credHelpers": {{"a.example": "one", "docker.io": "hub"}}, "credsStore": "two"}}"#,
            auth("u:p")
        );
        let file = AuthFile::parse(file.as_bytes()).expect("it is one");
        for (registry, helper) in
            [("a.example", "one"), ("b.example", "two"), ("c.example", "two"), ("docker.io", "hub")]
        {
            let want = Some(Source::Helper(helper.to_owned()));
            assert_eq!(file.find(registry, "x"), want, "{registry}");
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let file = format!(
            r#"{{"auths": {{"a": {{"auth": "{}", "password": "geheim"}}}}}}"#,
            auth("u:geheim")
        );
        let file = AuthFile::parse(file.as_bytes()).expect("it is one");
        let text = format!("{file:?} {:?}", file.find("a", "x"));
        assert!(!text.contains("geheim") && !text.contains(&auth("u:geheim")), "{text}");
        let error = AuthFile::parse(br#"{"auths": "geheim"}"#).expect_err("not a table");
        assert_eq!(error, "line 1: not what an auth file has there");
        assert_eq!(AuthFile::parse(b"geheim").expect_err("no JSON"), "line 1: not JSON");
        assert!(AuthFile::parse(b" \n").expect("empty").find("a", "b").is_none());
        assert!(AuthFile::parse(b"{\"auths\": null}").expect("empty").find("a", "b").is_none());
    }
}
