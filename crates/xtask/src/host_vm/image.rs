//! The machine's disk, kernel and initramfs, made from the host's own package sources and kept.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::home;
use crate::failure::{ChoreFailure, capture, on_file, run};

const SCRIPT: &str = include_str!("image.sh");
/// What any machine has.
const BASE: &str = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,udev,kmod,apparmor,\
    openssh-server,sudo,iproute2,e2fsprogs,procps,busybox-static,cpio,linux-image-cloud-amd64,\
    ca-certificates,git";
/// What banger needs; see `script/host.sh`.
const NEEDS: &str = "qemu-system-x86,passt,nftables,uidmap,mmdebstrap,gpgv";
/// What a build of banger needs.
const BUILD: &str = "gcc,libc6-dev";
/// Settings of apt that say how mirrors are reached.
const TRANSPORT: [&str; 4] =
    ["Acquire::http::", "Acquire::https::", "Acquire::Retries", "Acquire::ForceIPv"];

/// Which machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Everything that banger needs is installed.
    Ready,
    /// Nothing is, as on a new machine.
    Blank,
}

/// Where the image is, made if it is missing or `fresh`.
pub(super) fn ensure(kind: Kind, fresh: bool) -> Result<PathBuf, ChoreFailure> {
    let (suite, sources) = sources()?;
    let settings = transport()?;
    let packages = match kind {
        Kind::Ready => format!("{BASE},{NEEDS}"),
        Kind::Blank => format!("{BASE},{BUILD}"),
    };
    let mut key = DefaultHasher::new();
    (SCRIPT, &suite, &sources, &settings, &packages).hash(&mut key);
    let image = home().join(format!("image-{:016x}", key.finish()));
    if image.exists() && !fresh {
        return Ok(image);
    }
    println!("making the machine's image (some minutes): {}", image.display());
    // One name per image, so that what a killed making has left is in nobody's way.
    let fresh_dir = image.with_extension("new");
    let _ = std::fs::remove_dir_all(&fresh_dir);
    std::fs::create_dir_all(&fresh_dir).map_err(on_file("create", &fresh_dir))?;
    let write = |name: &str, text: &str| {
        let path = fresh_dir.join(name);
        std::fs::write(&path, text).map_err(on_file("write", &path)).map(|()| path)
    };
    write("apt.conf", &format!("APT::Sandbox::User \"root\";\n{settings}"))?;
    let list = write("sources", &sources)?;
    let script = write("image.sh", SCRIPT)?;
    let input = std::fs::File::open(&list).map_err(on_file("read", &list))?;
    run(as_root().arg("sh").arg(script).args([&suite, &packages]).arg(&fresh_dir).stdin(input))?;
    if image.exists() {
        std::fs::remove_dir_all(&image).map_err(on_file("remove", &image))?;
    }
    std::fs::rename(&fresh_dir, &image).map_err(on_file("rename", &fresh_dir))?;
    Ok(image)
}

/// Root of a user namespace with the user's own range of ids; root stays what it is.
fn as_root() -> Command {
    // The script ends with us, by whatever we end.
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    let uid = capture(Command::new("id").arg("-u")).unwrap_or_default();
    if uid.trim() != "0" {
        command.args(["--user", "--map-root-user", "--map-auto"]);
    }
    command.stdin(Stdio::null());
    command
}

/// Debian's release and sources as the host's apt has them, in one-line form.
fn sources() -> Result<(String, String), ChoreFailure> {
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

fn transport() -> Result<String, ChoreFailure> {
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
