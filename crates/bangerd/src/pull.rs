//! Images and kernels: finding them, fetching them once for all who want them, and keeping room.

use std::sync::Arc;

use banger_api::operation::{OperationResult, Progress};
use banger_api::vm::VmSpec;
use banger_api::{ErrorCode, Problem};
use banger_core::{size, spec, suggest};
use banger_host::command::Cancel;
use tokio_util::sync::CancellationToken;

use crate::daemon::{Daemon, blocking, failed};
use crate::host::{Artifacts, Host, LocalImage, LocalKernel, Pull};
use crate::operations::{Handle, SharedKey};

/// The two kinds of artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A root filesystem.
    Image,
    /// A kernel.
    Kernel,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Kernel => "kernel",
        }
    }

    /// The problem of a name that is neither local nor in the catalog.
    #[must_use]
    pub fn not_found(self, host: &Host, name: &str) -> Problem {
        let (code, mut known): (_, Vec<String>) = match self {
            Self::Image => (
                ErrorCode::ImageNotFound,
                host.artifacts.catalog_images().into_iter().map(|image| image.name).collect(),
            ),
            Self::Kernel => (
                ErrorCode::KernelNotFound,
                host.artifacts.catalog_kernels().into_iter().map(|kernel| kernel.name).collect(),
            ),
        };
        let local = match self {
            Self::Image => {
                host.artifacts.images().map(|all| all.into_iter().map(|i| i.name).collect())
            }
            Self::Kernel => {
                host.artifacts.kernels().map(|all| all.into_iter().map(|k| k.name).collect())
            }
        };
        known.extend::<Vec<String>>(local.unwrap_or_default());
        let word = self.word();
        let problem = Problem::new(code, format!("there is no {word} {name:?}"));
        match suggest::nearest(name, known.iter().map(String::as_str)) {
            Some(near) => problem.hint(format!("did you mean {near}? See: banger {word} catalog")),
            None => problem.hint(format!("banger {word} catalog")),
        }
    }
}

/// Checks that the image and the kernel of a VM are here or could be fetched.
///
/// # Errors
/// `image_not_found` or `kernel_not_found`, with the nearest name.
pub async fn check_known(daemon: &Daemon, spec: &VmSpec) -> Result<(), Problem> {
    let (host, spec) = (daemon.host.clone(), spec.clone());
    blocking(move || {
        let artifacts = host.artifacts.as_ref();
        if artifacts.find_image(&spec.image)?.is_none()
            && !is_in_catalog(artifacts, Kind::Image, &spec.image)
        {
            return Err(Kind::Image.not_found(&host, &spec.image));
        }
        let kernel = kernel_name(artifacts, &spec);
        if artifacts.find_kernel(&kernel)?.is_none()
            && !is_in_catalog(artifacts, Kind::Kernel, &kernel)
        {
            return Err(Kind::Kernel.not_found(&host, &kernel));
        }
        Ok(())
    })
    .await
}

fn is_in_catalog(artifacts: &dyn Artifacts, kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Image => artifacts.catalog_images().iter().any(|image| image.name == name),
        Kind::Kernel => artifacts.catalog_kernels().iter().any(|kernel| kernel.name == name),
    }
}

/// The kernel of a VM: the one asked for, else the one that goes with its image.
fn kernel_name(artifacts: &dyn Artifacts, spec: &VmSpec) -> String {
    spec.kernel.clone().unwrap_or_else(|| {
        let catalog = artifacts.catalog_images();
        let entry = catalog.into_iter().find(|image| image.name == spec.image);
        entry.map_or_else(|| spec::DEFAULT_KERNEL.to_owned(), |image| image.kernel)
    })
}

/// The local image and kernel of a VM.
///
/// # Errors
/// `image_not_found` or `kernel_not_found`.
pub async fn find(daemon: &Daemon, spec: &VmSpec) -> Result<(LocalImage, LocalKernel), Problem> {
    let (host, spec) = (daemon.host.clone(), spec.clone());
    blocking(move || {
        let image = host.artifacts.find_image(&spec.image)?;
        let image = image.ok_or_else(|| Kind::Image.not_found(&host, &spec.image))?;
        let name = kernel_name(host.artifacts.as_ref(), &spec);
        let kernel = host.artifacts.find_kernel(&name)?;
        let kernel = kernel.ok_or_else(|| Kind::Kernel.not_found(&host, &name))?;
        Ok((image, kernel))
    })
    .await
}

