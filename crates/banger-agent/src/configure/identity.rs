//! Who this guest is: its machine-id and its name.

use std::fs;
use std::path::Path;

use super::ConfigureError;
use crate::files;

/// The address by which a machine without a fixed one finds its own name.
const OWN_ADDRESS: &str = "127.0.1.1";
const NEW_HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

/// Writes the machine-id.
pub fn set_machine_id(id: &str) -> Result<(), ConfigureError> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if id.len() != 32 || !id.bytes().all(hex) {
        return Err(ConfigureError::invalid("machine_id", "it is not 32 lower-case hex digits"));
    }
    let line = format!("{id}\n");
    let write = |path: &Path| files::put_anew(path, line.as_bytes(), 0o444);
    write(Path::new("/etc/machine-id")).map_err(ConfigureError::step("writing /etc/machine-id"))?;
    // Usually a link to the other one. An image with a file of its own would keep its old identity.
    let bus = Path::new("/var/lib/dbus/machine-id");
    if fs::symlink_metadata(bus).is_ok_and(|found| found.is_file()) {
        write(bus).map_err(ConfigureError::step("writing /var/lib/dbus/machine-id"))?;
    }
    Ok(())
}

/// Sets the name, and writes it where programs look for it.
pub fn set_hostname(name: &str) -> Result<(), ConfigureError> {
    if !is_hostname(name) {
        return Err(ConfigureError::invalid("hostname", format!("{name:?} is not a host name")));
    }
    nix::unistd::sethostname(name).map_err(ConfigureError::step("setting the hostname"))?;
    files::put_anew(Path::new("/etc/hostname"), format!("{name}\n").as_bytes(), 0o644)
        .map_err(ConfigureError::step("writing /etc/hostname"))?;
    let path = Path::new("/etc/hosts");
    let before = files::read_text(path).unwrap_or_default();
    let hosts = hosts_with(&before, name);
    let written = match hosts.strip_prefix(&before).filter(|_| !before.is_empty()) {
        Some(added) => files::append(path, added.as_bytes()),
        None => files::put(path, hosts.as_bytes(), 0o644),
    };
    written.map_err(ConfigureError::step("writing /etc/hosts"))
}

fn is_hostname(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with(['-', '.'])
}

/// The hosts file with this name as its own, and everything else as it was.
fn hosts_with(before: &str, name: &str) -> String {
    let others = before
        .lines()
        .filter(|line| line.split_ascii_whitespace().next() != Some(OWN_ADDRESS))
        .map(|line| format!("{line}\n"));
    let mut hosts: String = others.collect();
    if hosts.trim().is_empty() {
        hosts = NEW_HOSTS.to_owned();
    }
    hosts + &format!("{OWN_ADDRESS} {name}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_keeps_what_others_wrote() {
        let before = "127.0.0.1\tlocalhost\n127.0.1.1 old\n10.0.0.1 db # 127.0.1.1";
        let after = "127.0.0.1\tlocalhost\n10.0.0.1 db # 127.0.1.1\n127.0.1.1 box\n";
        assert_eq!(hosts_with(before, "box"), after);
        assert_eq!(hosts_with(after, "box"), after, "a second time changes nothing");
        assert_eq!(hosts_with("", "box"), format!("{NEW_HOSTS}127.0.1.1 box\n"));
    }

    #[test]
    fn names_are_checked() {
        for good in ["box", "a-1.b", "X"] {
            assert!(is_hostname(good), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a\nb", "ä", &"a".repeat(65)] {
            assert!(!is_hostname(bad), "{bad}");
        }
    }
}
