//! Saving a guest, and going on from one that was saved, by QEMU's own migration.
//!
//! The memory is a file of its own already, so only what is left is migrated: some hundred kilobytes of
//! processors and devices (`x-ignore-shared`; whoever takes it up maps that file privately).

use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::qmp::{Qmp, QmpError};
use crate::logs::printable_line;

/// How long it may take: of a running guest, that writes its memory while it is copied.
const LIMIT: Duration = Duration::from_secs(120);
/// No limit to speak of, in bytes per second: it goes from memory to memory.
const BANDWIDTH: u64 = 64 << 30;
/// How long the guest may stand still for the rest of its memory.
const DOWNTIME_MS: u64 = 50;
/// After how long a guest that writes its memory faster than it is sent may stand still for longer, in
/// milliseconds, and after how long it does until all is sent.
const HURRY_AFTER: Duration = Duration::from_secs(10);
const LONG_DOWNTIME_MS: u64 = 1000;
const STOP_AFTER: Duration = Duration::from_secs(30);
/// How long nothing may be sent of a guest that stands still.
const STALLED: Duration = Duration::from_secs(15);
/// How long a guest may stand still that does already: for whatever is left.
const ALREADY_DOWN_MS: u64 = 60_000;
/// A guest that must stand still before the end of the first pass over its memory does when what is left will
/// take that long, in milliseconds: a multiple of [`INTERVAL`], since it is too late when all is sent. It
/// stands still for about as long as that, too.
const TAIL_MS: u64 = 30;
/// The least and the most that may be left then. Pages of zeros are sent thirty times as fast as others, so
/// the pace can change from one look to the next.
const TAIL: (u64, u64) = (8 << 20, 32 << 20);
/// What the VMM calls a connection to another one.
const STREAM: &str = "stream";
/// How often to ask how far it is.
const INTERVAL: Duration = Duration::from_millis(1);
/// What the VMM calls the file that it saves to.
const DEVICES: &str = "devices";
/// Longest reason of the VMM that is told, in characters.
const MAX_REASON: usize = 300;

/// Why a guest could not be saved, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The VMM did not do as it was told.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// It tried and failed.
    #[error("the VMM gave up: {0}")]
    Failed(String),
    /// The guest stood still only when writes of it could already have been lost.
    #[error("the guest wrote what nobody saw")]
    TooLate,
    /// It takes too long.
    #[error("the VMM did not come to an end with it")]
    Timeout,
}

/// When a guest that is sent elsewhere begins to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandsStill {
    /// When the rest of its memory is small, or does not get small.
    ForTheRest,
    /// Before the end of the first pass over its memory, as long as all that it writes is seen.
    BeforeTheSecondPass,
    /// From the beginning.
    Throughout,
}

impl Qmp {
    /// Stops the guest and writes its processors and devices to `devices`. Its memory, in a shared file,
    /// is then as they expect it.
    ///
    /// # Errors
    /// [`MigrationError`].
    pub async fn save(&mut self, devices: BorrowedFd<'_>) -> Result<(), MigrationError> {
        self.execute("stop", json!({})).await?;
        self.leave_memory_alone().await?;
        self.give(DEVICES, devices).await?;
        self.execute("migrate", json!({ "uri": format!("fd:{DEVICES}") })).await?;
        self.migrated().await
    }

    /// Takes up a guest whose processors and devices come from the inherited descriptor `devices`. It
    /// stands still until it is told to go on.
    ///
    /// # Errors
    /// [`MigrationError`].
    pub async fn restore(&mut self, devices: RawFd) -> Result<(), MigrationError> {
        self.leave_memory_alone().await?;
        self.execute("migrate-incoming", json!({ "uri": format!("fd:{devices}") })).await?;
        self.migrated().await
    }

    /// Begins to take up a guest with all of its memory from the other end of `stream`.
    ///
    /// # Errors
    /// [`MigrationError`].
    pub async fn receive(&mut self, stream: BorrowedFd<'_>) -> Result<(), MigrationError> {
        self.set_ignore_shared(false).await?;
        self.give(STREAM, stream).await?;
        self.execute("migrate-incoming", json!({ "uri": format!("fd:{STREAM}") })).await?;
        Ok(())
    }

