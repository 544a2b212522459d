//! Additional certificate authorities: a guest behind a proxy that opens TLS must trust it.
//!
//! They go where the distribution's own tool looks for them, so that its next run keeps them; into
//! the bundle that programs read, since that tool may be missing; and into a bundle of their own
//! for runtimes that never read the system's.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::ConfigureError;
use crate::files;

const OWN_DIR: &str = "/usr/local/share/ca-certificates";
/// All of them in one file.
const OWN_BUNDLE: &str = "/run/banger/ca-certificates.crt";
/// Where distributions have the bundle: Debian and Alpine, Fedora, SUSE.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];
const BEGIN: &str = "# banger: certificate authorities of the host\n";
const END: &str = "# banger: end\n";
const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const PEM_END: &str = "-----END CERTIFICATE-----";

/// Makes the guest trust `certificates`, and no longer those of an earlier boot. Returns the
/// environment that makes programs see them.
pub fn install(
    certificates: &[String],
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<String, String>, ConfigureError> {
    if certificates.is_empty() && !own_path(1).exists() {
        return Ok(BTreeMap::new());
    }
    let usable: Vec<String> = certificates.iter().filter_map(|text| tidy(text)).collect();
    if usable.len() < certificates.len() {
        let count = certificates.len() - usable.len();
        warnings.push(format!("{count} certificate authorities are not PEM and are left out"));
    }
    write_own(&usable).map_err(ConfigureError::step("writing certificate authorities"))?;
    // What is no longer wanted goes from the bundles before its files go: as long as these are there, somebody
    // looks after the bundles.
    let bundles = system_bundles();
    for bundle in &bundles {
        update(bundle, &usable.concat())
            .map_err(ConfigureError::step("writing the bundle of certificate authorities"))?;
    }
    remove_own(usable.len());
    if usable.is_empty() {
        return Ok(BTreeMap::new());
    }
    files::put(Path::new(OWN_BUNDLE), usable.concat().as_bytes(), 0o644)
        .map_err(ConfigureError::step("writing certificate authorities"))?;
    Ok(environment(!bundles.is_empty()))
}

/// Node adds this to its own list; OpenSSL's variable replaces the list, so it is for guests that
/// have none.
fn environment(has_bundle: bool) -> BTreeMap<String, String> {
    let mut names = vec!["NODE_EXTRA_CA_CERTS"];
    if !has_bundle {
        names.push("SSL_CERT_FILE");
    }
    names.into_iter().map(|name| (name.to_owned(), OWN_BUNDLE.to_owned())).collect()
}

fn tidy(text: &str) -> Option<String> {
    let begin = text.find(PEM_BEGIN)?;
    let end = text.rfind(PEM_END)? + PEM_END.len();
    text.get(begin..end).filter(|pem| !pem.is_empty()).map(|pem| format!("{pem}\n"))
}

fn write_own(certificates: &[String]) -> std::io::Result<()> {
    for (number, pem) in (1..).zip(certificates) {
        files::put(&own_path(number), pem.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Removes all but the first few, the last one first: a row of files has no gaps.
fn remove_own(kept: usize) {
    let stale: Vec<PathBuf> = (kept + 1..).map(own_path).take_while(|path| path.exists()).collect();
    for path in stale.iter().rev() {
        // One that stays is tried again at the next boot.
        let _ = fs::remove_file(path);
    }
}

fn own_path(number: usize) -> PathBuf {
    Path::new(OWN_DIR).join(format!("banger-{number}.crt"))
}

/// The bundles there are, each once, links followed.
fn system_bundles() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        BUNDLES.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    found.sort();
    found.dedup();
    found.retain(|path| path.is_file());
    found
}

fn update(bundle: &Path, pem: &str) -> std::io::Result<()> {
    let before = files::read_text(bundle)?;
    files::put(bundle, bundle_with(&before, pem).as_bytes(), 0o644)
}

/// The bundle with `pem` as its last part, in place of what was put there before.
fn bundle_with(before: &str, pem: &str) -> String {
    let mut text = match (before.find(BEGIN), before.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            format!("{}{}", &before[..begin], &before[end + END.len()..])
        }
        _ => before.to_owned(),
    };
    if !pem.is_empty() {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{BEGIN}{pem}{END}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_holds_the_present_authorities_once() {
        let system = "system\n";
        let one = bundle_with(system, "one\n");
        assert_eq!(one, format!("system\n{BEGIN}one\n{END}"));
        assert_eq!(bundle_with(&one, "one\n"), one, "a second time changes nothing");
        assert_eq!(bundle_with(&one, "two\n"), format!("system\n{BEGIN}two\n{END}"));
        assert_eq!(bundle_with(&one, ""), system);
        assert_eq!(bundle_with("cut", "one\n"), format!("cut\n{BEGIN}one\n{END}"));
    }

    #[test]
    fn only_certificates_pass() {
        let pem = format!("{PEM_BEGIN}\nMIIB\n{PEM_END}");
        assert_eq!(tidy(&format!("comment\n{pem}\nmore")), Some(format!("{pem}\n")));
        for bad in ["", "text", PEM_BEGIN, &format!("{PEM_END}{PEM_BEGIN}")] {
            assert_eq!(tidy(bad), None, "{bad}");
        }
    }

    #[test]
    fn openssl_is_redirected_only_without_a_bundle() {
        assert!(!environment(true).contains_key("SSL_CERT_FILE"));
        assert_eq!(environment(false)["SSL_CERT_FILE"], OWN_BUNDLE);
    }
}
