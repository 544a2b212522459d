//! virtme-ng: `vng --exec true`, with banger's kernel.

use std::path::Path;
use std::process::Command;

use super::Stage;
use super::contender::{Contender, Once, Reason, Side};
use super::provision::{self, Package};
use super::trial;
use crate::failure::run;
use crate::tree;

/// With a small Debian as its root, not the machine's: what is installed here does not count then.
pub(super) const VIRTME_NG: Contender =
    Contender { name: "virtme-ng 1.42", side: Side::Peer, every: 5, prepare };

const REQUIREMENT: &str = "virtme-ng==1.42";
/// Debian's cloud kernel has no 9p, so the guest's root comes through virtiofs; the virtiofsd that
/// Debian 12 has is an older one, of QEMU, which virtme-ng does not speak to.
const VIRTIOFSD: &str = "virtiofsd@1.14.0";
/// Where Debian 13 has the right one.
const VIRTIOFSD_PACKAGED: &str = "/usr/libexec/virtiofsd";
const PACKAGES: [Package; 2] =
    [Package::new("busybox", "busybox-static"), Package::new("modprobe", "kmod")];
const VIRTIOFSD_PACKAGES: [Package; 2] = [
    Package::new("/usr/include/seccomp.h", "libseccomp-dev"),
    Package::new("/usr/include/cap-ng.h", "libcap-ng-dev"),
];

fn prepare(stage: &Stage) -> Result<Once<'_>, Reason> {
    provision::ensure_packages(&PACKAGES)?;
    let venv = provision::ensure_venv(stage, REQUIREMENT)?;
    let virtiofsd = ensure_virtiofsd(stage)?;
    let root = provision::ensure_debian_root(stage)?;
    let home = stage.cache.join("virtme-ng-home");
    std::fs::create_dir_all(&home).map_err(crate::failure::on_file("create", &home))?;
    let release = &stage.spec.kernel_release;
    let mut start = Command::new(venv.join("bin/vng"));
    start.env("HOME", home).env("PATH", provision::path_with(&[venv.join("bin"), virtiofsd]));
    start.arg("--quiet").arg("--run").arg(root.join(format!("boot/vmlinuz-{release}")));
    // Else it looks for the directory we are in inside the guest's root, and gives up.
    start.arg("--root").arg(&root).arg("--cwd").arg(&root);
    start.args(["--user", "root", "--disable-monitor"]);
    start.args(["--cpus", &stage.spec.cpus.to_string()]);
    start.args(["--memory", &format!("{}M", stage.spec.memory_mib)]);
    if !stage.has_kvm() {
        start.arg("--disable-kvm");
    }
    start.args(["--exec", "true"]);
    Ok(Box::new(move || Ok(trial::run(&start)?.took)))
}

/// The directory in which virtme-ng finds a virtiofsd that it can speak to.
fn ensure_virtiofsd(stage: &Stage) -> Result<std::path::PathBuf, Reason> {
    let packaged = Path::new(VIRTIOFSD_PACKAGED);
    if packaged.exists() {
        return Ok(packaged.with_file_name(""));
    }
    provision::ensure_packages(&VIRTIOFSD_PACKAGES)?;
    let made = provision::ensure_made(&stage.cache.join(VIRTIOFSD), |dir| {
        eprintln!("building {VIRTIOFSD} for virtme-ng (a minute or two)");
        let target = stage.cache.join("virtiofsd-build");
        let mut cargo = tree::cargo();
        cargo.args(["install", "-q", "--locked", VIRTIOFSD, "--root"]).arg(dir);
        run(cargo.arg("--target-dir").arg(&target))?;
        std::fs::remove_dir_all(&target).map_err(crate::failure::on_file("remove", &target))
    })?;
    Ok(made.join("bin"))
}
