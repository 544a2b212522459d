//! The host's apt: where it gets Debian's packages from, and how it gets there.
//!
//! banger trusts what the host's administrator trusts for transport (mirrors, proxies, certificates)
//! and the Debian archive's own keys for content. It never reads or writes the host's apt state:
//! package lists and downloads live in a directory of banger's own, so that neither root nor a
//! recent `apt-get update` is needed.

mod private;
mod settings;
mod sources;

use std::path::{Path, PathBuf};

use banger_host::command::{Cancel, Tool};

use crate::error::PullError;
pub(crate) use private::PrivateApt;
pub(crate) use settings::{quoted, transport_settings};
pub(crate) use sources::{Source, deb822, one_line};

/// The keys that sign Debian's archive, from the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The path of the keys that sign Debian's archive.
pub(crate) fn keyring() -> Result<&'static Path, PullError> {
    let path = Path::new(KEYRING);
    if path.is_file() {
        Ok(path)
    } else {
        Err(PullError::NoKeyring { path: PathBuf::from(KEYRING) })
    }
}

/// Where the packages of the Debian release `release` come from: the host's own Debian sources,
/// with their release replaced if the host runs another one.
pub(crate) fn debian_sources(release: &str, cancel: &Cancel) -> Result<Vec<Source>, PullError> {
    let mut targets = targets(&[], cancel)?;
    if targets.is_empty() {
        // The host has never fetched its package lists, as fresh containers have not.
        targets = self::targets(&["--no-release-info"], cancel)?;
    }
    let read_mirrors = |path: &Path| std::fs::read_to_string(path).ok();
    let planned = sources::plan_sources(&targets, release, &read_mirrors);
    if planned.is_empty() { Err(PullError::NoDebianSource) } else { Ok(planned) }
}

/// The package indexes that the host's apt knows.
fn targets(options: &[&str], cancel: &Cancel) -> Result<Vec<sources::Target>, PullError> {
    let tool = Tool::new("apt-get").arg("indextargets").args(options).args([
        "--format",
        sources::TARGET_FORMAT,
        "Created-By: Packages",
    ]);
    let listed = tool.run(cancel).map_err(PullError::tool("reading the apt sources"))?;
    Ok(sources::parse_targets(&listed.text()))
}
