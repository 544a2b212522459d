//! A kernel package of Debian's, fetched but never installed.
//!
//! The package is checked by apt: the archive's keys sign the release, the release has the digests
//! of the lists, the lists have the digest of the package. Hosts that run another Debian release
//! get the kernel of the catalog's release all the same, so that a name means one line of kernels.

use banger_api::step;
use std::path::{Path, PathBuf};

use banger_host::command::Cancel;

use crate::apt::PrivateApt;
use crate::catalog::DebianKernel;
use crate::error::PullError;
use crate::stage::Reporter;

/// A kernel package as the signed lists describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelPackage {
    /// Its name: `linux-image-6.1.0-56-cloud-amd64`.
    pub(crate) name: String,
    pub(crate) version: String,
    /// Of the package file, in hex.
    pub(crate) sha256: String,
}

impl KernelPackage {
    /// What `uname -r` will say.
    pub(crate) fn release(&self) -> &str {
        self.name.strip_prefix("linux-image-").unwrap_or(&self.name)
    }
}

/// An apt with fresh lists, and the newest kernel package in them.
pub(crate) fn newest(
    kernel: &DebianKernel,
    work: &Path,
    reporter: &mut Reporter<'_>,
    cancel: &Cancel,
) -> Result<(PrivateApt, KernelPackage), PullError> {
    let mut stage = reporter.stage(step::KERNEL_DOWNLOAD, "fetching the kernel")?;
    let apt = PrivateApt::create(work, &kernel.release, cancel)?;
    // Lists and package are about a quarter and three quarters of the bytes.
    apt.update(cancel, &mut |percent| stage.percent(percent / 4, "package lists"))?;
    let meta = apt.show(&kernel.package, cancel)?;
    let name = depends_on_kernel(&meta).ok_or_else(|| PullError::Unexpected {
        what: kernel.package.clone(),
        reason: "it depends on no kernel package".to_owned(),
    })?;
    let shown = apt.show(&name, cancel)?;
    let package = read_package(&shown).ok_or_else(|| PullError::Unexpected {
        what: name,
        reason: "the package lists do not describe it".to_owned(),
    })?;
    stage.percent(25, package.release());
    Ok((apt, package))
}

/// Fetch the package. Answers where it is.
pub(crate) fn fetch(
    apt: &PrivateApt,
    package: &KernelPackage,
    reporter: &mut Reporter<'_>,
    cancel: &Cancel,
) -> Result<PathBuf, PullError> {
    let mut stage = reporter.stage(step::KERNEL_DOWNLOAD, &format!("fetching {}", package.name))?;
    apt.download(&package.name, cancel, &mut |percent| stage.percent(25 + percent * 3 / 4, ""))
}

/// The kernel package among what a package depends on.
fn depends_on_kernel(show: &str) -> Option<String> {
    let names =
        field(show, "Depends")?.split(',').filter_map(|word| word.split_whitespace().next());
    names.into_iter().find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

fn read_package(show: &str) -> Option<KernelPackage> {
    let sha256 = field(show, "SHA256")?;
    let is_digest = sha256.len() == 64 && sha256.chars().all(|c| c.is_ascii_hexdigit());
    is_digest.then_some(())?;
    Some(KernelPackage {
        name: field(show, "Package")?.to_owned(),
        version: field(show, "Version")?.to_owned(),
        sha256: sha256.to_ascii_lowercase(),
    })
}

/// The value of a field in what `apt-cache show` printed.
fn field<'a>(show: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':').map(str::trim);
    show.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_names_the_kernel() {
        let show = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\n\
                    Provides: wireguard-modules (= 1.0.0)\n\
                    Depends: foo, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        assert_eq!(depends_on_kernel(show).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(depends_on_kernel("Package: x\n"), None);
        assert_eq!(depends_on_kernel("Depends: kmod\n"), None);
    }

    #[test]
    fn a_package_without_digest_is_none() {
        let digest = "E7".repeat(32);
        let show = format!(
            "Package: linux-image-6.1.0-56-cloud-amd64\nVersion: 6.1.192-2\nSHA256: {digest}\n"
        );
        let package = read_package(&show).expect("complete");
        assert_eq!(package.release(), "6.1.0-56-cloud-amd64");
        assert_eq!(package.sha256, "e7".repeat(32));
        assert_eq!(read_package(&show.replace("SHA256", "MD5sum")), None);
        assert_eq!(read_package(&show.replace("E7E7", "../")), None);
    }
}
