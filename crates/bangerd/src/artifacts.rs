//! The images and kernels of VMs: finding them, having them fetched, and who uses which.

use std::sync::Arc;

use banger_api::image::{Image, PullPolicy, PullRequest};
use banger_api::vm::{CreateVm, VmSpec};
use banger_api::{ErrorCode, Problem};
use banger_core::{size, spec, suggest};

use crate::daemon::{Daemon, blocking, failed};
use crate::host::{Artifacts, Host, Job, LocalImage, LocalKernel};
use crate::jobs;
use crate::operations::Handle;

/// Checks that the image and the kernel of a VM are here or could be fetched.
///
/// # Errors
/// `image_not_found` or `kernel_not_found`, with the nearest name.
pub async fn check_known(daemon: &Daemon, request: &CreateVm) -> Result<(), Problem> {
    let (host, spec, pull) = (daemon.host.clone(), request.spec.clone(), request.pull);
    blocking(move || {
        let artifacts = host.artifacts.as_ref();
        match pull {
            PullPolicy::Never if artifacts.find_image(&spec.image)?.is_none() => {
                return Err(not_here(&spec.image));
            }
            _ => artifacts.check_image(&spec.image)?,
        }
        check_kernel(artifacts, &kernel_name(artifacts, &spec)?)
    })
    .await
}

/// Checks that a kernel is here or in the catalog.
///
/// # Errors
/// `kernel_not_found` with the nearest name; and whatever keeps a local one from being read, which
/// is not the same as there being none.
pub fn check_kernel(artifacts: &dyn Artifacts, name: &str) -> Result<(), Problem> {
    let is_known = artifacts.find_kernel(name)?.is_some()
        || artifacts.catalog_kernels()?.iter().any(|kernel| kernel.name == name);
    if is_known { Ok(()) } else { Err(no_kernel(artifacts, name)) }
}

fn not_here(name: &str) -> Problem {
    Problem::new(ErrorCode::ImageNotFound, format!("the image {name} is not here"))
        .cause("it may not be fetched (--pull never)")
        .hint(format!("banger image pull {name}"))
}

/// The problem of a kernel that is neither local nor in the catalog.
pub fn no_kernel(artifacts: &dyn Artifacts, name: &str) -> Problem {
    let catalog = artifacts.catalog_kernels().unwrap_or_default();
    let mut known: Vec<String> = catalog.into_iter().map(|kernel| kernel.name).collect();
    let local = artifacts.kernels().unwrap_or_default();
    known.extend(local.into_iter().map(|kernel| kernel.name));
    let problem = Problem::new(ErrorCode::KernelNotFound, format!("there is no kernel {name:?}"));
    match suggest::nearest(name, known.iter().map(String::as_str)) {
        Some(near) => problem.hint(format!("did you mean {near}? See: banger kernel catalog")),
        None => problem.hint("banger kernel catalog"),
    }
}

/// The problem of an image that is not local.
pub fn no_image(artifacts: &dyn Artifacts, name: &str) -> Problem {
    let local = artifacts.images().unwrap_or_default();
    let problem =
        Problem::new(ErrorCode::ImageNotFound, format!("there is no image {name:?} here"));
    match suggest::nearest(name, local.iter().map(|image| image.name.as_str())) {
        Some(near) => problem.hint(format!("did you mean {near}? See: banger image ls")),
        None => problem.hint("banger image ls"),
    }
}

/// The kernel of a VM: the one asked for, else the one that goes with its image.
fn kernel_name(artifacts: &dyn Artifacts, spec: &VmSpec) -> Result<String, Problem> {
    if let Some(kernel) = &spec.kernel {
        return Ok(kernel.clone());
    }
    let of_image = match artifacts.find_image(&spec.image)? {
        Some(local) => local.image.kernel,
        None => {
            let mut catalog = artifacts.catalog_images()?.into_iter();
            catalog.find(|image| image.name == spec.image).map(|image| image.kernel)
        }
    };
    Ok(of_image.unwrap_or_else(|| spec::DEFAULT_KERNEL.to_owned()))
}

/// The local image of that name or digest.
///
/// # Errors
/// `image_not_found`.
pub async fn find_image(daemon: &Daemon, name: &str) -> Result<Image, Problem> {
    let (host, name) = (daemon.host.clone(), name.to_owned());
    blocking(move || {
        let artifacts = host.artifacts.as_ref();
        let image = artifacts.find_image(&name)?;
        Ok(image.ok_or_else(|| no_image(artifacts, &name))?.image)
    })
    .await
}

