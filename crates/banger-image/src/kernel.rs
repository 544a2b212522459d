//! From a kernel and its modules to what a VM is started with.

mod config;
mod image;
mod needs;
pub(crate) mod source;
mod vmlinux;

use banger_api::step;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use banger_api::kernel::Kernel;
use banger_host::command::Cancel;
use banger_host::files::allocated_bytes;
use serde::{Deserialize, Serialize};

use crate::bzimage::is_bzimage;
use crate::error::PullError;
use crate::ext4;
use crate::modules::{ModuleSet, write_indexes};
use crate::rootfs::{DiskPlan, make_disk, uuid_of};
use crate::stage::Reporter;
use needs::{Facts, judge};
use source::KernelSource;

/// Version of the way from a package to a kernel. A change makes other kernels out of the same
/// packages.
pub(crate) const EXTRACTOR_VERSION: u32 = 2;
pub(crate) const MANIFEST: &str = "kernel.json";
const VMLINUZ: &str = "vmlinuz";
const VMLINUX: &str = "vmlinux";
const MODULES: &str = "modules.ext4";

/// A fuzz target: what a kernel says of itself.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_image(data: &[u8]) {
    if let Ok(image) = image::KernelImage::read(data) {
        assert!(vmlinux::is_release(&image.release), "it becomes the name of a directory");
        let _ = image.vmlinux.has_pvh();
        if let Some(config) = image.vmlinux.config() {
            let _ = config::Config::parse(&config);
        }
    }
}

/// The kernel's manifest: what it is and which files it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    #[serde(flatten)]
    pub(crate) kernel: Kernel,
    pub(crate) files: KernelFiles,
}

/// The files of a kernel, relative to its directory. One of the first two is always there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KernelFiles {
    /// The kernel as it came, if that was a bzImage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vmlinuz: Option<FileRecord>,
    /// The uncompressed kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vmlinux: Option<FileRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) modules_image: Option<FileRecord>,
    /// In the order of loading.
    pub(crate) boot_modules: Vec<FileRecord>,
}

/// A file and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

impl KernelFiles {
    /// What a monitor starts: the uncompressed kernel, where there is one.
    pub(crate) fn boot_file(&self) -> Option<&FileRecord> {
        self.vmlinux.as_ref().or(self.vmlinuz.as_ref())
    }

    /// Check sizes and beginnings of the files in `dir`. Answers what is wrong.
    pub(crate) fn check(&self, dir: &Path, kernel: &Kernel) -> Result<(), String> {
        self.boot_file().ok_or("its manifest names no kernel")?;
        if let Some(vmlinuz) = &self.vmlinuz {
            vmlinuz.check(dir, "a bzImage", is_bzimage)?;
        }
        let is_elf = |bytes: &[u8]| bytes.starts_with(b"\x7fELF");
        if let Some(vmlinux) = &self.vmlinux {
            vmlinux.check(dir, "an ELF file", is_elf)?;
        }
        for module in &self.boot_modules {
            module.check(dir, "a kernel module", is_elf)?;
        }
        match &self.modules_image {
            Some(image) => {
                let uuid = uuid_of(kernel.digest.trim_start_matches("sha256:"));
                ext4::check(&dir.join(&image.name), image.bytes, &uuid)
            }
            None => Ok(()),
        }
    }
}

impl FileRecord {
    fn of(dir: &Path, name: &str) -> Result<Self, PullError> {
        let path = dir.join(name);
        let bytes = fs::metadata(&path).map_err(PullError::io("read", &path))?.len();
        Ok(Self { name: name.to_owned(), bytes })
    }

    /// Write a new file.
    fn write(dir: &Path, name: &str, contents: &[u8]) -> Result<Self, PullError> {
        let path = dir.join(name);
        fs::write(&path, contents).map_err(PullError::io("write", &path))?;
        Ok(Self { name: name.to_owned(), bytes: contents.len() as u64 })
    }

    fn check(&self, dir: &Path, what: &str, is_it: impl Fn(&[u8]) -> bool) -> Result<(), String> {
        let name = &self.name;
        let mut file =
            fs::File::open(dir.join(name)).map_err(|e| format!("cannot open {name}: {e}"))?;
        let size = file.metadata().map_err(|e| format!("cannot read {name}: {e}"))?.len();
        if size != self.bytes {
            return Err(format!("{name} has {size} bytes instead of {}", self.bytes));
        }
        let mut beginning = Vec::new();
        let read = Read::by_ref(&mut file).take(1024).read_to_end(&mut beginning);
        read.map_err(|e| format!("cannot read {name}: {e}"))?;
        if is_it(&beginning) { Ok(()) } else { Err(format!("{name} is not {what}")) }
    }
}

