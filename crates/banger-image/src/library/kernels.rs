//! The library's kernels.

use std::path::{Path, PathBuf};

use banger_api::kernel::{CatalogKernel, Kernel};
use banger_api::operation::Progress;
use banger_core::suggest::nearest;
use banger_host::clock::now_ms;
use banger_host::command::Cancel;
use sha2::{Digest, Sha256};

use super::{Library, ensure_room, read_manifest, resolve};
use crate::catalog::{Catalog, KernelEntry};
use crate::debian::package::{KernelPackage, newest, unpack};
use crate::error::{Kind, LibraryError, PullError};
use crate::kernel::{EXTRACTOR_VERSION, KernelFiles, MANIFEST, Manifest, extract};
use crate::stage::Reporter;
use crate::store::WorkDir;

/// A kernel that is here, and where its files are; none of them may be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalKernel {
    /// What it is.
    pub kernel: Kernel,
    /// The kernel as the distribution ships it, a bzImage.
    pub vmlinuz: PathBuf,
    /// The same unpacked, an ELF file, if it could be.
    pub vmlinux: Option<PathBuf>,
    /// An ext4 disk with all its modules, to be mounted at `/lib/modules/<release>`.
    pub modules_image: Option<PathBuf>,
    /// The modules that a guest's boot needs, in the order of loading.
    pub boot_modules: Vec<PathBuf>,
    files: KernelFiles,
}

impl Library {
    /// All local kernels by name, newest first. One that cannot be read is left out.
    ///
    /// # Errors
    /// The library cannot be read.
    pub fn kernels(&self) -> Result<Vec<Kernel>, LibraryError> {
        let mut kernels = Vec::new();
        for digest in self.kernels.digests()? {
            match self.read_kernel(&digest, &digest) {
                Ok(Some(local)) => kernels.push(local.kernel),
                Ok(None) => {}
                Err(error) => tracing::warn!("kernel {digest} is left out: {error}"),
            }
        }
        kernels.sort_by(|a, b| (&a.name, b.created_at_ms).cmp(&(&b.name, a.created_at_ms)));
        Ok(kernels)
    }

    /// The local kernel of that name, digest, or beginning of a digest.
    ///
    /// # Errors
    /// The library or the kernel's manifest cannot be read.
    pub fn find_kernel(&self, wanted: &str) -> Result<Option<LocalKernel>, LibraryError> {
        match resolve(&self.kernels, wanted)? {
            Some(digest) => self.read_kernel(&digest, wanted),
            None => Ok(None),
        }
    }

    /// Check in a few milliseconds that a kernel's files are there and whole.
    ///
    /// # Errors
    /// [`LibraryError::Corrupt`] with what is wrong.
    pub fn verify_kernel(&self, local: &LocalKernel) -> Result<(), LibraryError> {
        let dir = local.vmlinuz.parent().unwrap_or(Path::new("/"));
        local.files.check(dir, &local.kernel).map_err(|reason| LibraryError::Corrupt {
            kind: Kind::Kernel,
            name: local.kernel.name.clone(),
            reason,
        })
    }

    /// The kernels of the catalog.
    #[must_use]
    pub fn catalog_kernels(&self) -> Vec<CatalogKernel> {
        let show = |entry: &KernelEntry| CatalogKernel {
            name: entry.name.clone(),
            description: entry.description.clone(),
            source: entry.source_text(),
            size_hint_bytes: entry.size_mib << 20,
            local: self.kernels.digest_of(&entry.name).is_some(),
        };
        Catalog::built_in().kernels.iter().map(show).collect()
    }

    /// Make a kernel of the catalog local. One that is here and whole is taken as it is, unless
    /// `refresh` asks for the newest; if that is the one that is here, nothing is fetched but lists.
    ///
    /// # Errors
    /// See [`PullError`]. Nothing half-made stays visible.
    pub fn pull_kernel(
        &self,
        name: &str,
        refresh: bool,
        on_progress: &mut dyn FnMut(Progress),
        cancel: &Cancel,
    ) -> Result<Kernel, PullError> {
        let entry = Catalog::built_in().kernel(name).ok_or_else(|| unknown_kernel(name))?;
        if let (false, Some(local)) = (refresh, self.whole_kernel(name)) {
            return Ok(local.kernel);
        }
        let mut reporter = Reporter::new(on_progress);
        let _lock = self.kernels.lock_name(name, cancel, &mut || {
            reporter.stage("kernel.wait", "waiting for another process that fetches this kernel");
        })?;
        // Whoever had the lock has made it.
        if let (false, Some(local)) = (refresh, self.whole_kernel(name)) {
            return Ok(local.kernel);
        }
        ensure_room(self.kernels.dir(), entry.build_mib)?;
        let work = self.kernels.begin()?;
        let made = self.make_kernel(entry, &work, &mut reporter, cancel);
        // The result is what counts; what cannot be removed now is removed at the next opening.
        if let Err(error) = work.remove() {
            tracing::warn!("left for later: {error}");
        }
        made
    }

