//! Templates: guests that were saved right after their boot, before they were any VM.
//!
//! The first VM of a kind has one made, and goes on from it itself: it starts a little later than by a
//! boot of its own, and all that come after it in a tenth of the time (`docs/decisions/010`). A template is
//! a directory named by the digest of everything that it was made of ([`key`]), so it is never wrong, only
//! unused; what is used longest ago goes first when there is no room.
//!
//! Nothing depends on a template: one that is missing, damaged or does not work is a boot.

mod key;
mod make;
mod order;
mod shelf;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_api::event::EventType;
use banger_api::operation::OperationResult;
use banger_api::shim::{Begin, LaunchSpec};
use banger_api::template::{PruneTemplates, PrunedTemplates, Template};
use banger_api::vm::NetworkPolicy;
use banger_api::{ErrorCode, Problem, step};
use banger_core::size::MIB;
use banger_host::files;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use key::Key;
pub use order::Order;

use crate::daemon::{Daemon, blocking, failed};
use crate::events::News;
use crate::host::{LocalImage, LocalKernel};
use crate::operations::{SharedKey, Waiter};
use crate::saved;
use shelf::Entry;

/// How long none is made again that could not be made: whoever starts such a VM would wait twice.
const GRUDGE: Duration = Duration::from_secs(10 * 60);
/// The name of whoever boots for a template. It is never told to the guest.
const NOBODY: &str = "template";

/// What this daemon knows of its templates beside what is on the disk.
#[derive(Debug, Default)]
pub struct Templates {
    /// Made by this daemon, and not sealed yet.
    fresh: Mutex<BTreeSet<Key>>,
    /// Told when one of those is sealed, or given up.
    settled: Notify,
    /// Those that could not be made, and until when that is remembered.
    failed: Mutex<BTreeMap<Key, Instant>>,
}

impl Templates {
    fn fresh(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is sealed, or will never be.
    fn settle(&self, key: &Key) {
        self.fresh().remove(key);
        self.settled.notify_waiters();
    }

    /// Waits until it is settled.
    async fn settled(&self, key: &Key) {
        loop {
            let news = self.settled.notified();
            tokio::pin!(news);
            // Registered first: what is settled in between wakes it.
            news.as_mut().enable();
            if !self.fresh().contains(key) {
                return;
            }
            news.await;
        }
    }

    /// Waits until all are settled.
    #[cfg(test)]
    pub async fn all_settled(&self) {
        let keys: Vec<Key> = self.fresh().iter().cloned().collect();
        for key in keys {
            self.settled(&key).await;
        }
    }

    fn bear_grudge(&self, key: &Key) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.insert(key.clone(), Instant::now() + GRUDGE);
    }

    fn bears_grudge(&self, key: &Key) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, until| *until > Instant::now());
        failed.contains_key(key)
    }
}

/// A template that a VM could go on from, whether or not there is one.
#[derive(Debug, Clone)]
pub struct Wanted {
    key: Key,
    /// What makes it.
    launch: LaunchSpec,
    image: String,
    image_digest: String,
    kernel_digest: String,
    cpu: String,
}

impl Wanted {
    /// The template for what `launch` says. Nothing of what makes it one VM or another gets in.
    #[must_use]
    pub fn new(launch: &LaunchSpec, image: &LocalImage, kernel: &LocalKernel, cpu: String) -> Self {
        let key = key::key(launch, image, kernel, &cpu);
        let launch = LaunchSpec {
            vm_id: key.as_str().to_owned(),
            name: NOBODY.to_owned(),
            machine_id: String::new(),
            work_disk_bytes: None,
            durable: true,
            network: NetworkPolicy::Default,
            env: BTreeMap::new(),
            user: None,
            workdir: None,
            ca_certificates: Vec::new(),
            stop_signal: None,
            main: None,
            owner: None,
            begin: Begin::Save,
            trace: false,
            waits: false,
            ..launch.clone()
        };
        let (image_digest, kernel_digest) =
            (image.image.digest.clone(), kernel.kernel.digest.clone());
        Self { key, launch, image: image.image.name.clone(), image_digest, kernel_digest, cpu }
    }

    /// Its identity.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// What makes it: a guest that is nobody.
    #[must_use]
    pub fn launch(&self) -> &LaunchSpec {
        &self.launch
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self, daemon: &Daemon) -> PathBuf {
        daemon.dirs.templates().join(self.key.as_str())
    }
}