/// Make the files of `kernel` in the empty directory `made` out of `source`. Answers the kernel with
/// what was learnt about it.
///
/// # Errors
/// [`PullError::Unsuitable`] with all that guests need and the kernel has not.
pub(crate) fn make_kernel(
    source: &KernelSource,
    made: &Path,
    mut kernel: Kernel,
    reporter: &mut Reporter<'_>,
    cancel: &Cancel,
) -> Result<Kernel, PullError> {
    let KernelSource { image, config, modules } = source;
    kernel.release.clone_from(&image.release);
    let set = match modules {
        Some(dir) => {
            reporter.stage(step::KERNEL_MODULES, "reading the modules")?;
            Some(ModuleSet::read(dir).map_err(unreadable(dir))?)
        }
        None => None,
    };
    let facts = Facts { vmlinux: &image.vmlinux, config: config.as_ref(), modules: set.as_ref() };
    let wanted = judge(facts).map_err(|missing| PullError::Unsuitable {
        release: image.release.clone(),
        options: missing.iter().map(|it| it.option.clone()).collect(),
        missing: missing.into_iter().map(|it| it.what).collect(),
        has_modules: set.as_ref().is_some_and(|set| !set.is_empty()),
    })?;
    let mut files = KernelFiles {
        vmlinuz: None,
        vmlinux: Some(FileRecord::write(made, VMLINUX, image.vmlinux.bytes())?),
        modules_image: None,
        boot_modules: Vec::new(),
    };
    if let Some(bytes) = &image.bzimage {
        files.vmlinuz = Some(FileRecord::write(made, VMLINUZ, bytes)?);
    }
    if let (Some(set), Some(dir)) = (set.filter(|set| !set.is_empty()), modules) {
        files.boot_modules = copy_boot_modules(&set, &wanted, made, &mut kernel)?;
        write_indexes(&set).map_err(unreadable(dir))?;
        reporter.stage(step::KERNEL_MODULES, "building the modules disk")?;
        make_modules_disk(dir, made, &kernel, cancel)?;
        files.modules_image = Some(FileRecord::of(made, MODULES)?);
    }
    kernel.allocated_bytes = allocated_bytes(made).map_err(PullError::io("measure", made))?;
    let manifest = Manifest { kernel, files };
    let json = serde_json::to_vec_pretty(&manifest).expect("plain data");
    FileRecord::write(made, MANIFEST, &json)?;
    Ok(manifest.kernel)
}

/// For `map_err`: modules that were staged cannot be used.
fn unreadable(dir: &Path) -> impl FnOnce(io::Error) -> PullError {
    let dir = dir.to_owned();
    // The disk's errors have a kind; what is wrong with the modules has not.
    move |error| match error.kind() {
        io::ErrorKind::Other => PullError::unexpected("the kernel's modules", error),
        _ => PullError::io("read", &dir)(error),
    }
}

/// Copy the boot modules, numbered in the order of loading.
fn copy_boot_modules(
    set: &ModuleSet,
    wanted: &[&str],
    made: &Path,
    kernel: &mut Kernel,
) -> Result<Vec<FileRecord>, PullError> {
    let unusable = |reason: String| PullError::unexpected("the kernel's modules", reason);
    let order = set.load_order(wanted).map_err(unusable)?;
    let dir = made.join("boot");
    fs::create_dir(&dir).map_err(PullError::io("create", &dir))?;
    let mut records = Vec::new();
    for (number, (name, path)) in order.into_iter().enumerate() {
        if let Some(other) = set.release_of(&name).filter(|release| *release != kernel.release) {
            let release = &kernel.release;
            return Err(unusable(format!("{name} is of {other}, and the kernel is {release}")));
        }
        let bytes = fs::read(&path).map_err(PullError::io("read", &path))?;
        records.push(FileRecord::write(made, &format!("boot/{number:02}-{name}.ko"), &bytes)?);
        kernel.boot_modules.push(name);
    }
    Ok(records)
}

/// Make the read-only disk with all modules and their indexes.
fn make_modules_disk(
    modules: &Path,
    made: &Path,
    kernel: &Kernel,
    cancel: &Cancel,
) -> Result<(), PullError> {
    make_readable(modules).map_err(PullError::io("write", modules))?;
    let used = allocated_bytes(modules).map_err(PullError::io("measure", modules))?;
    // Inodes, directories and the file system's own blocks, generously: the file is sparse. Whole
    // block groups, so that a copy of the superblock is where the check expects it.
    let bytes = (used + used / 8 + (16 << 20)).next_multiple_of(128 << 20);
    let identity = kernel.digest.trim_start_matches("sha256:");
    let plan = DiskPlan { label: "banger-modules", bytes, journal: false, identity };
    make_disk(modules, &made.join(MODULES), &plan, cancel)
}

/// Let every user of a guest read the modules, whatever the host's umask is.
fn make_readable(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_readable(&entry.path())?;
        } else {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o644))?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::needs::tests::{good_config, good_words};
    pub(crate) use super::vmlinux::tests::{carried_config, vmlinux};
}
