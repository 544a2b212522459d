//! Signals to this process while it waits for something that can be given up.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ctrl-C and its kin. From the first moment on that this exists the signals no longer kill the
/// process.
#[derive(Debug)]
pub struct Interrupts {
    listened: Vec<(i32, Signal)>,
}

impl Interrupts {
    /// Listens for SIGINT, SIGTERM and SIGHUP, except those that the caller had ignored.
    pub fn listen() -> Self {
        Self::of(&[SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()])
    }

    /// Listens for these signals, except those that the caller had ignored.
    pub fn of(kinds: &[SignalKind]) -> Self {
        let listened = kinds
            .iter()
            .filter(|kind| !banger_host::terminal::signal_is_ignored(kind.as_raw_value()))
            .filter_map(|kind| Some((kind.as_raw_value(), signal(*kind).ok()?)))
            .collect();
        Self { listened }
    }

    /// The next signal. May be dropped and called again without losing one.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.listened {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