    /// Sends the guest with all of its memory to the other end of `stream`. It stands still in the end; since
    /// when comes back.
    ///
    /// # Errors
    /// [`MigrationError`]. The guest may then stand still.
    pub async fn send(
        &mut self,
        stream: BorrowedFd<'_>,
        when: StandsStill,
    ) -> Result<Instant, MigrationError> {
        let since = Instant::now();
        if when == StandsStill::Throughout {
            self.execute("stop", json!({})).await?;
        }
        let downtime_ms = match when {
            // Also where it stands still: for what is the rest QEMU stops answering until it is sent.
            StandsStill::ForTheRest | StandsStill::Throughout => DOWNTIME_MS,
            // It must not be looked at again because little is left: that is asked here.
            StandsStill::BeforeTheSecondPass => 1,
        };
        self.begin_to_send(stream, downtime_ms).await?;
        match when {
            StandsStill::ForTheRest => {
                self.rest_is_small().await?;
                return Ok(Instant::now());
            }
            StandsStill::BeforeTheSecondPass => return self.first_pass_ends().await,
            StandsStill::Throughout => self.rest_is_sent().await?,
        }
        Ok(since)
    }

    async fn begin_to_send(
        &mut self,
        stream: BorrowedFd<'_>,
        downtime_ms: u64,
    ) -> Result<(), QmpError> {
        self.set_ignore_shared(false).await?;
        let limits = json!({ "max-bandwidth": BANDWIDTH, "downtime-limit": downtime_ms });
        self.execute("migrate-set-parameters", limits).await?;
        self.give(STREAM, stream).await?;
        self.execute("migrate", json!({ "uri": format!("fd:{STREAM}") })).await?;
        Ok(())
    }

    async fn set_downtime(&mut self, limit_ms: u64) -> Result<(), QmpError> {
        let limit = json!({ "downtime-limit": limit_ms });
        self.execute("migrate-set-parameters", limit).await.map(drop)
    }

    /// Waits until the rest is small enough for the guest to stand still, and is sent.
    async fn rest_is_small(&mut self) -> Result<(), MigrationError> {
        let began = Instant::now();
        if self.migrated_by(began + HURRY_AFTER).await? {
            return Ok(());
        }
        self.set_downtime(LONG_DOWNTIME_MS).await?;
        if self.migrated_by(began + STOP_AFTER).await? {
            return Ok(());
        }
        self.execute("stop", json!({})).await?;
        self.migrated().await
    }

    /// Has the guest stand still near the end of the first pass over its memory, and waits until all is
    /// sent. It has been looked at once for what it had written, when that began; what it writes is seen
    /// until that is done again, so whether it has been is asked when it stands still.
    async fn first_pass_ends(&mut self) -> Result<Instant, MigrationError> {
        let deadline = Instant::now() + LIMIT;
        let mut pace = Pace::default();
        loop {
            let told = self.execute("query-migrate", json!({})).await?;
            let left = told["ram"]["remaining"].as_u64().unwrap_or(u64::MAX);
            let tail = pace.tail(left, Instant::now());
            match told["status"].as_str().unwrap_or_default() {
                "completed" => return Err(MigrationError::TooLate),
                "failed" | "cancelled" => return Err(MigrationError::Failed(reason(&told))),
                "active" if left <= tail => break,
                _ if Instant::now() > deadline => return Err(MigrationError::Timeout),
                _ => sleep(INTERVAL).await,
            }
        }
        let since = Instant::now();
        self.execute("stop", json!({})).await?;
        let told = self.execute("query-migrate", json!({})).await?;
        if told["ram"]["dirty-sync-count"].as_u64() != Some(1) {
            return Err(MigrationError::TooLate);
        }
        self.rest_is_sent().await?;
        Ok(since)
    }

