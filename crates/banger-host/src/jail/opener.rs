//! A file that a VMM insists on opening for writing, and must only be able to read.
//!
//! QEMU before 8.2 opens the file that a guest's memory is mapped from for reading and writing, also
//! where it maps it privately and never writes it. A jail that let it would let a guest that has
//! taken over its VMM change the memory that the next guests begin with. So the file is mounted
//! read-only, which makes that open fail, and the open is answered from outside: the kernel stops the
//! program at every open for reading and writing, and whoever has the other end of the socket puts a
//! descriptor for reading into its hands, or lets the open go on. It is the mount that keeps the file
//! as it is: what a program makes of being asked changes nothing.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::{JailSpec, StepError};

/// The step of the way into the jail that is about this.
pub const OPENER_STEP: &str = "hand over the opens";

/// `SECCOMP_IOCTL_NOTIF_RECV`, `_SEND` and `_ADDFD` of `linux/seccomp.h`.
const RECEIVE: libc::c_ulong = 0xc050_2100;
const ANSWER: libc::c_ulong = 0xc018_2101;
const ADD_DESCRIPTOR: libc::c_ulong = 0x4018_2103;
/// `AUDIT_ARCH_X86_64` of `linux/audit.h`.
const ARCH: u32 = 0xc000_003e;
/// Offsets in `struct seccomp_data`: the number of the call, the architecture, the low halves of the
/// arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const SECOND_ARGUMENT: u32 = 24;
const THIRD_ARGUMENT: u32 = 32;

/// Has the kernel stop this process, and what it executes, at opens for reading and writing, and hands
/// the right to answer them to the other end of the jail's socket.
pub(super) fn hand_over(spec: &JailSpec) -> Result<(), StepError> {
    let Some(socket) = spec.opener else { return Ok(()) };
    // SAFETY: the shim inherited this descriptor to this process, which uses it only here. Closed when
    // this returns.
    let socket = unsafe { UnixStream::from_raw_fd(socket) };
    let listener = install_filter()?;
    let descriptors = [listener.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"l")], &message, MsgFlags::empty(), None)?;
    Ok(())
}

/// Installs the filter; the descriptor receives what it stops, and is closed by an exec.
fn install_filter() -> io::Result<OwnedFd> {
    let mut program = filter();
    let program = libc::sock_fprog {
        len: libc::c_ushort::try_from(program.len()).expect("a dozen"),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the program and what it points to live over the call, which copies them.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    let listener = RawFd::try_from(listener).map_err(|_| io::ErrorKind::InvalidData)?;
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave this descriptor to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

/// `openat` and `open` for reading and writing are stopped, everything else goes on.
fn filter() -> [libc::sock_filter; 12] {
    let number = |call| u32::try_from(call).expect("a small number");
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let give = |verdict| statement(libc::BPF_RET | libc::BPF_K, verdict);
    let is = |value, yes, no| {
        let jump = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value);
        libc::sock_filter { jt: yes, jf: no, ..jump }
    };
    // How far a jump goes is counted from the next statement; the last one allows.
    [
        load(ARCHITECTURE),
        is(ARCH, 0, 9),
        load(NUMBER),
        is(number(libc::SYS_openat), 1, 0),
        is(number(libc::SYS_open), 2, 6),
        load(THIRD_ARGUMENT),
        statement(libc::BPF_JMP | libc::BPF_JA, 1),
        load(SECOND_ARGUMENT),
        // Of the flags only the kind of access counts.
        statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, number(libc::O_ACCMODE.into())),
        is(number(libc::O_RDWR.into()), 0, 1),
        give(libc::SECCOMP_RET_USER_NOTIF),
        give(libc::SECCOMP_RET_ALLOW),
    ]
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: libc::c_ushort::try_from(code).expect("small"), jt: 0, jf: 0, k }
}

