//! Fuzz targets of what registries and their users write.

use std::path::Path;
use std::time::Duration;

use http::Uri;

use super::authfile::AuthFile;
use super::challenge::best;
use super::location::follow;
use super::manifest::{Document, MAX_BYTES, MAX_LAYERS, Platform, check_config, choose};
use super::retry::parse_retry_after;
use super::settings::Settings;
use super::signature::VerifyKey;

/// A manifest or an index; after a null byte, the configuration that goes with it.
pub(crate) fn manifest(data: &[u8]) {
    let (document, config) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[][..]),
    };
    let machine = Platform::of_this_machine();
    match Document::parse(document, None) {
        Ok(Document::Manifest(manifest)) if manifest.check().is_ok() => {
            assert!(manifest.layers.len() <= MAX_LAYERS, "no more layers than allowed");
            let bytes: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
            assert!(bytes <= MAX_BYTES, "no more bytes than allowed");
            if let Ok(diff_ids) = check_config(config, &manifest, &machine) {
                assert_eq!(diff_ids.len(), manifest.layers.len(), "one for each");
            }
        }
        Ok(Document::Index(entries)) => {
            if let Err(names) = choose(&entries, &machine) {
                let controls = names.iter().flat_map(|name| name.chars()).any(char::is_control);
                assert!(!controls, "names are shown to people");
            }
        }
        Ok(Document::Manifest(_)) | Err(_) => {}
    }
}

/// Headers, one a line: each as whatever it might be.
pub(crate) fn headers(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = best(text.lines());
    let base = Uri::from_static("https://registry.example/v2/a/blobs/uploads/?state=1");
    for line in text.lines() {
        if let Ok(uri) = follow(&base, line) {
            assert_eq!(uri.scheme_str(), Some("https"), "what was private stays so");
        }
        let _ = parse_retry_after(line, Duration::from_secs(1_700_000_000));
    }
}

/// An auth file, `registries.toml`, or a key to check signatures with.
pub(crate) fn files(data: &[u8]) {
    if let Ok(auth) = AuthFile::parse(data) {
        let _ = auth.find("registry.example", "a/b");
        let _ = auth.find("docker.io", "library/a");
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = VerifyKey::parse(text);
    if let Ok(settings) = Settings::parse(text, Path::new("/etc/banger/registries.toml")) {
        let _ = settings.of("registry.example");
    }
}
