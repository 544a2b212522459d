//! The library's kernels.

mod import;
#[cfg(test)]
mod tests;

use banger_api::step;
use std::path::PathBuf;

use banger_api::kernel::{CatalogKernel, Kernel};
use banger_api::operation::Progress;
use banger_core::suggest::nearest;
use banger_host::clock::now_ms;
use banger_host::command::Cancel;
use sha2::{Digest, Sha256};

use super::{Library, ensure_room, read_manifest, resolve};
use crate::catalog::{Catalog, KernelEntry};
use crate::debian::package::{fetch, newest};
use crate::error::{Kind, LibraryError, PullError};
use crate::kernel::source::{KernelSource, read_kernel_package};
use crate::kernel::{EXTRACTOR_VERSION, FileRecord, KernelFiles, MANIFEST, Manifest, make_kernel};
use crate::stage::Reporter;
use crate::store::WorkDir;

/// A kernel that is here, and where its files are; none of them may be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalKernel {
    /// What it is.
    pub kernel: Kernel,
    /// What a monitor starts: the uncompressed kernel, an ELF file, or, if it was kept packed by an
    /// older release, the bzImage.
    pub boot_file: PathBuf,
    /// The kernel as it came, if that was a bzImage.
    pub vmlinuz: Option<PathBuf>,
    /// An ext4 disk with all its modules, to be mounted at `/lib/modules/<release>`.
    pub modules_image: Option<PathBuf>,
    /// The modules that a guest's boot needs, in the order of loading.
    pub boot_modules: Vec<PathBuf>,
    dir: PathBuf,
    files: KernelFiles,
}

