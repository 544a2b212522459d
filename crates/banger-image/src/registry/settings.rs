//! Settings per registry: `registries.toml`, or what `--registry-config` names.
//!
//! ```toml
//! [registry."nas.lan:5000"]
//! plain-http = true
//!
//! [registry."registry.corp"]
//! ca = "corp-ca.pem"            # beside this file, or an absolute path
//! mirror = "cache.corp/hub"     # is asked first
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::RegistryError;

/// Settings of all registries that have some.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    #[serde(default)]
    registry: BTreeMap<String, RegistrySettings>,
}

/// How to talk to one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RegistrySettings {
    /// Whether it speaks HTTP without TLS.
    #[serde(default)]
    pub(super) plain_http: bool,
    /// Certificates, PEM, of authorities that are trusted as well as the host's.
    pub(super) ca: Option<PathBuf>,
    /// What is asked before it: `host:port/prefix`.
    pub(super) mirror: Option<String>,
}

impl Settings {
    /// Read the text of `file`.
    pub(super) fn parse(text: &str, file: &Path) -> Result<Self, RegistryError> {
        let mut settings: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| line_of(text, span.start));
            wrong(file, line, error.message())
        })?;
        for (name, registry) in &mut settings.registry {
            let line = || text.lines().position(|line| line.contains(name.as_str())).map(|n| n + 1);
            if !is_host(name) {
                let reason = format!("{name:?} is not the name of a registry: HOST or HOST:PORT");
                return Err(wrong(file, line(), &reason));
            }
            if let Some(mirror) = &registry.mirror
                && !is_mirror(mirror)
            {
                let reason = format!("{mirror:?} is not a mirror: HOST:PORT or HOST:PORT/PREFIX");
                return Err(wrong(file, line(), &reason));
            }
            if let Some(ca) = &mut registry.ca {
                // Absolute paths stay what they are.
                *ca = file.parent().unwrap_or(Path::new("/")).join(&*ca);
            }
        }
        Ok(settings)
    }

    /// The same with what `other` says added; where both speak of a registry, `other` counts.
    pub(super) fn overridden_by(mut self, other: Self) -> Self {
        self.registry.extend(other.registry);
        self
    }

    /// The settings of a registry.
    pub(super) fn of(&self, registry: &str) -> RegistrySettings {
        self.registry.get(registry).cloned().unwrap_or_default()
    }
}

fn wrong(file: &Path, line: Option<usize>, reason: &str) -> RegistryError {
    let line = line.map(|line| format!(":{line}")).unwrap_or_default();
    let reason = reason.lines().collect::<Vec<_>>().join(" ");
    RegistryError::Settings { place: format!("{}{line}", file.display()), reason }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// Whether it could be the registry of a reference.
fn is_host(text: &str) -> bool {
    // A host without dot and port is one only if a reference says so in another way.
    let reference = banger_core::reference::Reference::parse(&format!("{text}/x"));
    reference.is_ok_and(|reference| reference.registry() == text)
        || (!text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'))
}

fn is_mirror(text: &str) -> bool {
    let (host, prefix) = text.split_once('/').unwrap_or((text, "x"));
    let reference = banger_core::reference::Reference::parse(&format!("docker.io/{prefix}/x"));
    is_host(host) && reference.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(text, Path::new("/etc/banger/registries.toml"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn settings_are_read() {
        let settings = parse(
            "[registry.\"nas:5000\"]\nplain-http = true\n\n[registry.\"corp.example\"]\n\
             ca = \"ca.pem\"\nmirror = \"cache.example:5000/hub/x\"\n[registry.localhost]\nca='/x'",
        )
        .expect("they are fine");
        assert!(settings.of("nas:5000").plain_http);
        let corp = settings.of("corp.example");
        assert_eq!(corp.ca.as_deref(), Some(Path::new("/etc/banger/ca.pem")));
        assert_eq!(corp.mirror.as_deref(), Some("cache.example:5000/hub/x"));
        assert_eq!(settings.of("localhost").ca.as_deref(), Some(Path::new("/x")));
        assert_eq!(settings.of("other"), RegistrySettings::default());
        let dotted = parse("registry.\"nas:5000\".plain-http = true").expect("fine");
        assert!(dotted.of("nas:5000").plain_http);
        let other = parse("registry.\"nas:5000\".ca = \"x\"").expect("fine");
        assert!(!settings.overridden_by(other).of("nas:5000").plain_http);
    }

    #[test]
    fn errors_name_the_line() {
        let cases = [
            ("[registry.x]\nplain-htp = true", ":2: unknown field `plain-htp`"),
            ("\n[registries.x]", ":2: unknown field `registries`"),
            ("[registry.x]\nplain-http = 1", ":2: invalid type: integer `1`, expected a boolean"),
            ("[registry.x\n", ":1: "),
            ("[registry.\"https://x\"]\nplain-http = true", ":1: \"https://x\" is not the name"),
            ("[registry.x]\nmirror = \"https://y\"", ":1: \"https://y\" is not a mirror"),
        ];
        for (text, want) in cases {
            let error = parse(text).expect_err(text);
            let want = format!("cannot understand /etc/banger/registries.toml{want}");
            assert!(error.starts_with(&want), "{error}");
        }
    }
}