/// The template, if there is one that can be used. One that cannot is removed.
///
/// # Errors
/// Of a thread that could not do it.
pub async fn find(daemon: &Arc<Daemon>, wanted: &Wanted) -> Result<Option<PathBuf>, Problem> {
    let dir = wanted.dir(daemon);
    if daemon.templates.fresh().contains(&wanted.key) {
        return Ok(Some(dir));
    }
    let (place, key) = (dir.clone(), wanted.key.clone());
    let checked = blocking(move || Ok(place.exists().then(|| shelf::check(&place, &key)))).await?;
    match checked {
        None => Ok(None),
        Some(Ok(())) => Ok(Some(dir)),
        Some(Err(unusable)) => {
            tracing::warn!(template = %wanted.key, "it is not used: {unusable}");
            discard(daemon, wanted).await;
            Ok(None)
        }
    }
}

/// The template, made if it is not there. None if it lately could not be made.
///
/// # Errors
/// Of the making; `cancelled` if the waiter was.
pub async fn ensure(
    daemon: &Arc<Daemon>,
    wanted: &Wanted,
    waiter: Waiter<'_>,
) -> Result<Option<PathBuf>, Problem> {
    if let Some(dir) = find(daemon, wanted).await? {
        return Ok(Some(dir));
    }
    if daemon.templates.bears_grudge(&wanted.key) {
        return Ok(None);
    }
    let made = make(daemon, wanted, waiter).await;
    if made.as_ref().is_err_and(|problem| problem.code != ErrorCode::Cancelled) {
        daemon.templates.bear_grudge(&wanted.key);
    }
    made.map(|_| Some(wanted.dir(daemon)))
}

/// Makes the template, together with whoever else wants it now.
///
/// # Errors
/// As [`ensure`].
pub async fn make(
    daemon: &Arc<Daemon>,
    wanted: &Wanted,
    waiter: Waiter<'_>,
) -> Result<OperationResult, Problem> {
    let key = SharedKey {
        description: format!("make template of {}", wanted.image),
        request: wanted.key.to_string(),
    };
    let (all, what) = (Arc::clone(daemon), wanted.clone());
    let work = move |handle| async move {
        let made = make::make(Arc::clone(&all), what.clone(), handle).await?;
        if let OperationResult::Template(template) = &made {
            all.templates.fresh().insert(what.key.clone());
            tokio::spawn(make::seal(Arc::clone(&all), what, (**template).clone()));
        }
        Ok(made)
    };
    daemon.jobs.join_as(&daemon.operations, key, waiter, work).await
}

/// Removes a template that cannot be used.
pub async fn discard(daemon: &Arc<Daemon>, wanted: &Wanted) {
    if let Err(problem) = remove_dir(daemon, wanted.dir(daemon)).await {
        tracing::warn!(template = %wanted.key, "{problem}");
    }
    daemon.templates.settle(&wanted.key);
}

async fn remove_dir(daemon: &Arc<Daemon>, dir: PathBuf) -> Result<(), Problem> {
    if let Some(key) = dir.file_name() {
        daemon.pool.forget_template(&key.to_string_lossy());
    }
    daemon.gate.pass(step::TEMPLATE_REMOVE).await?;
    // Whoever began from it has it mapped, and keeps that.
    blocking(move || {
        files::remove_tree(&dir).map_err(|error| failed("cannot remove the template", &error))
    })
    .await
}

/// All templates, the one used last first.
///
/// # Errors
/// If they cannot be listed.
pub async fn list(daemon: &Arc<Daemon>) -> Result<Vec<Template>, Problem> {
    let entries = entries(daemon).await?;
    let templates = entries.into_iter().rev().filter_map(|entry| entry.template);
    Ok(templates.map(|it| Template { ready: daemon.pool.count(&it.id), ..it }).collect())
}

async fn entries(daemon: &Arc<Daemon>) -> Result<Vec<Entry>, Problem> {
    let shelf = daemon.dirs.templates();
    blocking(move || shelf::entries(&shelf).map_err(|error| cannot_list(&error))).await
}

fn cannot_list(error: &io::Error) -> Problem {
    failed("the templates cannot be listed", error)
}

/// The template whose id begins like that.
///
/// # Errors
/// `template_not_found`, also if several do.
pub async fn show(daemon: &Arc<Daemon>, id: &str) -> Result<Template, Problem> {
    let mut found = list(daemon).await?;
    found.retain(|template| !id.is_empty() && template.id.starts_with(id));
    let problem = |text: String| Problem::new(ErrorCode::TemplateNotFound, text);
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(problem(format!("there is no template {id:?}")).hint("banger template ls")),
        count => Err(problem(format!("the ids of {count} templates begin with {id}"))
            .hint("banger template ls")),
    }
}

