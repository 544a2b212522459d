//! The port as an asynchronous stream.
//!
//! A port whose host end is closed reads as end of file, and `poll` calls it readable and hung up
//! until a host comes. The runtime's own wrapper takes "hung up" as final and would spin. So an
//! inner, edge-triggered epoll watches the port, and the runtime watches the inner epoll, which is
//! readable exactly when something changed. The kernel wakes the port's waiters when a host
//! connects, so waiting for one costs nothing.
//!
//! News of the host's coming and going take another way through the kernel than its bytes, so "hung
//! up" may be read after the first bytes of the *next* connection. Therefore it is believed only if
//! it stays so for a moment. A host that hangs up and comes back sooner is recognised by its
//! greeting in the middle of the old conversation.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long the port must stay hung up until it reads as end of file.
const HANG_UP: Duration = Duration::from_millis(100);

/// The port; reads as end of file while no host is connected.
#[derive(Debug)]
pub struct Port {
    device: OwnedFd,
    changes: AsyncFd<Changes>,
    /// Runs while the port is hung up.
    hang_up: Option<Pin<Box<Sleep>>>,
    read: Direction,
    write: Direction,
}

/// The inner epoll.
#[derive(Debug)]
struct Changes(Epoll);

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// What is known of reading or of writing.
#[derive(Debug, Default)]
struct Direction {
    /// The last attempt would have blocked and nothing changed since.
    blocked: bool,
    /// Who waits for a change.
    waiting: Option<Waker>,
}

impl Direction {
    fn unblock(&mut self) {
        self.blocked = false;
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }
}

impl Port {
    /// Takes a non-blocking descriptor of the port.
    pub fn new(device: OwnedFd) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&device, EpollEvent::new(interest, 0))?;
        // SAFETY: the epoll is owned and stays the same until the registration drops it.
        let changes =
            unsafe { AsyncFd::register_with_interest(Changes(epoll), Interest::READABLE)? };
        let (read, write) = (Direction::default(), Direction::default());
        Ok(Self { device, changes, hang_up: None, read, write })
    }

    /// Waits until a host is connected.
    pub async fn wait_for_host(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            while self.is_hung_up()? {
                ready!(self.poll_change(cx))?;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    fn is_hung_up(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO)?;
        Ok(polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
    }

    /// Waits for a change of the port, after which both directions are worth another attempt.
    fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.changes.poll_read_ready(cx))?;
            let mut events = [EpollEvent::empty()];
            match guard.get_inner().0.wait(&mut events, EpollTimeout::ZERO) {
                Ok(0) => guard.clear_ready(),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        self.read.unblock();
        self.write.unblock();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let waited = this.hang_up.as_mut().is_some_and(|it| it.as_mut().poll(cx).is_ready());
        if waited {
            this.hang_up = None;
            this.read.blocked = false;
        }
        loop {
            if this.read.blocked {
                this.read.waiting = Some(cx.waker().clone());
                ready!(this.poll_change(cx))?;
            }
            match nix::unistd::read(&this.device, buffer.initialize_unfilled()) {
                Ok(0) if waited => return Poll::Ready(Ok(())),
                Ok(0) => {
                    let wait = this.hang_up.get_or_insert_with(|| Box::pin(sleep(HANG_UP)));
                    // Only to be woken: it has just begun.
                    let _ = wait.as_mut().poll(cx);
                    this.read.blocked = true;
                }
                Ok(count) => {
                    this.hang_up = None;
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::EAGAIN) => {
                    this.hang_up = None;
                    this.read.blocked = true;
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            if this.write.blocked {
                this.write.waiting = Some(cx.waker().clone());
                ready!(this.poll_change(cx))?;
            }
            match nix::unistd::write(&this.device, bytes) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(Errno::EAGAIN) => this.write.blocked = true,
                Err(Errno::EINTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Only the host can hang up.
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (Port, tokio::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).expect("non-blocking");
        }
        let theirs = tokio::net::UnixStream::from_std(theirs).expect("a stream");
        (Port::new(ours.into()).expect("a port"), theirs)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_in_any_amount() {
        const MANY: usize = 3_000_000;
        let (port, theirs) = pair();
        let (mut port_read, mut port_write) = tokio::io::split(port);
        let (mut their_read, mut their_write) = tokio::io::split(theirs);
        let sending = async {
            port_write.write_all(&vec![1; MANY]).await.expect("written");
        };
        let answering = async {
            their_write.write_all(&vec![2; MANY]).await.expect("written");
        };
        let receiving = async {
            let mut bytes = vec![0; MANY];
            port_read.read_exact(&mut bytes).await.expect("read");
            assert!(bytes.iter().all(|byte| *byte == 2));
        };
        let reading = async {
            let mut bytes = vec![0; MANY];
            their_read.read_exact(&mut bytes).await.expect("read");
            assert!(bytes.iter().all(|byte| *byte == 1));
        };
        let all = async { tokio::join!(sending, answering, receiving, reading) };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("no stall");
    }

    #[tokio::test]
    async fn a_hang_up_reads_as_the_end() {
        let (mut port, theirs) = pair();
        port.wait_for_host().await.expect("connected");
        drop(theirs);
        assert_eq!(port.read(&mut [0; 8]).await.expect("the end"), 0);
        assert!(port.is_hung_up().expect("asked"));
    }
}