/// Fetches what is missing of a VM's image and kernel.
///
/// # Errors
/// Of the pulls.
pub async fn ensure(
    daemon: &Arc<Daemon>,
    spec: &VmSpec,
    operation: &Handle,
) -> Result<(), Problem> {
    let (host, wanted) = (daemon.host.clone(), spec.clone());
    let missing = blocking(move || {
        let kernel = kernel_name(host.artifacts.as_ref(), &wanted);
        let mut missing = Vec::new();
        // The kernel is small and quick, and a host where it fails should not build an image first.
        if host.artifacts.find_kernel(&kernel)?.is_none() {
            missing.push((Kind::Kernel, kernel));
        }
        if host.artifacts.find_image(&wanted.image)?.is_none() {
            missing.push((Kind::Image, wanted.image));
        }
        Ok(missing)
    })
    .await?;
    for (kind, name) in missing {
        pull(daemon, kind, &name, false, operation).await?;
    }
    Ok(())
}

/// Fetches an image or a kernel, together with whoever else wants it now.
///
/// # Errors
/// Of the pull; `cancelled` if the operation was.
pub async fn pull(
    daemon: &Arc<Daemon>,
    kind: Kind,
    name: &str,
    refresh: bool,
    operation: &Handle,
) -> Result<OperationResult, Problem> {
    let key = SharedKey { kind: kind.word(), name: name.to_owned(), refresh };
    let (host, name) = (daemon.host.clone(), name.to_owned());
    let work = move |handle: Handle| work(host, kind, name, refresh, handle);
    daemon.pulls.join(&daemon.operations, key, operation, work).await
}

async fn work(
    host: Host,
    kind: Kind,
    name: String,
    refresh: bool,
    handle: Handle,
) -> Result<OperationResult, Problem> {
    let cancel = Cancel::new();
    let watcher = tokio::spawn(pass_on(handle.cancel_token().clone(), cancel.clone()));
    let done = blocking(move || {
        let mut progress = |progress: Progress| handle.progress(progress);
        let pull = Pull { name: &name, refresh, progress: &mut progress, cancel: &cancel };
        match kind {
            Kind::Image => host.artifacts.pull_image(pull).map(OperationResult::Image),
            Kind::Kernel => host.artifacts.pull_kernel(pull).map(OperationResult::Kernel),
        }
    })
    .await;
    watcher.abort();
    done
}

async fn pass_on(token: CancellationToken, cancel: Cancel) {
    token.cancelled().await;
    cancel.cancel();
}

/// Refuses new work when the host's disk is nearly full.
///
/// # Errors
/// `host_disk_full`.
pub async fn check_space(daemon: &Daemon) -> Result<(), Problem> {
    let (host, data) = (daemon.host.clone(), daemon.dirs.data.clone());
    let reserve_bytes = daemon.config.reserve_disk_mib.saturating_mul(size::MIB);
    blocking(move || {
        let free = host.machine.free_bytes(&data);
        let free = free.map_err(|error| failed("cannot tell how much disk is free", &error))?;
        if free >= reserve_bytes {
            return Ok(());
        }
        Err(Problem::new(ErrorCode::HostDiskFull, "the host's disk is nearly full")
            .cause(format!(
                "{} are free at {}, and {} are kept in reserve",
                size::format(free),
                data.display(),
                size::format(reserve_bytes)
            ))
            .hint("banger system df"))
    })
    .await
}

/// Checks that something can be pulled.
///
/// # Errors
/// `image_not_found` or `kernel_not_found`, with the nearest name.
pub async fn check_in_catalog(daemon: &Daemon, kind: Kind, name: &str) -> Result<(), Problem> {
    let (host, name) = (daemon.host.clone(), name.to_owned());
    blocking(move || {
        if is_in_catalog(host.artifacts.as_ref(), kind, &name) {
            Ok(())
        } else {
            Err(kind.not_found(&host, &name))
        }
    })
    .await
}

/// The problem of an image or a kernel that VMs use.
#[must_use]
pub fn in_use(code: ErrorCode, word: &str, name: &str, users: &[String]) -> Problem {
    const NAMED: usize = 5;
    let mut named = users.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if users.len() > NAMED {
        named.push_str(&format!(" and {} more", users.len() - NAMED));
    }
    Problem::new(code, format!("the {word} {name} is in use"))
        .cause(format!("it is used by {named}"))
        .hint(format!(
            "banger rm {}",
            users.iter().take(NAMED).cloned().collect::<Vec<_>>().join(" ")
        ))
}
