//! Taking a kernel's modules over from wherever they come.
//!
//! What comes may be a stranger's: a directory, or the archive in a package. Nothing of it is
//! believed. Only modules and the kernel's own lists of them are taken, as plain files below a
//! directory of banger's own; links are not followed and not made; names, depth, number and size have
//! bounds. Packed modules are unpacked, because a guest's `modprobe` need not know how, and the agent
//! in the initramfs does not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use sha2::{Digest, Sha256};

use crate::packing::{read_bounded, unpacked};

/// Largest module, unpacked. Those with what a debugger wants to know have some tens of MiB.
const MAX_FILE: u64 = 128 << 20;
/// All of them together. Debian's largest kernel has 400 MiB, Ubuntu's a GiB.
const MAX_TOTAL: u64 = 4 << 30;
/// How many there may be. Ubuntu has 7,000.
const MAX_FILES: usize = 30_000;
/// How many other files and directories are passed over.
const MAX_ENTRIES: usize = 300_000;
const MAX_DEPTH: usize = 24;
const MAX_NAME: usize = 200;
/// What beside modules is worth having.
const LISTS: [&str; 3] = [super::BUILT_IN, super::BUILT_IN_INFO, "modules.order"];
/// How modules are packed, by name; which of them it really is, their beginning says.
const PACKED: [&str; 3] = [".gz", ".xz", ".zst"];

/// A directory that is being filled with the modules of a kernel.
#[derive(Debug)]
pub(crate) struct Stage {
    dir: PathBuf,
    bytes: u64,
    entries: usize,
    /// Digest of each file, by path.
    files: BTreeMap<PathBuf, [u8; 32]>,
}

/// Why something could not be taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    /// One of the files, which may be at fault itself.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// All of it together.
    #[error("{0}")]
    TooMuch(String),
}

impl Stage {
    /// Fill the directory `dir`, which is empty or not there.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), bytes: 0, entries: 0, files: BTreeMap::new() }
    }

    /// Whether a file of that path, relative to the directory of a release, is to be offered.
    pub(crate) fn wants(path: &Path) -> bool {
        target_of(path).is_some()
    }

    /// Take a file that [`Stage::wants`].
    pub(crate) fn add(&mut self, path: &Path, contents: impl Read) -> Result<(), StageError> {
        let Some(target) = target_of(path) else { return Ok(()) };
        let failed = |source| StageError::File { path: path.to_owned(), source };
        if self.files.len() >= MAX_FILES {
            return Err(StageError::TooMuch(format!("there are more than {MAX_FILES} modules")));
        }
        let bytes = unpacked(contents).and_then(|it| read_bounded(it, MAX_FILE)).map_err(failed)?;
        self.bytes += bytes.len() as u64;
        if self.bytes > MAX_TOTAL {
            let gib = MAX_TOTAL >> 30;
            return Err(StageError::TooMuch(format!("the modules are larger than {gib} GiB")));
        }
        let file = self.dir.join(&target);
        let written = fs::create_dir_all(file.parent().unwrap_or(&self.dir))
            .and_then(|()| fs::write(&file, &bytes));
        written.map_err(failed)?;
        self.files.insert(target, Sha256::digest(&bytes).into());
        Ok(())
    }

    /// Take what is wanted of a directory, which is that of a release.
    pub(crate) fn add_dir(
        &mut self,
        source: &Path,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), StageError> {
        self.add_below(source, Path::new(""), is_cancelled)
    }

    fn add_below(
        &mut self,
        source: &Path,
        below: &Path,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), StageError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StageError::File { path, source }
        };
        let dir = source.join(below);
        for entry in fs::read_dir(&dir).map_err(failed(&dir))? {
            let entry = entry.map_err(failed(&dir))?;
            self.pass()?;
            let path = below.join(entry.file_name());
            let kind = entry.file_type().map_err(failed(&entry.path()))?;
            if kind.is_dir() && path.components().count() < MAX_DEPTH {
                self.add_below(source, &path, is_cancelled)?;
            } else if kind.is_file() && Self::wants(&path) && !is_cancelled() {
                let file = open_plain(&entry.path()).map_err(failed(&entry.path()))?;
                self.add(&path, file)?;
            }
        }
        Ok(())
    }

    /// Count something that was looked at.
    fn pass(&mut self) -> Result<(), StageError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            let reason = format!("there are more than {MAX_ENTRIES} files and directories");
            return Err(StageError::TooMuch(reason));
        }
        Ok(())
    }

    /// What has been taken, as a digest of paths and unpacked contents.
    pub(crate) fn digest(&self) -> String {
        let mut sha = Sha256::new();
        for (path, digest) in &self.files {
            sha.update(path.as_os_str().as_encoded_bytes());
            sha.update([0]);
            sha.update(digest);
        }
        hex::encode(sha.finalize())
    }
}

/// Open a file that must be one: no link, no pipe that would be waited for.
pub(crate) fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"))
    }
}

