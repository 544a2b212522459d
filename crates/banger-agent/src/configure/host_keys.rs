//! The ssh host keys of this VM. Images carry keys that were made when they were built, and everyone
//! who has the image has them too.
//!
//! The machine-id on the disk says whose the keys are: they go before it is replaced, so a boot that
//! is cut off in between repeats it. New ones are made only where something needs them at once: a
//! program that found keys in its image, or an init that starts `sshd` and makes none.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_api::Problem;

use crate::agent::Agent;
use crate::{exec, files};

const DIR: &str = "/etc/ssh";
const SERVERS: [&str; 3] = ["/usr/sbin/sshd", "/sbin/sshd", "/usr/local/sbin/sshd"];
/// What servers of this decade need, and quickly made.
const USUAL: [&str; 2] = ["ed25519", "ecdsa"];
/// What can be asked for.
const KNOWN: [&str; 3] = ["ed25519", "ecdsa", "rsa"];
/// How long making all of them may take: a large RSA key under emulation takes seconds. The host
/// waits longer.
const LIMIT: Duration = Duration::from_secs(40);

/// Removes the keys of a machine that is not this one. True if there were any.
pub fn forget_foreign(machine_id: &str) -> io::Result<bool> {
    let before = files::read_text(Path::new("/etc/machine-id")).unwrap_or_default();
    if before.trim() == machine_id {
        return Ok(false);
    }
    remove_keys(Path::new(DIR))
}

/// What [`forget_foreign`] and [`ensure`] look at.
pub fn looked_at() -> impl Iterator<Item = &'static str> {
    SERVERS.into_iter().chain([DIR, "/etc/ssh/sshd_config"])
}

fn remove_keys(dir: &Path) -> io::Result<bool> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(false) };
    let mut removed = false;
    for entry in entries.flatten().filter(|entry| is_key(&entry.file_name().to_string_lossy())) {
        fs::remove_file(entry.path())?;
        removed = true;
    }
    Ok(removed)
}

/// `ssh_host_*_key*`
fn is_key(name: &str) -> bool {
    name.strip_prefix("ssh_host_").is_some_and(|rest| rest.contains("_key"))
}

/// Makes the keys that `sshd` needs and does not have, if there is an `sshd`.
///
/// # Errors
/// The problem of the first key that could not be made.
pub async fn ensure(agent: &Agent) -> Result<(), Problem> {
    if !SERVERS.iter().any(|server| Path::new(server).is_file()) {
        return Ok(());
    }
    let settings = files::read_text(&Path::new(DIR).join("sshd_config")).unwrap_or_default();
    let deadline = Instant::now() + LIMIT;
    for kind in needed(&settings) {
        let key = key_path(kind);
        if fs::metadata(&key).is_ok_and(|found| found.len() > 0) {
            continue;
        }
        make(agent, kind, &key, deadline.saturating_duration_since(Instant::now())).await?;
    }
    Ok(())
}

/// The kinds of keys that the server's settings name; the usual ones if they name none.
fn needed(settings: &str) -> Vec<&'static str> {
    let named: Vec<&str> = settings
        .lines()
        .filter_map(|line| line.trim_start().split_once([' ', '\t', '=']))
        .filter(|(word, _)| word.eq_ignore_ascii_case("HostKey"))
        .map(|(_, path)| path.trim_matches([' ', '\t', '=', '"']))
        .collect();
    let is_named = |kind: &&str| named.iter().any(|path| Path::new(path) == key_path(kind));
    let kinds: Vec<&str> = KNOWN.into_iter().filter(is_named).collect();
    if kinds.is_empty() { USUAL.to_vec() } else { kinds }
}

fn key_path(kind: &str) -> PathBuf {
    Path::new(DIR).join(format!("ssh_host_{kind}_key"))
}

/// Makes a key beside its place, and puts it there whole.
async fn make(agent: &Agent, kind: &str, key: &Path, limit: Duration) -> Result<(), Problem> {
    let fresh = format!("{DIR}/.banger-new-{kind}");
    let public = |path: &str| PathBuf::from(format!("{path}.pub"));
    let _ = (fs::remove_file(&fresh), fs::remove_file(public(&fresh)));
    let argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", &fresh];
    exec::run_quietly(agent, &argv, limit).await?;
    let place = || {
        File::open(&fresh)?.sync_all()?;
        fs::rename(public(&fresh), public(&key.to_string_lossy()))?;
        fs::rename(&fresh, key)
    };
    place().map_err(|error| {
        Problem::new(banger_api::ErrorCode::Internal, "a new key cannot be kept").because(&error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_keys_are_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let kept = ["sshd_config", "ssh_config", "moduli", "ssh_host_note"];
        let keys = ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "ssh_host_ed25519_key-cert.pub"];
        for name in kept.iter().chain(&keys) {
            fs::write(dir.join(name), "").expect("a file");
        }
        assert!(remove_keys(dir).expect("removed"));
        let mut left: Vec<_> = fs::read_dir(dir)
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        left.sort();
        assert_eq!(left, ["moduli", "ssh_config", "ssh_host_note", "sshd_config"]);
        assert!(!remove_keys(dir).expect("nothing to do"));
        assert!(!remove_keys(&dir.join("none")).expect("no ssh at all"));
    }

    #[test]
    fn the_servers_settings_name_the_kinds() {
        let cases: [(&str, &[&str]); 5] = [
            ("", &USUAL),
            ("# HostKey /etc/ssh/ssh_host_rsa_key\nPort 22\n", &USUAL),
            ("HostKey /etc/ssh/ssh_host_rsa_key\n", &["rsa"]),
            (
                " hostkey\t\"/etc/ssh/ssh_host_rsa_key\"\nHostKey=/etc/ssh/ssh_host_ed25519_key",
                &["ed25519", "rsa"],
            ),
            ("HostKey /srv/key\n", &USUAL),
        ];
        for (settings, want) in cases {
            assert_eq!(needed(settings), want, "{settings}");
        }
    }
}
