//! Guests that stand ready: each has a shim, a network and a VMM, went on from a template, and stands
//! still until a VM of its kind is made, which it then is.
//!
//! Off unless `pool.size` is set. Ready are guests of the kinds that were started last, as many as
//! `pool.size` of each and as fit into `pool.max_memory_mib`; [`plan`] decides, one task acts.
//!
//! Such a guest has the directory of the VM that it will be, whose launch file says that it is nobody's,
//! and no row. It goes when this daemon goes; the next one removes the directory ([`clear_up`]). A VM
//! takes it by getting a row with its id.

mod kind;
mod make;
mod plan;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_api::shim::{Begin, LAUNCH_FILE};
use banger_api::vm::{Origin, StartVm};
use banger_api::{ErrorCode, Problem, step};
use banger_core::id::Id;
use banger_core::size::MIB;
use banger_host::config::PoolConfig;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use kind::Kind;
use make::Recipe;
use plan::{Bounds, Next, Standing, Wish};

use crate::daemon::Daemon;
use crate::host::WaitingShim;
use crate::saved;
use crate::store::VmRow;
use crate::templates::Key;
use crate::vm::{Needs, launch_spec, read_launch_file};

/// Most kinds that are remembered.
const MAX_KINDS: usize = 8;

/// A guest that stands ready. Dropped, its processes end.
#[derive(Debug)]
pub struct Guest {
    /// The id that its VM has.
    pub id: Id,
    /// The machine-id that its VM has.
    pub machine_id: String,
    /// What it went on from.
    pub template: Key,
    /// How it began.
    pub begin: Begin,
    /// Its shim.
    pub shim: WaitingShim,
    kind: Kind,
    private_bytes: u64,
}

impl Guest {
    /// Its shim has ended, and so has it.
    fn is_dead(&self) -> bool {
        self.shim.events.is_closed()
    }

    /// Ends it, and removes what is there of it.
    ///
    /// # Errors
    /// Only where a test wants the step to fail.
    pub async fn end(self, daemon: &Arc<Daemon>) -> Result<(), Problem> {
        let dir = daemon.vm_dir(&self.id);
        drop(self);
        daemon.gate.pass(step::POOL_END).await?;
        saved::discard(daemon, dir).await;
        Ok(())
    }
}

/// All that stand ready.
#[derive(Debug)]
pub struct Pool {
    bounds: Bounds,
    state: Mutex<State>,
    /// Told when there may be something to do.
    changed: Notify,
    /// Held by whoever does it.
    working: tokio::sync::Mutex<()>,
    /// Set when nothing shall be done any more.
    closing: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// The one used last first.
    wishes: Vec<Wanted>,
    guests: Vec<Guest>,
}

/// A kind of which guests shall stand ready.
#[derive(Debug)]
struct Wanted {
    recipe: Recipe,
    bytes: Option<u64>,
    has_failed: bool,
}

impl Pool {
    /// An empty one.
    #[must_use]
    pub fn new(config: PoolConfig) -> Self {
        let bytes = config.max_memory_mib.saturating_mul(MIB);
        let bounds = Bounds { each: usize::try_from(config.size).unwrap_or(usize::MAX), bytes };
        Self {
            bounds,
            state: Mutex::default(),
            changed: Notify::new(),
            working: tokio::sync::Mutex::default(),
            closing: CancellationToken::new(),
        }
    }

    /// Whether anything shall ever stand ready.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.bounds.each > 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest for a VM, which is the caller's from now on.
    #[must_use]
    pub fn take(&self, row: &VmRow) -> Option<Guest> {
        if !self.is_on() {
            return None;
        }
        let kind = Kind::of(row)?;
        let guests = &mut self.state().guests;
        let at = guests.iter().position(|guest| guest.kind == kind && !guest.is_dead())?;
        Some(guests.remove(at))
    }

    /// How many stand ready that went on from a template.
    #[must_use]
    pub fn count(&self, template: &str) -> u32 {
        let state = self.state();
        let of_it = |guest: &&Guest| guest.template.as_str() == template && !guest.is_dead();
        u32::try_from(state.guests.iter().filter(of_it).count()).unwrap_or(u32::MAX)
    }

    /// Nobody shall begin from that template any more.
    pub fn forget_template(&self, template: &str) {
        self.state().wishes.retain(|wanted| wanted.recipe.template.key().as_str() != template);
        self.changed.notify_one();
    }

    /// Has it looked after: nobody says that a guest has died.
    pub fn look(&self) {
        self.changed.notify_one();
    }

    /// Ends all, and wants none.
    pub async fn empty(&self, daemon: &Arc<Daemon>) {
        let guests = {
            let mut state = self.state();
            state.wishes.clear();
            std::mem::take(&mut state.guests)
        };
        for guest in guests {
            note(guest.end(daemon).await);
        }
    }

