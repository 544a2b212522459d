//! Manifests of what was saved, as another host or release would have written them.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Account;

/// Changes the manifest in `path`, and gives it the digest of what it then is.
///
/// # Panics
/// If it is none, or cannot be written.
pub fn rewrite(path: &Path, account: &Account, change: impl FnOnce(&mut Value)) {
    let text = std::fs::read_to_string(path).expect("it is there");
    let mut manifest: Value = serde_json::from_str(&text).expect("JSON");
    change(&mut manifest);
    manifest.as_object_mut().and_then(|it| it.remove("digest")).expect("it has one");
    let digest = hex::encode(Sha256::digest(manifest.to_string()));
    manifest["digest"] = digest.into();
    // It may be shared with others.
    std::fs::remove_file(path).expect("our own name for it");
    std::fs::write(path, manifest.to_string()).expect("our own directory");
    account.own(path);
}
