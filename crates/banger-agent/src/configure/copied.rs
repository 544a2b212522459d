//! What a copy of another VM loses of it, before it becomes somebody itself.
//!
//! The other one runs on. Both have the same memory, so what makes one of them that VM must go from the
//! copy: the boot's id, and the connections, whose other ends talk to the other VM. What programs keep in
//! their own memory nobody else can change; a directory of hooks tells those that want to know.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::agent::Agent;
use crate::{exec, files};

/// Programs of the guest that are run in a copy, in the order of their names, before any command is.
const HOOKS: &str = "/etc/banger/copied.d";
/// How long one of them may take.
const HOOK_LIMIT: Duration = Duration::from_secs(10);
/// Where the kernel tells the id of the boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Where one like it is drawn.
const NEW_ID: &str = "/proc/sys/kernel/random/uuid";
/// What lies over it in a copy.
const OWN_BOOT_ID: &str = "/run/banger/boot_id";
/// A socket that waits for connections, as the kernel's table has it.
const LISTENING: &str = "0A";

/// Gives the copy a boot id of its own: the kernel keeps the one that it has drawn.
pub(super) fn renew_boot_id() -> io::Result<()> {
    let id = fs::read(NEW_ID)?;
    let _ = umount2(BOOT_ID, MntFlags::MNT_DETACH);
    files::put(Path::new(OWN_BOOT_ID), &id, 0o444)?;
    mount(Some(OWN_BOOT_ID), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Breaks every connection to somebody else, as by a reset: whoever waits at one would wait for ever.
pub(super) fn reset_connections() {
    let connected: BTreeSet<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .flat_map(|table| {
            let table = fs::read_to_string(table).unwrap_or_default();
            table.lines().skip(1).filter_map(connection_to_others).collect::<Vec<_>>()
        })
        .collect();
    if connected.is_empty() {
        return;
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        for entry in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            if socket_of(&entry.path()).is_some_and(|inode| connected.contains(&inode))
                && let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            {
                // One that has gone meanwhile is gone.
                let _ = borrow(pid, fd).and_then(|socket| disconnect(&socket));
            }
        }
    }
}

/// The inode of a socket in a line of the kernel's table, if it is connected to another machine.
fn connection_to_others(line: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let is_here = |address: &str| {
        // Words in the machine's byte order: 127.x.y.z ends with its first byte.
        let ip = address.split(':').next().unwrap_or_default();
        let mapped = ip.strip_prefix("0000000000000000FFFF0000").unwrap_or(ip);
        (mapped.len() == 8 && mapped.ends_with("7F")) || ip == "00000000000000000000000001000000"
    };
    if state == LISTENING || is_here(local) || is_here(remote) {
        return None;
    }
    fields.nth(5)?.parse().ok().filter(|inode| *inode != 0)
}

/// The inode of the socket that a link in `/proc/PID/fd` leads to.
fn socket_of(link: &Path) -> Option<u64> {
    let target = fs::read_link(link).ok()?;
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A descriptor of another process, as one of this one.
fn borrow(pid: i32, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: both calls take numbers and touch no memory.
    let process = own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: as above.
    own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

fn own(fd: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: the kernel just gave this descriptor to nobody else.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Resets a connection: its owner reads `ECONNRESET`.
fn disconnect(socket: &OwnedFd) -> io::Result<()> {
    let nowhere = libc::sockaddr {
        sa_family: libc::sa_family_t::try_from(libc::AF_UNSPEC).unwrap_or(0),
        sa_data: [0; 14],
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr>()).unwrap_or(16);
    // SAFETY: the address lives over the call and is as long as is said.
    let done = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Runs the hooks. What fails is a warning.
pub(super) async fn run_hooks(agent: &Agent) -> Vec<String> {
    let mut warnings = Vec::new();
    for hook in hooks(Path::new(HOOKS)) {
        let path = hook.to_string_lossy().into_owned();
        if let Err(problem) = exec::run_quietly(agent, &[&path], HOOK_LIMIT).await {
            warnings.push(format!("the hook {path} failed in the copy: {problem}"));
        }
    }
    warnings
}

fn hooks(dir: &Path) -> Vec<PathBuf> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_program).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn only_connections_to_others_are_found() {
        let line = |local: &str, remote: &str, state: &str| {
            format!(
                "   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000     0        0 4711 1 x"
            )
        };
        let cases = [
            ("02001EAC:8F3A", "01001EAC:01BB", "01", Some(4711)),
            ("0100007F:8F3A", "0100007F:01BB", "01", None),
            ("00000000:0016", "00000000:0000", "0A", None),
            (
                "0000000000000000FFFF000002001EAC:8F3A",
                "0000000000000000FFFF000001001EAC:0050",
                "01",
                Some(4711),
            ),
            (
                "0000000000000000FFFF00000100007F:8F3A",
                "0000000000000000FFFF00000100007F:0050",
                "01",
                None,
            ),
            (
                "00000000000000000000000001000000:8F3A",
                "00000000000000000000000001000000:0050",
                "01",
                None,
            ),
        ];
        for (local, remote, state, want) in cases {
            assert_eq!(connection_to_others(&line(local, remote, state)), want, "{local} {remote}");
        }
        assert_eq!(connection_to_others("nonsense"), None);
    }

    #[test]
    fn a_connection_that_is_reset_says_so_to_its_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let mut ours =
            TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let _theirs = listener.accept().expect("accepted");
        let own_pid = i32::try_from(std::process::id()).expect("it fits");
        let borrowed = borrow(own_pid, ours.as_raw_fd()).expect("one of our own");
        let reading = std::thread::spawn(move || ours.read(&mut [0; 1]).expect_err("reset").kind());
        disconnect(&borrowed).expect("reset");
        let kind = reading.join().expect("read");
        // By how far the kernel is when the read begins.
        let told = [ErrorKind::ConnectionReset, ErrorKind::NotConnected, ErrorKind::BrokenPipe];
        assert!(told.contains(&kind), "{kind}");
    }

    #[test]
    fn hooks_are_programs_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o700), ("30-no-program", 0o644)] {
            fs::write(dir.path().join(name), "").expect("a file");
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode))
                .expect("a mode");
        }
        let names: Vec<_> =
            hooks(dir.path()).iter().map(|it| it.file_name().map(ToOwned::to_owned)).collect();
        assert_eq!(names, [Some("10-a".into()), Some("20-b".into())]);
        assert!(hooks(Path::new("/nowhere")).is_empty());
    }
}
