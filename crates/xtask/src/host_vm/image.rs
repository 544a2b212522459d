//! The machine's disk, kernel and initramfs, made from the host's own package sources and kept.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::home;
use crate::apt;
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
    let (suite, sources) = apt::sources()?;
    let settings = apt::transport()?;
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
