//! A certificate authority of one's own, and a certificate for this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The names that the certificate is good for.
const NAMES: &str =
    "subjectAltName=DNS:localhost,DNS:registry.test,IP:127.0.0.1,IP:0:0:0:0:0:0:0:1";

/// An authority that nobody trusts yet, and a certificate that it signed for `localhost`,
/// `127.0.0.1`, `[::1]` and `registry.test`.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The authority's certificate, PEM.
    pub authority: PathBuf,
    /// The server's certificate, PEM.
    pub certificate: PathBuf,
    /// The server's key, PEM.
    pub key: PathBuf,
}

impl Certificates {
    /// Makes them in `dir`, with openssl.
    ///
    /// # Panics
    /// If openssl is missing or fails.
    #[must_use]
    pub fn create(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("the directory is ours");
        std::fs::write(dir.join("names"), NAMES).expect("the directory is ours");
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"];
        openssl(
            dir,
            &[&["req", "-x509"], &new_key[..], &["-subj", "/CN=authority"]].concat(),
            &["-days", "2", "-keyout", "authority.key", "-out", "authority.pem"],
        );
        openssl(
            dir,
            &[&["req"], &new_key[..], &["-subj", "/CN=localhost"]].concat(),
            &["-keyout", "server.key", "-out", "server.csr"],
        );
        openssl(
            dir,
            &["x509", "-req", "-in", "server.csr", "-days", "2", "-CAcreateserial"],
            &[
                "-CA",
                "authority.pem",
                "-CAkey",
                "authority.key",
                "-extfile",
                "names",
                "-out",
                "server.pem",
            ],
        );
        let [authority, certificate, key] =
            ["authority.pem", "server.pem", "server.key"].map(|name| dir.join(name));
        Self { authority, certificate, key }
    }
}

fn openssl(dir: &Path, first: &[&str], rest: &[&str]) {
    let output = Command::new("openssl").args(first).args(rest).current_dir(dir).output();
    let output = output.expect("openssl is installed");
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
}
