//! What peers need: Debian's packages, Python's, and a small Debian to run. Made once, kept below
//! `target/bench`; removing that makes all of it anew.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_testkit::Account;

use super::Stage;
use super::contender::Reason;
use crate::failure::{ChoreFailure, on_file, run};
use crate::{apt, tree};

/// Where Debian's packages put programs; an ordinary user's PATH lacks some.
const PROGRAM_DIRS: [&str; 6] =
    ["/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"];
/// What the guest's root has beyond a minimal Debian: virtme-ng's ports are found by udev.
const GUEST_PACKAGES: &str = "udev,kmod";
/// The only kernel modules in it. With all of them its udev loads drivers for everything there is,
/// which took virtme-ng four seconds more.
const GUEST_MODULES: [&str; 4] =
    ["kernel/fs/fuse", "kernel/fs/overlayfs", "kernel/drivers/virtio", "kernel/drivers/char"];
/// What depmod wants to know beside the modules.
const MODULE_LISTS: [&str; 3] = ["modules.builtin", "modules.builtin.modinfo", "modules.order"];

/// A package of Debian.
#[derive(Debug, Clone, Copy)]
pub(super) struct Package {
    /// A program of it, or the path of a file: where that is, the package is not missing.
    sign: &'static str,
    name: &'static str,
}

impl Package {
    pub(super) const fn new(sign: &'static str, name: &'static str) -> Self {
        Self { sign, name }
    }

    fn is_missing(&self) -> bool {
        if self.sign.starts_with('/') {
            return !Path::new(self.sign).exists();
        }
        find(self.sign).is_none()
    }
}

/// Where a program is.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    PROGRAM_DIRS.iter().map(|dir| Path::new(dir).join(program)).find(|path| path.exists())
}

/// A `PATH` that begins with those directories.
pub(super) fn path_with(first: &[PathBuf]) -> OsString {
    let usual = PROGRAM_DIRS.iter().map(PathBuf::from);
    let all = first.iter().cloned().chain(usual);
    std::env::join_paths(all).expect("no directory of ours has a colon in its name")
}

