//! What all requests share: whether this guest is configured, and whether it is going down.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use banger_api::agent::ShutdownAction;
use banger_api::{ErrorCode, Problem};
use tokio::sync::{Notify, watch};

use crate::boot::RootOutcome;
use crate::exec::cgroup::Cgroups;
use crate::init::Init;
use crate::reaper::Reaper;

/// The agent's state, one per guest.
#[derive(Debug)]
pub struct Agent {
    reaper: Arc<Reaper>,
    cgroups: Arc<Cgroups>,
    init: Init,
    root: watch::Receiver<Option<RootOutcome>>,
    settings: Mutex<Option<Arc<Settings>>>,
    configuring: tokio::sync::Mutex<()>,
    stopping: AtomicBool,
    parked: Notify,
    ended: watch::Sender<Option<ShutdownAction>>,
}

/// What `configure` said that commands need to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which VM this is.
    pub machine_id: String,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// Default user; None is root.
    pub user: Option<String>,
    /// Default working directory; None is the user's home.
    pub workdir: Option<String>,
}

impl Agent {
    /// An unconfigured agent whose root disk is being set up.
    pub fn new(
        root: watch::Receiver<Option<RootOutcome>>,
        init: Init,
        cgroups: Cgroups,
    ) -> Arc<Self> {
        Arc::new(Self {
            reaper: Arc::default(),
            cgroups: Arc::new(cgroups),
            init,
            root,
            settings: Mutex::new(None),
            configuring: tokio::sync::Mutex::new(()),
            stopping: AtomicBool::new(false),
            parked: Notify::new(),
            ended: watch::Sender::new(None),
        })
    }

    /// Who collects ended processes.
    pub fn reaper(&self) -> &Arc<Reaper> {
        &self.reaper
    }

    /// Where commands are held.
    pub fn cgroups(&self) -> &Arc<Cgroups> {
        &self.cgroups
    }

    /// The guest's first process.
    pub fn init(&self) -> &Init {
        &self.init
    }

    /// Waits for the root disk.
    ///
    /// # Errors
    /// The reason why there is none.
    pub async fn root_warnings(&self) -> Result<Vec<String>, Problem> {
        let mut root = self.root.clone();
        let outcome = root.wait_for(Option::is_some).await;
        match outcome.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(Problem::new(ErrorCode::Internal, "The guest's boot ended without a result")),
        }
    }

    /// Lets one `configure` at a time go on.
    pub async fn configuring(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.configuring.lock().await
    }

    /// The settings, once `configure` has succeeded.
    pub fn settings(&self) -> Option<Arc<Settings>> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the guest configured, or unconfigured.
    pub fn set_settings(&self, settings: Option<Settings>) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings.map(Arc::new);
    }

    /// Ends the connection of the host that has had the guest parked.
    pub fn hang_up(&self) {
        self.parked.notify_one();
    }

    /// Waits for [`Agent::hang_up`].
    pub async fn hung_up(&self) {
        self.parked.notified().await;
    }

    /// Begins the one shutdown there can be; false if there is one already.
    pub fn begin_shutdown(&self) -> bool {
        !self.stopping.swap(true, Ordering::Relaxed)
    }

    /// Whether the guest is going down.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Says that everything is synced and unmounted and the answer is out.
    pub fn end(&self, action: ShutdownAction) {
        self.ended.send_replace(Some(action));
    }

    /// Waits for [`Agent::end`].
    pub async fn ended(&self) -> ShutdownAction {
        let mut ended = self.ended.subscribe();
        let action = ended.wait_for(Option::is_some).await.ok().and_then(|action| *action);
        // The sender lives as long as `self`, so this is always what was sent.
        action.unwrap_or(ShutdownAction::PowerOff)
    }
}