impl Library {
    /// All local kernels by name, newest first; one with several names once for each. One that
    /// cannot be read is left out.
    ///
    /// # Errors
    /// The library cannot be read.
    pub fn kernels(&self) -> Result<Vec<Kernel>, LibraryError> {
        let names = self.kernels.names()?;
        let mut kernels = Vec::new();
        for digest in self.kernels.digests()? {
            let kernel = match self.read_kernel(&digest, &digest) {
                Ok(Some(local)) => local.kernel,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!("kernel {digest} is left out: {error}");
                    continue;
                }
            };
            let of_this = names.iter().filter(|(_, stands_for)| **stands_for == digest);
            let named: Vec<Kernel> =
                of_this.map(|(name, _)| Kernel { name: name.clone(), ..kernel.clone() }).collect();
            kernels.extend(if named.is_empty() { vec![kernel] } else { named });
        }
        kernels.sort_by(|a, b| (&a.name, b.created_at_ms).cmp(&(&b.name, a.created_at_ms)));
        Ok(kernels)
    }

    /// The local kernel of that name, digest, or beginning of a digest.
    ///
    /// # Errors
    /// The library or the kernel's manifest cannot be read. That is never the same as there being
    /// no such kernel.
    pub fn find_kernel(&self, wanted: &str) -> Result<Option<LocalKernel>, LibraryError> {
        let Some(digest) = resolve(&self.kernels, wanted)? else { return Ok(None) };
        let mut found = self.read_kernel(&digest, wanted)?;
        if let (Some(local), Some(_)) = (&mut found, self.kernels.lookup(wanted)?) {
            // It may have others.
            wanted.clone_into(&mut local.kernel.name);
        }
        Ok(found)
    }

    /// Check in a few milliseconds that a kernel's files are there and whole.
    ///
    /// # Errors
    /// [`LibraryError::Corrupt`] with what is wrong.
    pub fn verify_kernel(&self, local: &LocalKernel) -> Result<(), LibraryError> {
        local.files.check(&local.dir, &local.kernel).map_err(|reason| LibraryError::Corrupt {
            kind: Kind::Kernel,
            name: local.kernel.name.clone(),
            reason,
        })
    }

    /// The kernels of the catalog.
    ///
    /// # Errors
    /// The user's catalog cannot be used.
    pub fn catalog_kernels(&self) -> Result<Vec<CatalogKernel>, LibraryError> {
        let show = |entry: &KernelEntry| CatalogKernel {
            name: entry.name.clone(),
            description: entry.description.clone(),
            source: entry.source_text(),
            size_hint_bytes: entry.size_mib << 20,
            local: self.kernels.digest_of(&entry.name).is_some(),
        };
        Ok(Catalog::load(&self.user_catalog)?.kernels.iter().map(show).collect())
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
        let catalog = Catalog::load(&self.user_catalog)?;
        let Some(entry) = catalog.kernel(name) else {
            return self.imported_kernel(name, &catalog);
        };
        if let (false, Some(local)) = (refresh, self.whole_kernel(name)) {
            return Ok(local.kernel);
        }
        let mut reporter = Reporter::new(on_progress);
        let _lock = self.kernels.lock_name(name, cancel, &mut || {
            reporter.wait("kernel.wait", "waiting for another process that fetches this kernel");
        })?;
        // Whoever had the lock has made it.
        if let (false, Some(local)) = (refresh, self.whole_kernel(name)) {
            return Ok(local.kernel);
        }
        ensure_room(self.kernels.dir(), entry.build_mib)?;
        self.in_kernel_work_dir(|work| self.fetch_kernel(entry, work, &mut reporter, cancel))
    }

    /// A kernel that is not in the catalog. It may be here all the same; if it is and cannot be used,
    /// that is what is wrong, and not that the catalog does not have it.
    fn imported_kernel(&self, name: &str, catalog: &Catalog) -> Result<Kernel, PullError> {
        match self.find_kernel(name)? {
            Some(local) => {
                self.verify_kernel(&local)?;
                Ok(local.kernel)
            }
            None => {
                let known = catalog.kernels.iter().map(|entry| entry.name.as_str());
                let nearest = nearest(name, known).map(str::to_owned);
                Err(PullError::Unknown { kind: Kind::Kernel, name: name.to_owned(), nearest })
            }
        }
    }

    /// Do something in a directory that is removed afterwards.
    fn in_kernel_work_dir<T>(
        &self,
        make: impl FnOnce(&WorkDir) -> Result<T, PullError>,
    ) -> Result<T, PullError> {
        let work = self.kernels.begin()?;
        let made = make(&work);
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

    fn fetch_kernel(
        &self,
        entry: &KernelEntry,
        work: &WorkDir,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Kernel, PullError> {
        let (apt, package) = newest(&entry.debian, &work.subdir("apt")?, reporter, cancel)?;
        let digest = identity_of(std::slice::from_ref(&package.sha256));
        if let Some(kernel) = self.named_kernel(&digest, &entry.name)? {
            return Ok(kernel);
        }
        let file = fetch(&apt, &package, reporter, cancel)?;
        reporter.stage(step::KERNEL_EXTRACT, "unpacking the kernel")?;
        let source = read_kernel_package(&file, &work.subdir("modules")?, cancel)?;
        let draft = KernelDraft {
            name: &entry.name,
            digest,
            origin: format!("{} {} (Debian)", package.name, package.version),
            source: &source,
        };
        self.publish_kernel(draft, work, reporter, cancel)
    }

    /// The kernel of that digest, if it is here and whole; then it gets the name.
    fn named_kernel(&self, digest: &str, name: &str) -> Result<Option<Kernel>, LibraryError> {
        let Some(local) = self.whole_kernel(digest) else { return Ok(None) };
        self.kernels.set_name(name, digest)?;
        Ok(Some(Kernel { name: name.to_owned(), ..local.kernel }))
    }

    /// Make a kernel's files in `work`, and the whole visible.
    fn publish_kernel(
        &self,
        draft: KernelDraft<'_>,
        work: &WorkDir,
        reporter: &mut Reporter<'_>,
        cancel: &Cancel,
    ) -> Result<Kernel, PullError> {
        let KernelDraft { name, digest, origin, source } = draft;
        let made = work.subdir("made")?;
        let kernel = Kernel {
            name: name.to_owned(),
            digest: digest.clone(),
            release: source.image.release.clone(),
            allocated_bytes: 0,
            source: origin,
            created_at_ms: now_ms(),
            boot_modules: Vec::new(),
        };
        let kernel = make_kernel(source, &made, kernel, reporter, cancel)?;
        // Somebody else has made the same under another name.
        if let Some(kernel) = self.named_kernel(&digest, name)? {
            return Ok(kernel);
        }
        // If there is one with this digest, it is damaged.
        self.kernels.move_away(&digest, &work.path().join("damaged"))?;
        self.kernels.publish(&made, &digest)?;
        self.kernels.set_name(name, &digest)?;
        Ok(kernel)
    }

    /// Remove a kernel. By digest it goes with all its names; by one name of several it only loses
    /// that. Whether a VM needs it is for the caller to know.
    ///
    /// # Errors
    /// There is none, or its files cannot be removed.
    pub fn remove_kernel(&self, wanted: &str) -> Result<(), LibraryError> {
        let names = self.kernels.names()?;
        if let Some(digest) = names.get(wanted)
            && names.values().filter(|other| *other == digest).count() > 1
        {
            return self.kernels.remove_name(wanted);
        }
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
        let corrupt = |reason: &str| LibraryError::Corrupt {
            kind: Kind::Kernel,
            name: name.to_owned(),
            reason: reason.to_owned(),
        };
        match read_manifest::<Manifest>(Kind::Kernel, name, &dir.join(MANIFEST))? {
            Some(manifest) => local_kernel(dir, manifest)
                .map(Some)
                .ok_or_else(|| corrupt("its manifest names no kernel")),
            // Removed just now, or never here.
            None if !dir.exists() => Ok(None),
            None => Err(corrupt("its manifest is missing")),
        }
    }
}

/// What a kernel will be, but for what its files say.
struct KernelDraft<'a> {
    name: &'a str,
    digest: String,
    /// Where it came from, for people.
    origin: String,
    source: &'a KernelSource,
}

fn local_kernel(dir: PathBuf, manifest: Manifest) -> Option<LocalKernel> {
    let Manifest { kernel, files } = manifest;
    let path = |file: &FileRecord| dir.join(&file.name);
    Some(LocalKernel {
        boot_file: path(files.boot_file()?),
        vmlinuz: files.vmlinuz.as_ref().map(path),
        modules_image: files.modules_image.as_ref().map(path),
        boot_modules: files.boot_modules.iter().map(path).collect(),
        dir,
        kernel,
        files,
    })
}

/// The identity of what this extractor makes of things with these digests.
fn identity_of(inputs: &[String]) -> String {
    let text = format!("banger kernel extractor {EXTRACTOR_VERSION}\n{}\n", inputs.join("\n"));
    format!("sha256:{}", hex::encode(Sha256::digest(text)))
}
