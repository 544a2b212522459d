//! The modules of one kernel and how they depend on each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::elf::{ModuleInfo, module_info, normal_name};

/// The list of what is part of the kernel itself.
pub(super) const BUILT_IN: &str = "modules.builtin";
/// How long a chain of dependencies may be. The longest in Debian has nine modules.
const MAX_CHAIN: usize = 64;
/// How many steps from module to module it may take to find all that one needs. The most in Debian
/// are some hundreds.
const MAX_STEPS: usize = 10_000;
/// How much all modules together may say about themselves. Ubuntu's say 6 MiB.
const MAX_INFO: usize = 128 << 20;

/// A module of a kernel.
#[derive(Debug, Clone)]
pub(super) struct Module {
    /// Its file, relative to the kernel's directory.
    pub(super) path: String,
    pub(super) info: ModuleInfo,
}

/// All modules of a kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModuleSet {
    /// The directory, `…/lib/modules/<release>`.
    pub(super) dir: PathBuf,
    /// By name, as the kernel knows it.
    pub(super) modules: BTreeMap<String, Module>,
    /// Names of what is part of the kernel itself; None if nothing lists it.
    pub(super) built_in: Option<BTreeSet<String>>,
}

impl ModuleSet {
    /// Read the modules in `dir`, which is `…/lib/modules/<release>` as [`super::Stage`] leaves it.
    pub(crate) fn read(dir: &Path) -> io::Result<Self> {
        let built_in = match fs::read_to_string(dir.join(BUILT_IN)) {
            Ok(text) => Some(text.lines().filter_map(|line| name_of(Path::new(line))).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut set = Self { dir: dir.to_owned(), modules: BTreeMap::new(), built_in };
        set.read_dir(dir, &mut 0)?;
        Ok(set)
    }

    fn read_dir(&mut self, dir: &Path, info_bytes: &mut usize) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.read_dir(&path, info_bytes)?;
                continue;
            }
            let Some(name) = name_of(&path) else { continue };
            let path = path.strip_prefix(&self.dir).unwrap_or(&path).to_string_lossy().into_owned();
            let info = module_info(&fs::read(entry.path())?)
                .ok_or_else(|| io::Error::other(format!("{path} is no kernel module")))?;
            *info_bytes += info.bytes();
            if *info_bytes > MAX_INFO {
                return Err(io::Error::other("they say too much about themselves"));
            }
            self.modules.insert(name, Module { path, info });
        }
        Ok(())
    }

    /// Whether there is no module at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// Whether there is a module of that name.
    pub(crate) fn has_module(&self, name: &str) -> bool {
        self.modules.contains_key(name)
    }

    /// Whether that is part of the kernel itself; None if nothing tells.
    pub(crate) fn is_built_in(&self, name: &str) -> Option<bool> {
        self.built_in.as_ref().map(|names| names.contains(name))
    }

    /// The kernel that a module was built for, if it says so.
    pub(crate) fn release_of(&self, name: &str) -> Option<&str> {
        self.modules.get(name)?.info.release.as_deref()
    }

    /// The files of the modules `wanted` and of all they need, each after what it needs. What is
    /// built into the kernel needs no file. A wanted module that the kernel has not at all is an
    /// error.
    pub(crate) fn load_order(&self, wanted: &[&str]) -> Result<Vec<(String, PathBuf)>, String> {
        let mut walk = Walk::new(self, Softdeps::Follow);
        for name in wanted {
            walk.visit(name, 0)?;
        }
        Ok(walk.order.into_iter().map(|name| (name.to_owned(), self.file(name))).collect())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.modules.get(name).map_or_else(PathBuf::new, |module| self.dir.join(&module.path))
    }

    /// What must be loaded before `name`, in the order in which `modules.dep` lists it: the reverse
    /// of the order of loading.
    pub(super) fn dependencies(&self, name: &str) -> Vec<&Module> {
        let mut walk = Walk::new(self, Softdeps::Ignore);
        // A module whose dependencies are incomplete can be listed; modprobe will say so.
        let _ = walk.visit(name, 0);
        let needed = walk.order.into_iter().filter(|other| *other != name).rev();
        needed.filter_map(|other| self.modules.get(other)).collect()
    }

    /// A module that answers to `wanted`: the generic one rather than one that only some processors
    /// can use.
    fn provider(&self, wanted: &str) -> Option<&str> {
        if let Some((name, _)) = self.modules.get_key_value(&normal_name(wanted)) {
            return Some(name);
        }
        let answers = |(_, module): &(&String, &Module)| {
            module.info.aliases.iter().any(|alias| alias == wanted)
        };
        let mut all = self.modules.iter().filter(answers).map(|(name, _)| name.as_str());
        all.clone().find(|name| name.ends_with("_generic")).or_else(|| all.next())
    }
}

/// A walk from modules to all that they need.
struct Walk<'a> {
    set: &'a ModuleSet,
    softdeps: Softdeps,
    /// Each after what it needs.
    order: Vec<&'a str>,
    seen: BTreeSet<&'a str>,
    steps: usize,
}

