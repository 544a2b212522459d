//! Signals to this process while it waits for something that can be given up.

use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Ctrl-C and its kin. From the first moment on that this exists the signals no longer kill the
/// process.
#[derive(Debug)]
pub struct Interrupts {
    signals: mpsc::UnboundedReceiver<i32>,
}

impl Interrupts {
    /// Listens for SIGINT, SIGTERM and SIGHUP, except those that the caller had ignored.
    pub fn listen() -> Self {
        Self::of(&[SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()])
    }

    /// Listens for these signals, except those that the caller had ignored.
    pub fn of(kinds: &[SignalKind]) -> Self {
        // Here and not in the task: from now on no signal is missed.
        let mut listened: Vec<(i32, Signal)> = kinds
            .iter()
            .filter(|kind| !banger_host::terminal::signal_is_ignored(kind.as_raw_value()))
            .filter_map(|kind| Some((kind.as_raw_value(), signal(*kind).ok()?)))
            .collect();
        let (sender, signals) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let number = tokio::select! {
                    number = next_of(&mut listened) => number,
                    () = sender.closed() => return,
                };
                let _ = sender.send(number);
            }
        });
        Self { signals }
    }

    /// Signals that a test sends.
    #[cfg(test)]
    pub fn from_channel(signals: mpsc::UnboundedReceiver<i32>) -> Self {
        Self { signals }
    }

    /// The next signal. May be dropped and called again without losing one.
    pub async fn next(&mut self) -> i32 {
        match self.signals.recv().await {
            Some(number) => number,
            None => std::future::pending().await,
        }
    }
}

async fn next_of(listened: &mut [(i32, Signal)]) -> i32 {
    std::future::poll_fn(|context| {
        for (number, signal) in listened.iter_mut() {
            if signal.poll_recv(context).is_ready() {
                return Poll::Ready(*number);
            }
        }
        Poll::Pending
    })
    .await
}
