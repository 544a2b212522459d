//! What the command wrote, on its way to our stdout and stderr.
//!
//! A thread writes, because writing blocks for as long as the reader likes, and signals must go on
//! meanwhile. One thread for both streams keeps the order in which the command wrote.

use std::io::{self, Write};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// Frames that wait for the writer at most.
const QUEUE: usize = 4;

/// Which of our streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The writer.
#[derive(Debug)]
pub struct Output {
    sender: Option<mpsc::Sender<(Target, Bytes)>>,
    end: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// Starts the writer.
    pub fn start(stdout: Box<dyn Write + Send>, stderr: Box<dyn Write + Send>) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE);
        let (report, end) = oneshot::channel();
        let spawned = std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || drop(report.send(write(queue, stdout, stderr))));
        let end = match spawned {
            Ok(_) => end,
            Err(error) => {
                let (refused, end) = oneshot::channel();
                drop(refused.send(Err(error)));
                end
            }
        };
        Self { sender: Some(sender), end }
    }

    /// Where to send what shall be written. It takes frames as fast as they can be written.
    pub fn sender(&mut self) -> mpsc::Sender<(Target, Bytes)> {
        // Taken and not copied, so that the writer ends with the last of the receiver's frames.
        self.sender.take().expect("asked for once, when the session begins")
    }

    /// Waits for the writer to fail.
    pub async fn broken(&mut self) -> io::Error {
        match (&mut self.end).await {
            Ok(Err(error)) => error,
            // It ends without a failure only after its sender is gone, and then nobody asks.
            Ok(Ok(())) => std::future::pending().await,
            Err(_) => broke_off(),
        }
    }

    /// Waits until everything is written.
    pub async fn finish(self) -> io::Result<()> {
        self.end.await.unwrap_or_else(|_| Err(broke_off()))
    }
}

fn broke_off() -> io::Error {
    io::Error::other("the writer broke off")
}

fn write(
    mut queue: mpsc::Receiver<(Target, Bytes)>,
    mut stdout: Box<dyn Write + Send>,
    mut stderr: Box<dyn Write + Send>,
) -> io::Result<()> {
    while let Some((target, bytes)) = queue.blocking_recv() {
        match target {
            Target::Stdout => stdout.write_all(&bytes)?,
            Target::Stderr => stderr.write_all(&bytes)?,
        }
    }
    Ok(())
}
