//! The modules of one kernel and how they depend on each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::elf::{ModuleInfo, module_info, normal_name};

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
    /// Names of what is part of the kernel itself.
    pub(super) builtin: BTreeSet<String>,
}

impl ModuleSet {
    /// Read the modules in `dir`, which is `…/lib/modules/<release>`.
    pub(crate) fn read(dir: &Path) -> io::Result<Self> {
        let builtin = fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default();
        let mut set = Self {
            dir: dir.to_owned(),
            modules: BTreeMap::new(),
            builtin: builtin.lines().filter_map(|line| name_of(Path::new(line))).collect(),
        };
        set.read_dir(&dir.join("kernel"))?;
        Ok(set)
    }

    fn read_dir(&mut self, dir: &Path) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.read_dir(&path)?;
                continue;
            }
            let Some(name) = name_of(&path) else { continue };
            let info = module_info(&fs::read(&path)?).ok_or_else(|| {
                io::Error::other(format!("{} is no kernel module", path.display()))
            })?;
            let path = path.strip_prefix(&self.dir).unwrap_or(&path).to_string_lossy().into_owned();
            self.modules.insert(name, Module { path, info });
        }
        Ok(())
    }

    /// The files of the modules `wanted` and of all they need, each after what it needs. What is
    /// built into the kernel needs no file. A wanted module that the kernel has not at all is an
    /// error, unless its name ends in `?`.
    pub(crate) fn load_order(&self, wanted: &[&str]) -> Result<Vec<(String, PathBuf)>, String> {
        let mut order = Vec::new();
        for name in wanted {
            let (name, optional) = match name.strip_suffix('?') {
                Some(name) => (name, true),
                None => (*name, false),
            };
            if optional && !self.modules.contains_key(name) {
                continue;
            }
            self.visit(name, &mut order, 0)?;
        }
        Ok(order.into_iter().map(|name| (name.to_owned(), self.file(name))).collect())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.modules.get(name).map_or_else(PathBuf::new, |module| self.dir.join(&module.path))
    }

    /// Put `name` into the order, after all that it depends on.
    fn visit<'a>(
        &'a self,
        name: &str,
        order: &mut Vec<&'a str>,
        depth: usize,
    ) -> Result<(), String> {
        if order.contains(&name) || self.builtin.contains(name) {
            return Ok(());
        }
        let (name, module) = self
            .modules
            .get_key_value(name)
            .ok_or_else(|| format!("the kernel has no module {name}"))?;
        // Deeper than there are modules is a circle.
        if depth > self.modules.len() {
            return Err(format!("the module {name} depends on itself"));
        }
        for dependency in &module.info.depends {
            self.visit(dependency, order, depth + 1)?;
        }
        order.push(name);
        Ok(())
    }

    /// What must be loaded before `name`, in the order in which `modules.dep` lists it: the reverse
    /// of the order of loading.
    pub(super) fn dependencies(&self, name: &str) -> Vec<&Module> {
        let mut order = Vec::new();
        // A module whose dependencies are incomplete can be listed; modprobe will say so.
        let _ = self.visit(name, &mut order, 0);
        let needed = order.into_iter().filter(|other| *other != name).rev();
        needed.filter_map(|other| self.modules.get(other)).collect()
    }
}

/// The name of the module in a file, None if the file is none. Compressed modules are not known
/// here: Debian 12 has none.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".ko")?;
    Some(normal_name(name))
}

#[cfg(test)]
pub(super) mod tests {
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
        fs::write(dir.path().join("modules.builtin"), builtin).expect("a file");
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
    fn what_is_missing_is_named_unless_optional() {
        assert_eq!(order(&["virtio_rng?"]), Ok(Vec::new()));
        assert_eq!(order(&["virtio_rng"]), Err("the kernel has no module virtio_rng".to_owned()));
    }

    #[test]
    fn a_circle_is_an_error() {
        assert!(order(&["ring_a"]).expect_err("a circle").contains("depends on itself"));
    }
}