/// Answers, until the program ends, for every file that it opens for reading and writing: `path` is
/// opened for reading only, as `file`; with all others the open goes on as it would.
///
/// To be called by whoever started the jail, on a thread of its own: it blocks.
///
/// # Errors
/// Of the kernel. A program that ended before it came so far is no error.
pub fn serve_opens(socket: &UnixStream, path: &str, file: &File) -> io::Result<()> {
    let Some(listener) = receive(socket)? else { return Ok(()) };
    let wanted = CString::new(path).map_err(|_| io::ErrorKind::InvalidInput)?;
    while wait_for_open(&listener)? {
        // SAFETY: all zeros is what the kernel demands of the structure.
        let mut stopped: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        match call(&listener, RECEIVE, &mut stopped) {
            // The program was killed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            received => received?,
        }
        let is_wanted = asked_path(&stopped, wanted.as_bytes_with_nul()).unwrap_or(false);
        let answered =
            if is_wanted { give(&listener, &stopped, file) } else { go_on(&listener, &stopped) };
        match answered {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            answered => answered?,
        }
    }
    Ok(())
}

/// The right to answer; None if the jail's process ended first.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = cmsg_space!(RawFd);
    let mut byte = [0];
    let mut pieces = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
    let received = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel just gave this descriptor to nobody else.
    Ok(received.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// Waits for the next open; false if there is nobody left who could.
fn wait_for_open(listener: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut polled, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            other => {
                other?;
                let events = polled[0].revents().unwrap_or(PollFlags::empty());
                return Ok(events.contains(PollFlags::POLLIN));
            }
        }
    }
}

/// Whether the stopped open is of this path, which ends with a zero.
fn asked_path(stopped: &libc::seccomp_notif, wanted: &[u8]) -> io::Result<bool> {
    let argument = if i64::from(stopped.data.nr) == libc::SYS_open { 0 } else { 1 };
    let memory = File::open(format!("/proc/{}/mem", stopped.pid))?;
    let mut asked = vec![0; wanted.len()];
    // A path that ends at the end of what is mapped is another one.
    memory.read_exact_at(&mut asked, stopped.data.args[argument])?;
    Ok(asked == wanted)
}

/// Lets an open succeed with a descriptor of `file`.
fn give(listener: &OwnedFd, stopped: &libc::seccomp_notif, file: &File) -> io::Result<()> {
    let mut answer = libc::seccomp_notif_addfd {
        id: stopped.id,
        flags: u32::try_from(libc::SECCOMP_ADDFD_FLAG_SEND).expect("a flag"),
        srcfd: u32::try_from(file.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?,
        newfd: 0,
        newfd_flags: u32::try_from(libc::O_CLOEXEC).expect("a flag"),
    };
    call(listener, ADD_DESCRIPTOR, &mut answer)
}

/// Lets an open be what it would have been.
fn go_on(listener: &OwnedFd, stopped: &libc::seccomp_notif) -> io::Result<()> {
    let flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).expect("a flag");
    let mut answer = libc::seccomp_notif_resp { id: stopped.id, val: 0, error: 0, flags };
    call(listener, ANSWER, &mut answer)
}

/// One call about what was stopped; `T` is the structure that `code` takes.
fn call<T>(listener: &OwnedFd, code: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: `argument` is the structure that the call reads and writes; callers pair them.
    let done = unsafe { libc::ioctl(listener.as_raw_fd(), code, &raw mut *argument) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_lands_in_the_program_and_it_ends_with_a_verdict() {
        let program = filter();
        for (at, statement) in program.iter().enumerate() {
            let landing = [statement.jt, statement.jf].map(|jump| at + 1 + usize::from(jump));
            let last = program.len() - 1;
            assert!(at == last || landing.iter().all(|landing| *landing <= last), "{at}");
        }
        let allow = program[program.len() - 1];
        assert_eq!((allow.code, allow.k), (6, libc::SECCOMP_RET_ALLOW));
        assert_eq!(program[1].jf, 9, "another architecture is none of ours");
    }
}
