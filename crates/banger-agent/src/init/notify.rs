//! What systemd says to whoever started it: the datagrams of `sd_notify`. Its `READY=1` comes when
//! the last job of the boot is done, whether or not every unit came up.

use std::io;
use std::path::Path;

use tokio::net::UnixDatagram;

/// Where the datagrams go. Only root may write there.
pub const SOCKET: &str = "/run/banger/init.notify";
/// Longest datagram of which anything is read.
const MOST: usize = 4096;

/// The receiving end.
#[derive(Debug)]
pub struct Notifications {
    socket: UnixDatagram,
}

impl Notifications {
    /// Opens it. Needs the runtime.
    pub fn bind() -> io::Result<Self> {
        Self::bind_at(Path::new(SOCKET))
    }

    fn bind_at(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let _ = std::fs::remove_file(path);
        Ok(Self { socket: UnixDatagram::bind(path)? })
    }

    /// Waits until everything is started.
    pub async fn up(&self) {
        let mut buffer = [0; MOST];
        loop {
            match self.socket.recv(&mut buffer).await {
                Ok(count) if says_ready(&buffer[..count]) => return,
                Ok(_) => {}
                // Nothing will ever come.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

fn says_ready(datagram: &[u8]) -> bool {
    datagram.split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ready_is_a_line_of_its_own() {
        assert!(says_ready(b"READY=1"));
        assert!(says_ready(b"STATUS=Startup finished\nREADY=1\n"));
        for other in [&b""[..], b"READY=0", b"STATUS=READY=1", b"READY=10", b"STOPPING=1"] {
            assert!(!says_ready(other), "{other:?}");
        }
    }

    #[tokio::test]
    async fn waiting_ends_with_the_word_and_not_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run/init.notify");
        let notifications = Notifications::bind_at(&path).expect("bound");
        let systemd = UnixDatagram::unbound().expect("a socket");
        systemd.send_to(b"STATUS=Starting", &path).await.expect("sent");
        let up = tokio::time::timeout(Duration::from_millis(50), notifications.up());
        assert!(up.await.is_err(), "not yet");
        systemd.send_to(b"READY=1\nSTATUS=Ready.", &path).await.expect("sent");
        notifications.up().await;
    }
}