    /// Ends all for good, also one that is just being made.
    pub async fn close(&self, daemon: &Arc<Daemon>) {
        self.closing.cancel();
        let _idle = self.working.lock().await;
        self.empty(daemon).await;
    }

    /// Such guests shall stand ready.
    fn want(&self, recipe: Recipe) {
        let mut state = self.state();
        let known = state.wishes.iter().position(|known| known.recipe.kind == recipe.kind);
        let bytes = known.and_then(|at| state.wishes.remove(at).bytes);
        state.wishes.insert(0, Wanted { recipe, bytes, has_failed: false });
        state.wishes.truncate(MAX_KINDS);
        drop(state);
        self.changed.notify_one();
    }

    fn next(&self) -> Act {
        let mut state = self.state();
        let wishes: Vec<Wish<&Kind>> = state
            .wishes
            .iter()
            .map(|it| Wish { kind: &it.recipe.kind, bytes: it.bytes, has_failed: it.has_failed })
            .collect();
        let guests: Vec<Standing<&Kind>> = state
            .guests
            .iter()
            .map(|it| Standing { kind: &it.kind, bytes: it.private_bytes, is_dead: it.is_dead() })
            .collect();
        match plan::next(&wishes, &guests, self.bounds) {
            Next::Make(at) => Act::Make(Box::new(state.wishes[at].recipe.clone())),
            Next::End(at) => Act::End(Box::new(state.guests.remove(at))),
            Next::Rest => Act::Rest,
        }
    }

    /// A guest was made, or could not be.
    fn made(&self, recipe: &Recipe, made: Result<Guest, Problem>) {
        let mut state = self.state();
        let wanted = state.wishes.iter_mut().find(|it| it.recipe.kind == recipe.kind);
        match made {
            Ok(guest) => {
                tracing::info!(
                    template = %guest.template,
                    private_bytes = guest.private_bytes,
                    "a guest stands ready"
                );
                if let Some(wanted) = wanted {
                    wanted.bytes = wanted.bytes.max(Some(guest.private_bytes));
                }
                state.guests.push(guest);
            }
            Err(problem) if problem.code == ErrorCode::Cancelled => {}
            Err(problem) => {
                tracing::warn!("no guest stands ready: {problem}");
                // Tried again when such a VM is started the next time.
                if let Some(wanted) = wanted {
                    wanted.has_failed = true;
                }
            }
        }
    }
}

/// What there is to do.
#[derive(Debug)]
enum Act {
    Make(Box<Recipe>),
    End(Box<Guest>),
    Rest,
}

/// Keeps the pool what it shall be, as long as the daemon lives.
pub async fn keep(daemon: Arc<Daemon>) {
    let pool = &daemon.pool;
    while pool.is_on() && !pool.closing.is_cancelled() {
        let working = pool.working.lock().await;
        match pool.next() {
            Act::Make(recipe) => {
                let made = make::make(&daemon, &recipe, &pool.closing).await;
                pool.made(&recipe, made);
            }
            Act::End(guest) => note(guest.end(&daemon).await),
            Act::Rest => {
                drop(working);
                tokio::select! {
                    () = pool.changed.notified() => {}
                    () = pool.closing.cancelled() => {}
                }
            }
        }
    }
}

/// A VM has come up: if it is of a kind that can stand ready, such guests shall.
pub fn note_start(daemon: &Arc<Daemon>, row: &Arc<VmRow>, origin: Option<Origin>) {
    let went_on = matches!(origin, Some(Origin::Template | Origin::Pool));
    if !daemon.pool.is_on() || !went_on {
        return;
    }
    let Some(kind) = Kind::of(row) else { return };
    let (daemon, row) = (Arc::clone(daemon), Arc::clone(row));
    // The VM does not wait for this.
    tokio::spawn(async move {
        match Needs::gather(&daemon, &row).await {
            Ok(needs) => {
                let (launch, _) = launch_spec(&daemon, &row, &StartVm::default(), &needs);
                let template = needs.template(&daemon, &launch);
                daemon.pool.want(Recipe { kind, template });
            }
            Err(problem) => tracing::warn!("none like it will stand ready: {problem}"),
        }
    });
}

/// Whether a directory that belongs to no VM is one of a guest that stood ready.
#[must_use]
pub fn is_guests(dir: &Path) -> bool {
    read_launch_file(&dir.join(LAUNCH_FILE)).is_some_and(|launch| launch.waits)
}

/// Removes what a former daemon's guests left.
pub async fn clear_up(daemon: Arc<Daemon>, dirs: Vec<PathBuf>) {
    for dir in dirs {
        saved::discard(&daemon, dir).await;
    }
}

fn note(outcome: Result<(), Problem>) {
    if let Err(problem) = outcome {
        tracing::warn!("a guest that stood ready was not ended: {problem}");
    }
}
