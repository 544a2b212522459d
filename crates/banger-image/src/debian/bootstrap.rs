//! A root filesystem out of Debian packages, by mmdebstrap.
//!
//! mmdebstrap runs as root of a PID namespace of its own; for an ordinary user also of a user
//! namespace with the user's subordinate ids, where its root mode does all that its unshare mode
//! would. It leaves a directory; [`crate::rootfs`] makes a disk of that. A tar in between would
//! write every byte twice more.
//!
//! The host's mirrors and proxies may have passwords in them, so they are passed through stdin and
//! files of a private directory, never as arguments, and [`FINISH`] takes them out of the result.

use banger_api::step;
use std::fs;
use std::path::{Path, PathBuf};

use banger_host::command::{Cancel, Isolation, Line, Tool};

use super::progress::BootstrapProgress;
use crate::apt::{Source, deb822, debian_sources, keyring, one_line, transport_settings};
use crate::catalog::DebianImage;
use crate::error::PullError;
use crate::stage::{Reporter, Stage};

/// Files made while packages are installed get this time (Debian 12's first release), as far as
/// tools heed `SOURCE_DATE_EPOCH`: so the same packages give the same root filesystem.
const SOURCE_DATE_EPOCH: &str = "1686355200";

/// Takes out of a fresh root filesystem what is the host's or must be each VM's own, and puts in
/// the package sources, which it reads from stdin. Runs in a directory that only Debian's own
/// packages have written to.
const FINISH: &str = r#"
set -eu
cd -- "$1"
# of the host
rm -f etc/resolv.conf etc/hostname etc/apt/sources.list
rm -f etc/apt/apt.conf.d/99mmdebstrap etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -rf etc/apt/sources.list.d/* etc/apt/auth.conf etc/apt/auth.conf.d/*
# of each VM
rm -f etc/ssh/ssh_host_*_key etc/ssh/ssh_host_*_key.pub var/lib/dbus/machine-id
rm -f var/lib/systemd/random-seed var/lib/systemd/credential.secret
: > etc/machine-id
chmod 0444 etc/machine-id
# of the making
rm -rf var/lib/apt/lists/* var/cache/apt/* var/cache/debconf/*-old var/lib/dpkg/*-old
rm -rf tmp/* tmp/.[!.]* var/tmp/* run/* root/.bash_history
find var/log -type f -delete
find dev -mindepth 1 -delete
find . -xdev '(' -type b -o -type c -o -type s -o -type p ')' -delete
# so that apt works, and sudo finds the host's own name
cat > etc/apt/sources.list.d/debian.sources
chmod 0644 etc/apt/sources.list.d/debian.sources
[ -e etc/hosts ] || printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n' > etc/hosts
chmod 0755 .
"#;

/// Build the root filesystem of `image` in a new directory under the empty directory `work`.
pub(crate) fn bootstrap(
    image: &DebianImage,
    work: &Path,
    reporter: &mut Reporter<'_>,
    cancel: &Cancel,
) -> Result<PathBuf, PullError> {
    let mut stage = reporter.stage(step::IMAGE_BOOTSTRAP, "building the Debian root filesystem")?;
    let sources = debian_sources(&image.release, cancel)?;
    let root = work.join("root");
    fs::create_dir(&root).map_err(PullError::io("create", &root))?;
    mmdebstrap(image, &sources, work, &mut stage, cancel)?;
    let keyring = keyring()?;
    Tool::new("sh")
        .args(["-c", FINISH, "finish"])
        .arg(&root)
        .stdin(deb822(&sources, keyring))
        .isolation(Isolation::Root)
        .run(cancel)
        .map_err(PullError::tool("finishing the root filesystem"))?;
    Ok(root)
}

fn mmdebstrap(
    image: &DebianImage,
    sources: &[Source],
    work: &Path,
    stage: &mut Stage<'_, '_>,
    cancel: &Cancel,
) -> Result<(), PullError> {
    // The directory is not for other users, so apt's own user could not write there.
    let settings = format!("APT::Sandbox::User \"root\";\n{}", transport_settings(cancel)?);
    let settings_file = work.join("apt.conf");
    fs::write(&settings_file, settings).map_err(PullError::io("write", &settings_file))?;
    let tool = Tool::new("mmdebstrap")
        .args(["--verbose", "--mode=root", "--variant=minbase", "--format=directory"])
        // A user namespace may not mount a sysfs that is the host's; no package needs it. Device
        // nodes come from the guest's own devtmpfs.
        .arg("--skip=chroot/mount/sys,output/dev")
        .args(["--architectures=amd64", "--components=main"])
        .arg(format!("--aptopt={}", settings_file.display()))
        // What a crash leaves of it is thrown away, so nothing need be on the disk in between.
        .arg("--dpkgopt=force-unsafe-io")
        .arg(format!("--include={}", image.packages.join(",")))
        .arg(&image.release)
        .arg(work.join("root"))
        .arg("-")
        .stdin(one_line(sources, keyring()?))
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("TMPDIR", work)
        .isolation(Isolation::Root)
        .stdout_lines();
    let mut progress = BootstrapProgress::default();
    tool.run_watched(cancel, &mut |line| {
        if let Line::Stderr(line) = line
            && let Some((percent, what)) = progress.line(line)
        {
            stage.percent(percent, &what);
        }
    })
    .map_err(PullError::tool("building the Debian root filesystem"))?;
    Ok(())
}