/// Removes a template. VMs that began from it go on.
///
/// # Errors
/// As [`show`], or of the file system.
pub async fn remove(daemon: &Arc<Daemon>, id: &str) -> Result<(), Problem> {
    let template = show(daemon, id).await?;
    remove_listed(daemon, &template).await
}

async fn remove_listed(daemon: &Arc<Daemon>, template: &Template) -> Result<(), Problem> {
    remove_dir(daemon, daemon.dirs.templates().join(&template.id)).await?;
    let news = News::named(EventType::TemplateRemoved, &template.id, &template.image);
    daemon.events.tell(news);
    Ok(())
}

/// Removes the templates that no VM of a local image could begin from, or all of them; or says which.
///
/// # Errors
/// Of the first that cannot be removed.
pub async fn prune(
    daemon: &Arc<Daemon>,
    request: PruneTemplates,
) -> Result<PrunedTemplates, Problem> {
    let mut templates = list(daemon).await?;
    if !request.all {
        let useful = Useful::now(daemon).await?;
        templates.retain(|template| !useful.has(template));
    }
    if !request.dry_run {
        for template in &templates {
            remove_listed(daemon, template).await?;
        }
    }
    Ok(PrunedTemplates { templates })
}

/// What a template must be made of to be of any use.
struct Useful {
    images: BTreeSet<String>,
    kernels: BTreeSet<String>,
    cpu: String,
}

impl Useful {
    async fn now(daemon: &Arc<Daemon>) -> Result<Self, Problem> {
        let host = daemon.host.clone();
        blocking(move || {
            let images = host.artifacts.images()?.into_iter().map(|image| image.digest).collect();
            let kernels = host.artifacts.kernels()?.into_iter();
            let kernels = kernels.map(|kernel| kernel.digest).collect();
            Ok(Self { images, kernels, cpu: host.machine.cpu() })
        })
        .await
    }

    fn has(&self, template: &Template) -> bool {
        self.images.contains(&template.image_digest)
            && self.kernels.contains(&template.kernel_digest)
            && self.cpu == template.cpu
    }
}

/// Puts out of sight what former daemons left unfinished: nobody knows what is in it. For a daemon that
/// begins, before it makes any itself.
///
/// # Errors
/// Of the file system.
pub async fn set_aside_unfinished(daemon: &Arc<Daemon>) -> Result<Vec<PathBuf>, Problem> {
    let shelf = daemon.dirs.templates();
    blocking(move || {
        let found = shelf::entries(&shelf).map_err(|error| cannot_list(&error))?;
        let unfinished = found.into_iter().filter(|entry| entry.template.is_none());
        let aside = |entry: Entry| saved::set_aside(entry.dir).map_err(|error| cannot_list(&error));
        unfinished.map(aside).collect()
    })
    .await
}

/// Removes what was set aside, ending what may still run there, then what is of no use any more and what
/// is too much.
pub async fn clear_up(daemon: Arc<Daemon>, unfinished: Vec<PathBuf>) {
    for dir in unfinished {
        saved::discard(&daemon, dir).await;
    }
    tidy(&daemon).await;
}

/// Removes the templates that are of no use any more, as after an image has gone, and what is too much.
pub async fn tidy(daemon: &Arc<Daemon>) {
    if let Err(problem) = prune(daemon, PruneTemplates::default()).await {
        tracing::warn!("templates that are of no use stay: {problem}");
    }
    make_room(daemon).await;
}

/// Removes the templates that were used longest ago, until the rest takes no more than it may.
async fn make_room(daemon: &Arc<Daemon>) {
    let most = daemon.config.templates.max_size_mib.saturating_mul(MIB);
    let templates = match list(daemon).await {
        Ok(templates) => templates,
        Err(problem) => return tracing::warn!("{problem}"),
    };
    let mut taken: u64 = 0;
    for template in templates {
        taken = taken.saturating_add(template.allocated_bytes);
        // The one used last stays, however large: it would only be made again.
        if taken > most
            && taken > template.allocated_bytes
            && let Err(problem) = remove_listed(daemon, &template).await
        {
            tracing::warn!(template = %template.id, "{problem}");
        }
    }
}