/// Installs what is missing, as script/quickstart does: without starting services.
pub(super) fn ensure_packages(packages: &[Package]) -> Result<(), Reason> {
    let missing = packages.iter().filter(|package| package.is_missing());
    let missing: Vec<&str> = missing.map(|package| package.name).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

fn install(missing: &[&str]) -> Result<(), Reason> {
    let names = missing.join(" ");
    if !Account::current().is_root() || find("apt-get").is_none() {
        return Err(Reason::new(&format!("not installed: apt-get install {names}")));
    }
    eprintln!("installing {names}");
    let script = ". script/host.sh; apt-get -qq update && install_stopped \"$@\"";
    let mut bash = Command::new("bash");
    bash.current_dir(tree::root()).args(["-c", script, "bash"]).args(missing);
    run(&mut bash).map_err(|_| Reason::new(&format!("cannot be installed: {names}")))
}

/// A virtual environment of Python with one package in it.
pub(super) fn ensure_venv(stage: &Stage, requirement: &str) -> Result<PathBuf, Reason> {
    // Debian's Python has the module, but not what fills an environment, unless that is installed.
    let mut python = Command::new("python3");
    if run(python.args(["-c", "import ensurepip"])).is_err() {
        install(&["python3-venv"])?;
    }
    ensure_made(&stage.cache.join(format!("venv-{requirement}")), |dir| {
        eprintln!("installing {requirement} into {}", dir.display());
        run(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
        let mut pip = Command::new(dir.join("bin/pip"));
        run(pip.args(["install", "-q", "--disable-pip-version-check", requirement]))
    })
}

/// Makes a directory unless it was made before. One whose making was cut short is made anew.
pub(super) fn ensure_made(
    dir: &Path,
    make: impl FnOnce(&Path) -> Result<(), ChoreFailure>,
) -> Result<PathBuf, Reason> {
    // Beside it: some of them become a guest's root. And not renamed into place: the scripts of a
    // virtual environment know where they are.
    let mark = PathBuf::from(format!("{}.made", dir.display()));
    if !mark.exists() {
        if dir.exists() {
            std::fs::remove_dir_all(dir).map_err(on_file("remove", dir))?;
        }
        std::fs::create_dir_all(dir).map_err(on_file("create", dir))?;
        make(dir)?;
        std::fs::write(&mark, "").map_err(on_file("write", &mark))?;
    }
    Ok(dir.to_owned())
}

/// The option with which mmdebstrap reaches mirrors as the host's apt does.
pub(super) fn apt_settings(dir: &Path) -> Result<OsString, ChoreFailure> {
    let file = dir.join("apt.conf");
    std::fs::write(&file, apt::transport()?).map_err(on_file("write", &file))?;
    let mut option = OsString::from("--aptopt=");
    option.push(file);
    Ok(option)
}

/// A small Debian with banger's kernel and the modules that a peer's boot needs, as a directory.
pub(super) fn ensure_debian_root(stage: &Stage) -> Result<PathBuf, Reason> {
    ensure_packages(&[
        Package::new("mmdebstrap", "mmdebstrap"),
        Package::new("depmod", "kmod"),
        Package::new("debugfs", "e2fsprogs"),
    ])?;
    let release = &stage.spec.kernel_release;
    let Some(modules) = &stage.spec.modules_image else {
        return Err(Reason::new("banger's kernel has no modules"));
    };
    let made = ensure_made(&stage.cache.join(format!("debian-{release}")), |dir| {
        let root = dir.join("root");
        make_debian(dir, &root)?;
        take_modules(Path::new(modules), dir, &root.join("lib/modules").join(release))?;
        let mut depmod = Command::new("depmod");
        run(depmod.env("PATH", path_with(&[])).arg("-b").arg(&root).arg(release))?;
        let kernel = Path::new(&stage.spec.kernel).with_file_name("vmlinuz");
        put(&kernel, &root.join(format!("boot/vmlinuz-{release}")))
    })?;
    Ok(made.join("root"))
}

/// A minimal Debian whose files all belong to us: whoever we are, we must be able to share them.
fn make_debian(dir: &Path, root: &Path) -> Result<(), ChoreFailure> {
    let (release, sources) = apt::sources()?;
    let archive = dir.join("root.tar");
    let mut make = Command::new("mmdebstrap");
    make.args(["--quiet", "--variant=minbase", "--format=tar"]).arg(apt_settings(dir)?);
    make.arg("--aptopt=APT::Install-Recommends \"false\"");
    make.arg(format!("--include={GUEST_PACKAGES}")).arg(release).arg(&archive);
    run(make.args(sources.lines()))?;
    std::fs::create_dir_all(root).map_err(on_file("create", root))?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--exclude=./dev/*", "--file"]).arg(&archive);
    run(tar.arg("--directory").arg(root))?;
    std::fs::remove_file(&archive).map_err(on_file("remove", &archive))
}

/// Takes some modules out of the disk on which banger gives them to its guests.
fn take_modules(disk: &Path, dir: &Path, into: &Path) -> Result<(), ChoreFailure> {
    let all = dir.join("modules");
    std::fs::create_dir_all(&all).map_err(on_file("create", &all))?;
    let mut debugfs = Command::new("debugfs");
    debugfs.env("PATH", path_with(&[])).current_dir(dir);
    run(debugfs.args(["-R", "rdump / modules"]).arg(disk))?;
    for part in GUEST_MODULES.iter().chain(&MODULE_LISTS) {
        let (from, to) = (all.join(part), into.join(part));
        let above = to.parent().expect("it is in a directory");
        std::fs::create_dir_all(above).map_err(on_file("create", above))?;
        std::fs::rename(&from, &to).map_err(on_file("rename", &from))?;
    }
    std::fs::remove_dir_all(&all).map_err(on_file("remove", &all))
}

fn put(from: &Path, to: &Path) -> Result<(), ChoreFailure> {
    let bytes = std::fs::read(from).map_err(on_file("read", from))?;
    std::fs::write(to, bytes).map_err(on_file("write", to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_kept_and_what_was_cut_short_is_made_anew() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("root-1.0");
        let fail = |dir: &Path| {
            std::fs::write(dir.join("half"), "").unwrap();
            Err(ChoreFailure::Lost("cut short"))
        };
        assert_eq!(ensure_made(&dir, fail), Err(Reason::new("cut short")));
        let make = |dir: &Path| {
            assert!(!dir.join("half").exists());
            std::fs::write(dir.join("whole"), "").map_err(on_file("write", dir))
        };
        assert_eq!(ensure_made(&dir, make), Ok(dir.clone()));
        assert_eq!(ensure_made(&dir, |_| panic!("it is there")), Ok(dir.clone()));
        assert!(dir.join("whole").exists());
    }

    #[test]
    fn a_package_is_missing_when_its_sign_is() {
        assert!(!Package::new("sh", "dash").is_missing());
        assert!(Package::new("no-such-program", "x").is_missing());
        assert!(Package::new("/usr/include/no-such-file.h", "x").is_missing());
    }
}
