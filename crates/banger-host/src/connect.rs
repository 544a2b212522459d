//! Unix sockets whose paths may be longer than the 108 bytes that `sockaddr_un` holds.
//!
//! The directory is opened first, and the socket is named through `/proc/self/fd`, so that only the
//! socket's own name counts.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Connects to the socket `name` in `dir`.
///
/// # Errors
/// As `connect(2)`; `NotFound` if either is missing.
pub async fn unix(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let (_dir, path) = short_path(dir, name)?;
    UnixStream::connect(path).await
}

/// Binds the socket `name` in `dir` with mode 0600, replacing what a dead process left there.
///
/// The caller must know that no live process serves that socket.
///
/// # Errors
/// As `bind(2)`.
pub fn listen(dir: &Path, name: &str) -> io::Result<std::os::unix::net::UnixListener> {
    let (_dir, path) = short_path(dir, name)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The directory is 0700, so nobody else can connect before the mode is set.
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// The same for use with tokio.
///
/// # Errors
/// As [`listen`].
pub fn listen_async(dir: &Path, name: &str) -> io::Result<UnixListener> {
    let listener = listen(dir, name)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// The directory, opened, and a short path to `name` in it that is good while it is open.
pub(crate) fn short_path(dir: &Path, name: &str) -> io::Result<(std::fs::File, PathBuf)> {
    let dir = std::fs::File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()));
    Ok((dir, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_of_any_length_works() {
        let root = tempfile::tempdir().expect("temporary directory");
        let mut dir = root.path().to_path_buf();
        for _ in 0..10 {
            dir.push("a-directory-with-quite-a-long-name");
        }
        std::fs::create_dir_all(&dir).expect("create");
        let _listener = listen_async(&dir, "s.sock").expect("bind");
        unix(&dir, "s.sock").await.expect("connect");
        drop(_listener);
        let _again = listen_async(&dir, "s.sock").expect("a stale socket is replaced");
    }
}
