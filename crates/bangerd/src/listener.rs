//! The daemon's socket, for its owner and root, and always where the CLI looks for it.
//!
//! The runtime directory is on a tmpfs that others empty: a cleaner of `/tmp`, logind at logout. A
//! daemon whose socket is gone from there could not be asked for anything, not even to end, so it
//! looks now and then and binds it again.
//!
//! A daemon that ends takes its socket away first, and then answers everybody who had come: closing
//! a socket on which somebody waits would break a connection whose owner cannot tell whether what
//! they asked for was done.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::serve::Listener;
use banger_host::connect;
use banger_host::paths::{API_SOCKET, ensure_private};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// How often the socket is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Pause after the kernel refused a connection, so that a full descriptor table is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the last one who came before the end may take from connecting to asking.
const LAST_QUESTION: Duration = Duration::from_millis(20);

/// The socket. Its mode lets only its owner in; this holds even if somebody changes that.
#[derive(Debug)]
pub struct OwnersOnly {
    listener: UnixListener,
    /// The runtime directory.
    dir: PathBuf,
    owner: u32,
    /// Device and inode of the socket that was bound.
    place: (u64, u64),
    /// It could not be bound again; said once.
    is_lost: bool,
    end: End,
}

/// The end of a socket, in two steps.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// Set by whoever wants it: nobody else may come.
    pub close: CancellationToken,
    /// Set when everybody who had come was let in.
    pub drained: CancellationToken,
}

impl OwnersOnly {
    /// Takes a listener that is bound to the socket in `dir`.
    ///
    /// # Errors
    /// If the socket is not there.
    pub fn new(listener: UnixListener, dir: &Path, end: End) -> io::Result<Self> {
        let bound = std::fs::metadata(dir.join(API_SOCKET))?;
        let place = (bound.dev(), bound.ino());
        let dir = dir.to_owned();
        Ok(Self { listener, dir, owner: bound.uid(), place, is_lost: false, end })
    }

    /// Binds the socket again if it is gone. One that another daemon serves there stays.
    async fn keep_place(&mut self) {
        if !self.is_gone().await {
            return;
        }
        match self.bind_again() {
            Ok(()) => tracing::warn!(dir = %self.dir.display(), "the socket was gone; bound again"),
            Err(error) if !self.is_lost => {
                self.is_lost = true;
                tracing::error!("the socket is gone and cannot be bound again: {error}");
            }
            Err(_) => {}
        }
    }

    async fn is_gone(&self) -> bool {
        match std::fs::symlink_metadata(self.dir.join(API_SOCKET)) {
            Ok(there) if (there.dev(), there.ino()) == self.place => false,
            Ok(_) => {
                let answer = connect::unix(&self.dir, API_SOCKET).await;
                answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            }
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    fn bind_again(&mut self) -> io::Result<()> {
        ensure_private(&self.dir).map_err(io::Error::other)?;
        let listener = connect::listen_async(&self.dir, API_SOCKET)?;
        *self = Self::new(listener, &self.dir, self.end.clone())?;
        Ok(())
    }

    /// The next connection, or that of somebody who cannot be let in.
    async fn next(&mut self) -> io::Result<(UnixStream, SocketAddr)> {
        loop {
            tokio::select! {
                biased;
                accepted = self.listener.accept() => return accepted,
                () = self.end.close.cancelled() => return self.last_one().await,
                () = tokio::time::sleep(LOOK) => self.keep_place().await,
            }
        }
    }

    /// The same at the end. Never, once there is nobody any more.
    async fn last_one(&mut self) -> io::Result<(UnixStream, SocketAddr)> {
        // What cannot be removed here is tried again, and told, when everything is over.
        let _ = std::fs::remove_file(self.dir.join(API_SOCKET));
        tokio::select! {
            biased;
            accepted = self.listener.accept() => return accepted,
            () = tokio::time::sleep(LAST_QUESTION) => {}
        }
        self.end.drained.cancel();
        std::future::pending().await
    }
}

impl Listener for OwnersOnly {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            match self.next().await {
                Ok((stream, address)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == self.owner || peer.uid() == 0 => {
                        return (stream, address);
                    }
                    Ok(peer) => tracing::warn!(uid = peer.uid(), "somebody else was turned away"),
                    Err(error) => tracing::warn!("a connection from nobody: {error}"),
                },
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_gone_is_bound_again_and_a_foreign_one_stays() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = root.path().join("run");
        ensure_private(&dir).expect("create");
        let bound = connect::listen_async(&dir, API_SOCKET).expect("bind");
        let mut listener = OwnersOnly::new(bound, &dir, End::default()).expect("it is there");
        assert!(!listener.is_gone().await);

        std::fs::remove_dir_all(&dir).expect("remove");
        let accepting = tokio::spawn(async move { (listener.accept().await, listener) });
        let again = async {
            while connect::unix(&dir, API_SOCKET).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), again).await.expect("bound again");
        let (_, listener) = accepting.await.expect("no panic");

        std::fs::remove_file(dir.join(API_SOCKET)).expect("remove");
        drop(std::os::unix::net::UnixListener::bind(dir.join(API_SOCKET)).expect("stale"));
        assert!(listener.is_gone().await, "nobody serves what is there");
        let _other = connect::listen(&dir, API_SOCKET).expect("another daemon");
        assert!(!listener.is_gone().await, "somebody does");
    }
}
