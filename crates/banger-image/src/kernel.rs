//! From a kernel package's files to what a VM is started with.

use std::fs;
use std::io::Read;
use std::path::Path;

use banger_api::kernel::Kernel;
use banger_host::command::Cancel;
use banger_host::files::allocated_bytes;
use serde::{Deserialize, Serialize};

use crate::bzimage::{extract_vmlinux, is_bzimage};
use crate::error::PullError;
use crate::ext4;
use crate::modules::{ModuleSet, write_indexes};
use crate::rootfs::{DiskPlan, make_disk, uuid_of};
use crate::stage::Reporter;

/// Version of the way from a package to a kernel. A change makes other kernels out of the same
/// packages.
pub(crate) const EXTRACTOR_VERSION: u32 = 1;
pub(crate) const MANIFEST: &str = "kernel.json";

/// The modules without which a guest cannot reach its disks, its network and its agent. A `?` marks
/// those that it can do without.
const BOOT_MODULES: [&str; 8] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "dm_snapshot",
    "dm_zero",
    "ext4",
    "virtio_net",
    "virtio_rng?",
];

/// The kernel's manifest: what it is and which files it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    #[serde(flatten)]
    pub(crate) kernel: Kernel,
    pub(crate) files: KernelFiles,
}

/// The files of a kernel, relative to its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KernelFiles {
    pub(crate) vmlinuz: FileRecord,
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
    /// Check sizes and beginnings of the files in `dir`. Answers what is wrong.
    pub(crate) fn check(&self, dir: &Path, kernel: &Kernel) -> Result<(), String> {
        self.vmlinuz.check(dir, "a bzImage", is_bzimage)?;
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

/// Make the files of `kernel` in the empty directory `made` out of the unpacked package in `tree`.
/// Answers the kernel with what was learnt about it.
pub(crate) fn extract(
    tree: &Path,
    made: &Path,
    mut kernel: Kernel,
    reporter: &mut Reporter<'_>,
    cancel: &Cancel,
) -> Result<Kernel, PullError> {
    let vmlinux = extract_kernel(tree, made, &kernel.release)?;
    reporter.stage("kernel.modules", "building the modules disk");
    let modules = tree.join("lib/modules").join(&kernel.release);
    let set = ModuleSet::read(&modules).map_err(PullError::io("read", &modules))?;
    write_indexes(&set).map_err(PullError::io("write", &modules))?;
    let boot_modules = copy_boot_modules(&set, made, &mut kernel)?;
    make_modules_disk(&modules, made, &kernel, cancel)?;
    kernel.allocated_bytes = allocated_bytes(made).map_err(PullError::io("measure", made))?;
    let files = KernelFiles {
        vmlinuz: FileRecord::of(made, "vmlinuz")?,
        vmlinux: if vmlinux { Some(FileRecord::of(made, "vmlinux")?) } else { None },
        modules_image: Some(FileRecord::of(made, "modules.ext4")?),
        boot_modules,
    };
    let manifest = Manifest { kernel, files };
    let json = serde_json::to_vec_pretty(&manifest).expect("plain data");
    let path = made.join(MANIFEST);
    fs::write(&path, json).map_err(PullError::io("write", &path))?;
    Ok(manifest.kernel)
}

/// Take the kernel as it is shipped, and unpacked if that is possible.
fn extract_kernel(tree: &Path, made: &Path, release: &str) -> Result<bool, PullError> {
    let shipped = tree.join(format!("boot/vmlinuz-{release}"));
    let bytes = fs::read(&shipped).map_err(PullError::io("read", &shipped))?;
    if !is_bzimage(&bytes) {
        let what = shipped.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(PullError::Unexpected { what, reason: "it is no bzImage".to_owned() });
    }
    let target = made.join("vmlinuz");
    fs::rename(&shipped, &target).map_err(PullError::io("write", &target))?;
    match extract_vmlinux(&bytes) {
        Ok(kernel) => {
            let target = made.join("vmlinux");
            fs::write(&target, kernel).map_err(PullError::io("write", &target))?;
            Ok(true)
        }
        Err(error) => {
            tracing::warn!("the kernel {release} stays packed: {error}");
            Ok(false)
        }
    }
}

/// Copy the boot modules, numbered in the order of loading.
fn copy_boot_modules(
    set: &ModuleSet,
    made: &Path,
    kernel: &mut Kernel,
) -> Result<Vec<FileRecord>, PullError> {
    let order = set
        .load_order(&BOOT_MODULES)
        .map_err(|reason| PullError::Unexpected { what: kernel.source.clone(), reason })?;
    let dir = made.join("boot");
    fs::create_dir(&dir).map_err(PullError::io("create", &dir))?;
    let mut records = Vec::new();
    for (number, (name, path)) in order.into_iter().enumerate() {
        let file = format!("boot/{number:02}-{name}.ko");
        let bytes = fs::read(&path).map_err(PullError::io("read", &path))?;
        let target = made.join(&file);
        fs::write(&target, bytes).map_err(PullError::io("write", &target))?;
        records.push(FileRecord::of(made, &file)?);
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
    let used = allocated_bytes(modules).map_err(PullError::io("measure", modules))?;
    // Inodes, directories and the file system's own blocks, generously: the file is sparse. Whole
    // block groups, so that a copy of the superblock is where the check expects it.
    let bytes = (used + used / 8 + (16 << 20)).next_multiple_of(128 << 20);
    let identity = kernel.digest.trim_start_matches("sha256:");
    let plan = DiskPlan { label: "banger-modules", bytes, journal: false, identity };
    make_disk(modules, &made.join("modules.ext4"), &plan, cancel)
}