    /// The local kernel of that name or digest if nothing is wrong with it.
    fn whole_kernel(&self, wanted: &str) -> Option<LocalKernel> {
        let local = self.find_kernel(wanted).ok().flatten()?;
        self.verify_kernel(&local).is_ok().then_some(local)
    }

    fn make_kernel(
        &self,
        entry: &KernelEntry,
        work: &WorkDir,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Kernel, PullError> {
        let (apt, package) = newest(&entry.debian, &work.subdir("apt")?, reporter, cancel)?;
        let identity = identity_of(&package);
        let digest = format!("sha256:{identity}");
        if let Some(local) = self.whole_kernel(&digest) {
            self.kernels.set_name(&entry.name, &digest)?;
            return Ok(local.kernel);
        }
        let tree = unpack(&apt, &package, work.path(), reporter, cancel)?;
        let made = work.subdir("made")?;
        let kernel = Kernel {
            name: entry.name.clone(),
            digest: digest.clone(),
            release: package.release().to_owned(),
            allocated_bytes: 0,
            source: format!("{} {} (Debian)", package.name, package.version),
            created_at_ms: now_ms(),
            boot_modules: Vec::new(),
        };
        let kernel = extract(&tree, &made, kernel, reporter, cancel)?;
        // If there is one with this digest, it is damaged.
        self.kernels.move_away(&digest, &work.path().join("damaged"))?;
        self.kernels.publish(&made, &digest)?;
        self.kernels.set_name(&entry.name, &digest)?;
        Ok(kernel)
    }

    /// Remove a kernel by name or digest. Whether a VM needs it is for the caller to know.
    ///
    /// # Errors
    /// There is none, or its files cannot be removed.
    pub fn remove_kernel(&self, wanted: &str) -> Result<(), LibraryError> {
        match resolve(&self.kernels, wanted)? {
            Some(digest) => self.kernels.remove(&digest),
            None => Err(self.no_kernel(wanted)),
        }
    }

    fn no_kernel(&self, name: &str) -> LibraryError {
        let kernels = self.kernels().unwrap_or_default();
        let nearest = nearest(name, kernels.iter().map(|kernel| kernel.name.as_str()));
        let nearest = nearest.map(str::to_owned);
        LibraryError::NotFound { kind: Kind::Kernel, name: name.to_owned(), nearest }
    }

    /// The kernel with that digest; `name` is what to call it if it is damaged.
    fn read_kernel(&self, digest: &str, name: &str) -> Result<Option<LocalKernel>, LibraryError> {
        let Some(dir) = self.kernels.path_of(digest) else { return Ok(None) };
        let manifest = read_manifest::<Manifest>(Kind::Kernel, name, &dir.join(MANIFEST))?;
        Ok(manifest.map(|manifest| local_kernel(&dir, manifest)))
    }
}

fn local_kernel(dir: &Path, manifest: Manifest) -> LocalKernel {
    let Manifest { kernel, files } = manifest;
    LocalKernel {
        vmlinuz: dir.join(&files.vmlinuz.name),
        vmlinux: files.vmlinux.as_ref().map(|file| dir.join(&file.name)),
        modules_image: files.modules_image.as_ref().map(|file| dir.join(&file.name)),
        boot_modules: files.boot_modules.iter().map(|file| dir.join(&file.name)).collect(),
        kernel,
        files,
    }
}

fn unknown_kernel(name: &str) -> PullError {
    let known = Catalog::built_in().kernels.iter().map(|entry| entry.name.as_str());
    let nearest = nearest(name, known).map(str::to_owned);
    PullError::Unknown { kind: Kind::Kernel, name: name.to_owned(), nearest }
}

/// The identity of what this extractor makes of a package: 64 hex digits.
fn identity_of(package: &KernelPackage) -> String {
    let text = format!("banger kernel extractor {EXTRACTOR_VERSION}\n{}\n", package.sha256);
    hex::encode(Sha256::digest(text))
}
