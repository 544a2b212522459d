//! The host's apt: where it has Debian from, so that whoever makes a Debian has it from there too.

use std::process::Command;

use crate::failure::{ChoreFailure, capture};

/// Settings of apt that say how mirrors are reached.
const TRANSPORT: [&str; 4] =
    ["Acquire::http::", "Acquire::https::", "Acquire::Retries", "Acquire::ForceIPv"];

/// Debian's release and sources as the host's apt has them, in one-line form, a line each.
///
/// # Errors
/// If apt cannot be asked, or knows no source of Debian.
pub fn sources() -> Result<(String, String), ChoreFailure> {
    let format = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)";
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", format, "Identifier: Packages", "Architecture: amd64"]);
    select_sources(&capture(&mut apt)?).ok_or_else(|| {
        ChoreFailure::Found("apt knows no source of Debian: run apt-get update".to_owned())
    })
}

fn select_sources(listing: &str) -> Option<(String, String)> {
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let mut lines: Vec<String> = Vec::new();
    let mut release = None;
    for line in listing.lines() {
        let [uri, suite, component, "Debian"] = line.split('\t').collect::<Vec<_>>()[..] else {
            continue;
        };
        if component != "main" || suite.contains("backports") {
            continue;
        }
        if !suite.contains('-') {
            release = Some(suite.to_owned());
        }
        lines.push(format!("deb [signed-by={keyring}] {uri} {suite} {component}\n"));
    }
    lines.sort();
    lines.dedup();
    Some((release?, lines.concat()))
}

/// Settings of the host's apt that say how mirrors are reached, as a file of apt.conf.
///
/// # Errors
/// If apt cannot be asked.
pub fn transport() -> Result<String, ChoreFailure> {
    let mut apt = Command::new("apt-config");
    apt.args(["dump", "--no-empty", "--format", "%f\t%v%n", "Acquire"]);
    let dump = capture(&mut apt)?;
    let wanted = |line: &&str| TRANSPORT.iter().any(|prefix| line.starts_with(prefix));
    let setting = |line: &str| {
        let (name, value) = line.split_once('\t')?;
        (!value.contains('"')).then(|| format!("{name} \"{value}\";\n"))
    };
    Ok(dump.lines().filter(wanted).filter_map(setting).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_itself_is_a_source() {
        let listing = "http://a.test/debian/\tbookworm\tmain\tDebian\n\
            http://a.test/debian/\tbookworm-updates\tmain\tDebian\n\
            http://a.test/debian/\tbookworm\tmain\tDebian\n\
            http://a.test/debian/\tbookworm\tnon-free\tDebian\n\
            http://a.test/debian/\tbookworm-backports\tmain\tDebian Backports\n\
            http://b.test/node/\tnodistro\tmain\tnodesource\n";
        let (release, lines) = select_sources(listing).expect("there is Debian");
        assert_eq!(release, "bookworm");
        assert_eq!(lines.lines().count(), 2, "{lines}");
        assert!(lines.lines().all(|line| line.contains("] http://a.test/debian/ bookworm")));
        assert_eq!(select_sources("http://b.test/node/\tnodistro\tmain\tnodesource\n"), None);
    }
}
