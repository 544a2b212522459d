//! The way of wishes to whoever watches the machine. Orders have another: those end it, whoever takes
//! them.

use tokio::sync::{Mutex, mpsc};

/// Wishes that wait.
const WAITING: usize = 16;

/// Something that somebody waits for.
pub(crate) trait Wanted {
    /// Nobody waits for it any more.
    fn is_given_up(&self) -> bool;
}

/// Wishes, the first one first.
#[derive(Debug)]
pub(crate) struct Wishes<W> {
    sender: mpsc::Sender<W>,
    waiting: Mutex<mpsc::Receiver<W>>,
}

impl<W> Default for Wishes<W> {
    fn default() -> Self {
        let (sender, waiting) = mpsc::channel(WAITING);
        Self { sender, waiting: Mutex::new(waiting) }
    }
}

impl<W: Wanted> Wishes<W> {
    /// Adds one.
    pub(crate) async fn send(&self, wish: W) {
        // Neither end of this channel is dropped while there is a VM.
        let _ = self.sender.send(wish).await;
    }

    /// The next that somebody still waits for.
    pub(crate) async fn next(&self) -> W {
        let mut waiting = self.waiting.lock().await;
        loop {
            match waiting.recv().await {
                Some(wish) if wish.is_given_up() => {}
                Some(wish) => return wish,
                None => std::future::pending().await,
            }
        }
    }
}
