//! Waiting for devices: the kernel's own announcements, so that nothing sleeps blindly.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// A listener for changes of devices.
#[derive(Debug)]
pub struct Uevents {
    socket: Option<OwnedFd>,
}

impl Uevents {
    /// Listens from now on. If the kernel does not let it, waiting falls back to looking often.
    pub fn listen() -> Self {
        Self { socket: open().ok() }
    }

    /// Looks until `look` finds something, after every announcement, for at most `limit`.
    pub fn wait_for<T>(&self, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = look() {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            self.wait(left);
        }
    }

    /// Waits for an announcement, briefly: one may have been dropped for lack of memory.
    fn wait(&self, left: Duration) {
        const DEAF: Duration = Duration::from_millis(2);
        const LISTENING: Duration = Duration::from_millis(50);
        let Some(socket) = &self.socket else {
            std::thread::sleep(DEAF.min(left));
            return;
        };
        let millis = u8::try_from(LISTENING.min(left).as_millis()).unwrap_or(u8::MAX);
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut polled, PollTimeout::from(millis.max(1)));
        let mut buffer = [0; 4096];
        while recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }
}

fn open() -> io::Result<OwnedFd> {
    const KERNEL_ANNOUNCEMENTS: u32 = 1;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_ANNOUNCEMENTS))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_when_the_thing_is_there_or_the_time_is_over() {
        let mut looks = 0;
        let found = Uevents { socket: None }.wait_for(Duration::from_secs(5), || {
            looks += 1;
            (looks == 3).then_some("it")
        });
        assert_eq!(found, Some("it"));
        let none = Uevents::listen().wait_for(Duration::from_millis(20), || None::<()>);
        assert_eq!(none, None);
    }
}