/// The local image and kernel of a VM.
///
/// # Errors
/// `image_not_found` or `kernel_not_found`.
pub async fn find(daemon: &Daemon, spec: &VmSpec) -> Result<(LocalImage, LocalKernel), Problem> {
    let (host, spec) = (daemon.host.clone(), spec.clone());
    blocking(move || {
        let artifacts = host.artifacts.as_ref();
        let image = artifacts.find_image(&spec.image)?;
        let image = image.ok_or_else(|| no_image(artifacts, &spec.image))?;
        let name = kernel_name(artifacts, &spec)?;
        let kernel = artifacts.find_kernel(&name)?;
        let kernel = kernel.ok_or_else(|| no_kernel(artifacts, &name))?;
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
    request: &CreateVm,
    operation: &Handle,
) -> Result<(), Problem> {
    let (host, wanted) = (daemon.host.clone(), request.clone());
    let missing = blocking(move || missing(&host, wanted)).await?;
    for job in missing {
        jobs::join(daemon, job, operation).await?;
    }
    // Only a local image says for certain which kernel it wants.
    let (host, spec) = (daemon.host.clone(), request.spec.clone());
    let kernel = blocking(move || missing_kernel(host.artifacts.as_ref(), &spec)).await?;
    if let Some(job) = kernel {
        jobs::join(daemon, job, operation).await?;
    }
    Ok(())
}

fn missing(host: &Host, request: CreateVm) -> Result<Vec<Job>, Problem> {
    let artifacts = host.artifacts.as_ref();
    // The kernel is small and quick, and a host where it fails should not build an image first.
    let mut jobs: Vec<Job> = missing_kernel(artifacts, &request.spec)?.into_iter().collect();
    let is_here = artifacts.find_image(&request.spec.image)?.is_some();
    let refresh = request.pull == PullPolicy::Always;
    // It may have been removed since the request was checked.
    if !is_here && request.pull == PullPolicy::Never {
        return Err(not_here(&request.spec.image));
    }
    if !is_here || refresh {
        let CreateVm { spec, registry, .. } = request;
        let name = spec.image;
        jobs.push(Job::PullImage(PullRequest { name, refresh, registry, verify_key: None }));
    }
    Ok(jobs)
}

fn missing_kernel(artifacts: &dyn Artifacts, spec: &VmSpec) -> Result<Option<Job>, Problem> {
    let name = kernel_name(artifacts, spec)?;
    if artifacts.find_kernel(&name)?.is_some() {
        return Ok(None);
    }
    Ok(Some(Job::PullKernel(PullRequest { name, ..PullRequest::default() })))
}

/// Refuses new work when the host's disk is nearly full.
///
/// # Errors
/// `host_disk_full`.
pub async fn check_space(daemon: &Daemon) -> Result<(), Problem> {
    check_space_for(daemon, 0).await
}

/// Refuses work that may take so much disk if that would leave the host's nearly full.
///
/// # Errors
/// `host_disk_full`.
pub async fn check_space_for(daemon: &Daemon, needed: u64) -> Result<(), Problem> {
    let (host, data) = (daemon.host.clone(), daemon.dirs.data.clone());
    let reserve_bytes = daemon.config.reserve_disk_mib.saturating_mul(size::MIB);
    blocking(move || {
        let free = host.machine.free_bytes(&data);
        let free = free.map_err(|error| failed("cannot tell how much disk is free", &error))?;
        if free >= reserve_bytes.saturating_add(needed) {
            return Ok(());
        }
        let needed = match needed {
            0 => String::new(),
            bytes => format!("up to {} are needed, ", size::format(bytes)),
        };
        Err(Problem::new(ErrorCode::HostDiskFull, "the host's disk is nearly full")
            .cause(format!(
                "{needed}{} are free at {}, and {} are kept in reserve",
                size::format(free),
                data.display(),
                size::format(reserve_bytes)
            ))
            .hint("banger system df"))
    })
    .await
}

/// A VM that uses an image or a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Whether it must be killed before it can be removed.
    pub live: bool,
}

impl User {
    /// The VMs of these names.
    pub fn all(daemon: &Daemon, names: Vec<String>) -> Vec<Self> {
        let handles = daemon.handles();
        let is_live = |name: &str| handles.iter().any(|vm| vm.name == name && vm.state().is_live());
        names.into_iter().map(|name| Self { live: is_live(&name), name }).collect()
    }
}

/// The problem of an image or a kernel that VMs use.
#[must_use]
pub fn in_use(code: ErrorCode, word: &str, name: &str, users: &[User]) -> Problem {
    const NAMED: usize = 5;
    let first = &users[..users.len().min(NAMED)];
    let names: Vec<&str> = first.iter().map(|user| user.name.as_str()).collect();
    let mut named = names.join(", ");
    if users.len() > NAMED {
        named.push_str(&format!(" and {} more", users.len() - NAMED));
    }
    let force = if first.iter().any(|user| user.live) { "-f " } else { "" };
    Problem::new(code, format!("the {word} {name} is in use"))
        .cause(format!("it is used by {named}"))
        .hint(format!("banger rm {force}{}", names.join(" ")))
}

/// The problem of an image that only snapshots of a VM need.
#[must_use]
pub fn in_use_by_snapshots(image: &str, vm: &str) -> Problem {
    Problem::new(ErrorCode::ImageInUse, format!("the image {image} is in use"))
        .cause(format!("snapshots of the VM {vm} begin with it"))
        .hint(format!("banger snapshot ls {vm}"))
}
