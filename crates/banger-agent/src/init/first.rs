//! The first process, until the image's init takes its place.
//!
//! It does nothing but wait: no thread, no signal handler, nothing to clean up. What it becomes is
//! told over a socket, and told by the kernel's closing that socket when the new program runs.

use std::ffi::{CStr, CString};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SigHandler, Signal, signal};

use crate::console;

/// How the agent is called when it is not the first process. By the `@` systemd knows a process that
/// is not to be killed before the disks are released.
const AGENT_NAME: &CStr = c"@banger-agent";
/// The same for tools that show no arguments.
const NAME: &CStr = c"banger-agent";
/// What the kernel gives an init, and a `PATH`.
const ENVIRONMENT: [&CStr; 3] = [
    c"HOME=/",
    c"TERM=linux",
    c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
];
/// Longest message with a program's path and environment.
const MOST: u64 = 4096;

/// Starts the agent as a second process, and waits to be told what to become.
///
/// To be called by the first process while it has one thread.
pub fn split() -> ! {
    let split = UnixStream::pair().and_then(|(ours, theirs)| {
        start_agent(theirs)?;
        Ok(ours)
    });
    match split {
        Ok(agent) => wait(agent),
        Err(error) => console::say_error("the agent cannot be started", &error),
    }
    // The kernel panics, which ends the machine and is what the host then reports.
    std::process::exit(1)
}

/// The agent's end of the socket, if this process was started by [`split`].
pub fn inherited() -> Option<UnixStream> {
    let mut arguments = std::env::args_os();
    if arguments.next()?.as_encoded_bytes() != AGENT_NAME.to_bytes() {
        return None;
    }
    let number: RawFd = arguments.next()?.to_str()?.parse().ok()?;
    // SAFETY: the process that started this one says that this descriptor is for it alone; nothing
    // else here has touched it.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(number) });
    set_inheritable(&stream, false).ok()?;
    // The kernel calls it "exe", for the path by which it was started.
    // SAFETY: the call reads a NUL-terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, NAME.as_ptr()) };
    Some(stream)
}

/// Tells the first process to become `program`, and waits until it has.
///
/// # Errors
/// Why the kernel does not run it.
pub fn tell(first: &mut UnixStream, program: &str, notify: Option<&str>) -> io::Result<()> {
    let variable = notify.map(|socket| format!("\0NOTIFY_SOCKET={socket}")).unwrap_or_default();
    first.write_all(format!("{program}{variable}").as_bytes())?;
    first.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    first.take(MOST).read_to_end(&mut answer)?;
    match answer.first_chunk() {
        // The socket was closed by the kernel, as a program began.
        None => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(*error))),
    }
}

/// Starts this program anew in a child that shares root and working directory with this process.
fn start_agent(socket: UnixStream) -> io::Result<()> {
    set_inheritable(&socket, true)?;
    let socket = socket.into_raw_fd();
    let number = CString::new(socket.to_string())?;
    let argv = [AGENT_NAME.as_ptr(), number.as_ptr(), std::ptr::null()];
    let flags = libc::CLONE_FS | libc::SIGCHLD;
    // SAFETY: without a stack and without CLONE_VM this is a fork. There is one thread, and the child
    // makes only system calls before it becomes another program.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: plain system calls; the arguments are NUL-terminated and their array ends with
        // null.
        unsafe {
            libc::setsid();
            libc::execv(c"/proc/self/exe".as_ptr(), argv.as_ptr());
            libc::_exit(127)
        }
    }
    // SAFETY: the descriptor is this process's own, and the child has its copy.
    drop(unsafe { OwnedFd::from_raw_fd(socket) });
    Ok(())
}

fn wait(mut agent: UnixStream) {
    let mut message = Vec::new();
    let read = (&agent).take(MOST).read_to_end(&mut message);
    if read.is_err() || message.is_empty() {
        return console::say("the agent ended before the guest was configured");
    }
    let error = become_program(&message);
    // The agent tells it to the host, which ends the machine.
    let _ = agent.write_all(&error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
    drop(agent);
    loop {
        nix::unistd::pause();
    }
}

/// Becomes the program of a message; returns why it did not.
fn become_program(message: &[u8]) -> io::Error {
    let words: Result<Vec<CString>, _> =
        message.split(|byte| *byte == 0).map(CString::new).collect();
    let Ok(words) = words else { return io::ErrorKind::InvalidInput.into() };
    let Some((program, variables)) = words.split_first() else {
        return io::ErrorKind::InvalidInput.into();
    };
    // Until here the agent's change of the root was this process's too; from now on each has its own.
    // SAFETY: a plain system call.
    if unsafe { libc::unshare(libc::CLONE_FS) } < 0 {
        return io::Error::last_os_error();
    }
    // SAFETY: no handler is installed.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let argv = [program.as_ptr(), std::ptr::null()];
    let env: Vec<_> = ENVIRONMENT
        .into_iter()
        .map(CStr::as_ptr)
        .chain(variables.iter().map(|variable| variable.as_ptr()))
        .chain([std::ptr::null()])
        .collect();
    // SAFETY: strings are NUL-terminated, and both arrays end with null.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn set_inheritable(socket: &UnixStream, inheritable: bool) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let flag = if inheritable { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(socket, FcntlArg::F_SETFD(flag))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A first process that answers with `answer` when it has heard everything.
    fn fake_first(answer: &'static [u8]) -> (UnixStream, std::thread::JoinHandle<Vec<u8>>) {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let heard = std::thread::spawn(move || {
            let mut message = Vec::new();
            theirs.read_to_end(&mut message).expect("a message");
            theirs.write_all(answer).expect("an answer");
            message
        });
        (ours, heard)
    }

    #[test]
    fn a_program_that_runs_is_told_by_silence() {
        let (mut first, heard) = fake_first(b"");
        tell(&mut first, "/sbin/init", Some("/run/x")).expect("it runs");
        assert_eq!(heard.join().expect("heard"), b"/sbin/init\0NOTIFY_SOCKET=/run/x");
    }

    #[test]
    fn a_program_that_does_not_run_is_told_by_its_error() {
        const ENOEXEC: [u8; 4] = libc::ENOEXEC.to_ne_bytes();
        let (mut first, heard) = fake_first(&ENOEXEC);
        let error = tell(&mut first, "/sbin/init", None).expect_err("it does not");
        assert_eq!(error.raw_os_error(), Some(libc::ENOEXEC));
        assert_eq!(heard.join().expect("heard"), b"/sbin/init");
    }

    #[test]
    fn this_program_was_not_started_beside_another() {
        assert!(inherited().is_none());
    }
}