/// Where a file goes, without the ending of its packing; None if it is not wanted, or its path is
/// not one that stays where it is put.
fn target_of(path: &Path) -> Option<PathBuf> {
    let mut target = PathBuf::new();
    for component in path.components() {
        let Component::Normal(name) = component else { return None };
        let name = name.to_str().filter(|name| name.len() <= MAX_NAME)?;
        target.push(name);
    }
    let depth = target.components().count();
    let name = target.file_name()?.to_str()?;
    if LISTS.contains(&name) {
        return (depth == 1).then_some(target);
    }
    let plain = PACKED.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
    let is_module = plain.len() > 3 && plain.ends_with(".ko") && plain.is_ascii();
    let plain = plain.to_owned();
    (is_module && depth <= MAX_DEPTH).then(|| target.with_file_name(plain))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use banger_host::command::{Cancel, Tool};

    use super::*;
    use crate::packing::tests::packed;

    fn files_below(dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            assert!(!path.is_symlink(), "{}", path.display());
            if path.is_dir() {
                found.extend(files_below(&path));
            } else {
                found.push(path.display().to_string());
            }
        }
        found.sort();
        found
    }

    fn stage(source: &Path) -> (tempfile::TempDir, Result<Stage, StageError>) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut stage = Stage::new(dir.path());
        let done = stage.add_dir(source, &|| false);
        (dir, done.map(|()| stage))
    }

    fn relative(dir: &Path) -> Vec<String> {
        let prefix = format!("{}/", dir.display());
        files_below(dir).iter().map(|path| path.replacen(&prefix, "", 1)).collect()
    }

    #[test]
    fn packed_modules_come_out_plain_and_the_same_whatever_packed_them() {
        let module = b"\x7fELF a module".repeat(100);
        let mut digests = Vec::new();
        for (packer, ending) in [("gzip", ".gz"), ("xz", ".xz"), ("zstd", ".zst"), ("", "")] {
            let source = tempfile::tempdir().expect("a directory");
            let dir = source.path().join("kernel/fs");
            fs::create_dir_all(&dir).expect("ours");
            let bytes = if packer.is_empty() { module.clone() } else { packed(packer, &module) };
            fs::write(dir.join(format!("ext4.ko{ending}")), bytes).expect("ours");
            fs::write(source.path().join("modules.builtin"), "x").expect("ours");
            fs::write(source.path().join("modules.dep.bin"), "not ours").expect("ours");
            fs::write(dir.join("README"), "not a module").expect("ours");
            let (dir, stage) = stage(source.path());
            digests.push(stage.expect("staged").digest());
            assert_eq!(relative(dir.path()), ["kernel/fs/ext4.ko", "modules.builtin"]);
            assert_eq!(fs::read(dir.path().join("kernel/fs/ext4.ko")).expect("there"), module);
        }
        digests.dedup();
        assert_eq!(digests.len(), 1);
    }

    #[test]
    fn links_and_pipes_are_passed_over() {
        let source = tempfile::tempdir().expect("a directory");
        let secret = tempfile::tempdir().expect("a directory");
        fs::create_dir(source.path().join("kernel")).expect("ours");
        fs::write(secret.path().join("secret.ko"), "secret").expect("ours");
        symlink(secret.path(), source.path().join("build")).expect("ours");
        symlink(secret.path().join("secret.ko"), source.path().join("a.ko")).expect("ours");
        symlink("..", source.path().join("kernel/up")).expect("ours");
        Tool::new("mkfifo").arg(source.path().join("b.ko")).run(&Cancel::new()).expect("coreutils");
        let (dir, stage) = stage(source.path());
        stage.expect("nothing to take");
        assert!(files_below(dir.path()).is_empty());
        let error = open_plain(&source.path().join("b.ko")).expect_err("a pipe");
        assert_eq!(error.to_string(), "it is not a file");
        open_plain(&source.path().join("a.ko")).expect_err("a link");
    }

    #[test]
    fn paths_that_lead_away_are_not_taken() {
        for path in ["../a.ko", "/etc/a.ko", "a/../../b.ko", "a/modules.builtin", "a.ko.bz2", ".ko"]
        {
            assert_eq!(target_of(Path::new(path)), None, "{path}");
        }
        let deep = format!("{}a.ko", "d/".repeat(MAX_DEPTH));
        assert_eq!(target_of(Path::new(&deep)), None);
        let long = format!("{}.ko", "a".repeat(MAX_NAME));
        assert_eq!(target_of(Path::new(&long)), None);
        let good = target_of(Path::new("extra/a.ko.xz"));
        assert_eq!(good.as_deref(), Some(Path::new("extra/a.ko")));
    }

    #[test]
    fn damage_and_bombs_are_errors_that_name_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut stage = Stage::new(dir.path());
        let cut = &packed("xz", b"a module")[..20];
        let error = stage.add(Path::new("kernel/a.ko.xz"), cut).expect_err("it is cut off");
        assert_eq!(error.to_string(), "kernel/a.ko.xz");
        let bomb = packed("zstd", &vec![0; 130 << 20]);
        let error = stage.add(Path::new("kernel/b.ko.zst"), &bomb[..]).expect_err("a bomb");
        let source = std::error::Error::source(&error).expect("a reason").to_string();
        assert_eq!(source, "it is larger than 128 MiB");
    }
}