impl<'a> Walk<'a> {
    fn new(set: &'a ModuleSet, softdeps: Softdeps) -> Self {
        Self { set, softdeps, order: Vec::new(), seen: BTreeSet::new(), steps: 0 }
    }

    /// Put `name` into the order, after all that it depends on.
    fn visit(&mut self, name: &str, depth: usize) -> Result<(), String> {
        self.steps += 1;
        if depth > MAX_CHAIN || self.steps > MAX_STEPS {
            return Err(format!("the module {name} depends on itself"));
        }
        if self.seen.contains(name) || self.set.is_built_in(name) == Some(true) {
            return Ok(());
        }
        let (name, module) = self
            .set
            .modules
            .get_key_value(name)
            .ok_or_else(|| format!("the kernel has no module {name}"))?;
        if self.softdeps == Softdeps::Follow {
            for wanted in module.info.wanted_before() {
                if let Some(provider) = self.set.provider(wanted) {
                    self.visit(provider, depth + 1)?;
                }
            }
        }
        for dependency in &module.info.depends {
            self.visit(dependency, depth + 1)?;
        }
        // What it would like before it may have needed it.
        if self.seen.insert(name) {
            self.order.push(name);
        }
        Ok(())
    }
}

/// Whether what a module would like to be loaded before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Softdeps {
    /// In an initramfs, where nothing loads it later.
    Follow,
    /// For `modprobe`, which has a list of its own for these.
    Ignore,
}

/// The name of the module in a file, None if the file is none.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".ko")?;
    Some(normal_name(name))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::elf::tests::module_file;
    use super::*;

    /// A directory with modules: path and `.modinfo` of each.
    pub(crate) fn kernel_dir(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (path, modinfo) in modules {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("not the root")).expect("a directory");
            fs::write(&path, module_file(modinfo.as_bytes())).expect("a file");
        }
        fs::write(dir.path().join(BUILT_IN), builtin).expect("a file");
        dir
    }

    fn virtio() -> tempfile::TempDir {
        kernel_dir(
            &[
                ("kernel/drivers/virtio/virtio.ko", "depends=virtio_ring\0"),
                ("kernel/drivers/virtio/virtio_ring.ko", "depends=\0"),
                ("kernel/drivers/block/virtio_blk.ko", "depends=virtio,virtio_ring\0"),
                ("kernel/drivers/md/dm-mod.ko", "depends=\0"),
                ("kernel/drivers/md/dm-snapshot.ko", "depends=dm-mod,ext4\0"),
                ("kernel/a/ring-a.ko", "depends=ring-b\0"),
                ("kernel/a/ring-b.ko", "depends=ring_a\0"),
                ("updates/xfs.ko", "depends=\0softdep=pre: crc32c nothing post: late\0"),
                ("kernel/crypto/crc32c-cpu.ko", "depends=\0alias=crc32c\0"),
                ("kernel/crypto/crc32c_generic.ko", "depends=virtio_ring\0alias=crc32c\0"),
                ("kernel/late.ko", "depends=\0"),
            ],
            "kernel/fs/ext4/ext4.ko\n",
        )
    }

    fn order(wanted: &[&str]) -> Result<Vec<String>, String> {
        let dir = virtio();
        let set = ModuleSet::read(dir.path()).expect("it can be read");
        Ok(set.load_order(wanted)?.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn dependencies_are_loaded_first_and_once() {
        assert_eq!(
            order(&["virtio_blk", "dm_snapshot", "ext4"]).expect("all there"),
            ["virtio_ring", "virtio", "virtio_blk", "dm_mod", "dm_snapshot"]
        );
    }

    #[test]
    fn what_a_module_would_like_before_it_is_loaded_too() {
        let want = ["virtio_ring", "crc32c_generic", "xfs"];
        assert_eq!(order(&["xfs"]).expect("all there"), want);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(order(&["virtio_rng"]), Err("the kernel has no module virtio_rng".to_owned()));
    }

    #[test]
    fn a_circle_is_an_error() {
        assert!(order(&["ring_a"]).expect_err("a circle").contains("depends on itself"));
    }

    #[test]
    fn a_chain_without_end_is_an_error_and_no_overflow() {
        let modules: Vec<(String, String)> = (0..5000)
            .map(|n| (format!("kernel/m{n}.ko"), format!("depends=m{}\0", n + 1)))
            .collect();
        let modules: Vec<(&str, &str)> =
            modules.iter().map(|(path, info)| (path.as_str(), info.as_str())).collect();
        let dir = kernel_dir(&modules, "");
        let set = ModuleSet::read(dir.path()).expect("it can be read");
        assert!(set.load_order(&["m0"]).is_err());
        assert!(set.dependencies("m0").len() < MAX_CHAIN * 2);
    }

    #[test]
    fn what_is_built_in_is_known_if_it_is_listed() {
        let dir = virtio();
        let set = ModuleSet::read(dir.path()).expect("it can be read");
        assert_eq!(set.is_built_in("ext4"), Some(true));
        assert_eq!(set.is_built_in("virtio_blk"), Some(false));
        fs::remove_file(dir.path().join(BUILT_IN)).expect("ours");
        let set = ModuleSet::read(dir.path()).expect("it can be read");
        assert_eq!(set.is_built_in("ext4"), None);
    }
}