    /// Waits until all of a guest that stands still is sent, as long as that goes on.
    async fn rest_is_sent(&mut self) -> Result<(), MigrationError> {
        let (mut before, mut since, mut is_little) = (u64::MAX, Instant::now(), false);
        loop {
            let told = self.execute("query-migrate", json!({})).await?;
            let left = told["ram"]["remaining"].as_u64().unwrap_or(u64::MAX);
            match told["status"].as_str().unwrap_or_default() {
                "completed" => return Ok(()),
                "failed" | "cancelled" => return Err(MigrationError::Failed(reason(&told))),
                _ if since.elapsed() > STALLED => return Err(MigrationError::Timeout),
                _ => {}
            }
            if !is_little && left <= TAIL.1 {
                // Nothing is written any more, so whatever is left is the rest.
                self.set_downtime(ALREADY_DOWN_MS).await?;
                is_little = true;
            }
            if left != before {
                (before, since) = (left, Instant::now());
            }
            sleep(INTERVAL).await;
        }
    }

    /// Waits until a guest that is being received is whole.
    ///
    /// # Errors
    /// [`MigrationError`].
    pub async fn received(&mut self) -> Result<(), MigrationError> {
        self.migrated().await
    }

    /// The capability must be the same on both sides: it is a part of the format.
    async fn leave_memory_alone(&mut self) -> Result<(), QmpError> {
        self.set_ignore_shared(true).await
    }

    async fn set_ignore_shared(&mut self, state: bool) -> Result<(), QmpError> {
        let ignored = json!({ "capability": "x-ignore-shared", "state": state });
        let arguments = json!({ "capabilities": [ignored] });
        self.execute("migrate-set-capabilities", arguments).await.map(drop)
    }

    /// Waits for the end of what is under way.
    async fn migrated(&mut self) -> Result<(), MigrationError> {
        match self.migrated_by(Instant::now() + LIMIT).await? {
            true => Ok(()),
            false => Err(MigrationError::Timeout),
        }
    }

    /// Whether what is under way comes to its end by then.
    async fn migrated_by(&mut self, deadline: Instant) -> Result<bool, MigrationError> {
        while Instant::now() < deadline {
            let told = self.execute("query-migrate", json!({})).await?;
            match told["status"].as_str().unwrap_or_default() {
                "completed" => return Ok(true),
                "failed" | "cancelled" => return Err(MigrationError::Failed(reason(&told))),
                _ => sleep(INTERVAL).await,
            }
        }
        Ok(false)
    }
}

/// How fast memory is being sent.
#[derive(Debug, Default)]
struct Pace {
    /// What was left at the last look, and when that was.
    last: Option<(u64, Instant)>,
    /// Bytes per millisecond between the last two looks.
    rate: u64,
}

impl Pace {
    /// What is sent within [`TAIL_MS`], as it went lately.
    fn tail(&mut self, left: u64, now: Instant) -> u64 {
        let before = self.rate;
        if let Some((then_left, then)) = self.last.replace((left, now)) {
            let micros = u64::try_from(now.duration_since(then).as_micros()).unwrap_or(u64::MAX);
            self.rate = then_left.saturating_sub(left).saturating_mul(1000) / micros.max(1);
        }
        let (least, most) = TAIL;
        // One look may fall where nothing was sent for a moment.
        self.rate.max(before).saturating_mul(TAIL_MS).clamp(least, most)
    }
}

fn reason(told: &Value) -> String {
    printable_line(told["error-desc"].as_str().unwrap_or("it gave no reason"), MAX_REASON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_what_is_sent_in_a_moment() {
        const MIB: u64 = 1 << 20;
        let (mut pace, began) = (Pace::default(), Instant::now());
        let mut tail = |left, ms| pace.tail(left, began + Duration::from_millis(ms)) / MIB;
        assert_eq!(tail(1000 * MIB, 0), 8, "nobody knows yet");
        assert_eq!(tail(999 * MIB, 2), 15, "half a MiB in a millisecond");
        assert_eq!(tail(999 * MIB, 4), 15, "nothing was sent for a moment");
        assert_eq!(tail(998 * MIB, 14), 8);
        assert_eq!(tail(900 * MIB, 16), 32, "zeros");
    }
}
