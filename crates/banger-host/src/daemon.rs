//! Starting `bangerd`, so that it outlives whoever starts it.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};

use crate::paths::StateDirs;

/// Size from which the daemon's log is put aside as `daemon.log.1` before a start, in bytes.
const LOG_LIMIT: u64 = 4 * 1024 * 1024;
/// How much of the end of the log is looked at for an error report, in bytes.
const TAIL_LIMIT: u64 = 16 * 1024;

/// A daemon that was just started and may not serve yet.
#[derive(Debug)]
pub struct DaemonProcess {
    child: Child,
    log: PathBuf,
    log_start: u64,
}

/// Starts the daemon in a session of its own, with these directories, its output going to its log.
///
/// # Errors
/// If the log cannot be written or the program cannot be started.
pub fn start(binary: &Path, dirs: &StateDirs) -> io::Result<DaemonProcess> {
    let path = dirs.daemon_log();
    put_aside_if_large(&path)?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
    let log_start = log.metadata()?.len();
    #[allow(
        clippy::disallowed_methods,
        reason = "this crate starts programs; Tool would end it with us"
    )]
    let mut command = std::process::Command::new(binary);
    command
        .env("BANGER_DATA_DIR", &dirs.data)
        .env("BANGER_RUNTIME_DIR", &dirs.runtime)
        .env("BANGER_CONFIG_DIR", &dirs.config)
        // So that it keeps no file system busy.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: the closure allocates nothing and calls only what is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            // A session of its own: no terminal, and no signal that is meant for the caller's group.
            nix::unistd::setsid()?;
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
            crate::process::keep_only(&[])
        });
    }
    Ok(DaemonProcess { child: command.spawn()?, log: path, log_start })
}

/// Tells the service manager that started this process, if one did and asked for it, that it serves
/// (sd_notify(3)).
///
/// # Errors
/// If the manager cannot be told.
pub fn announce_ready() -> io::Result<()> {
    let Some(place) = crate::environment::get("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match place.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&place)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
}

impl DaemonProcess {
    /// How it ended, if it has.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// The last `count` lines that it wrote since it was started.
    #[must_use]
    pub fn last_words(&self, count: usize) -> Vec<String> {
        last_lines(&self.log, self.log_start, count).unwrap_or_default()
    }
}

fn put_aside_if_large(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() > LOG_LIMIT => {
            let mut older = path.as_os_str().to_owned();
            older.push(".1");
            std::fs::rename(path, older)
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The last lines of a file from `start` on.
fn last_lines(path: &Path, start: u64, count: usize) -> io::Result<Vec<String>> {
    let mut file = std::fs::File::open(path)?;
    let start = start.max(file.metadata()?.len().saturating_sub(TAIL_LIMIT));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_LIMIT).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> =
        text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    Ok(lines[lines.len().saturating_sub(count)..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    fn dirs(root: &Path) -> StateDirs {
        let place = |name: &str| root.join(name);
        let dirs =
            StateDirs { data: place("data"), runtime: place("run"), config: place("config") };
        std::fs::create_dir_all(&dirs.data).expect("writable");
        dirs
    }

    fn script(root: &Path, text: &str) -> PathBuf {
        let path = root.join("bangerd");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("writable");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("ours");
        path
    }

    fn wait_for_end(process: &mut DaemonProcess) -> ExitStatus {
        let bound = Instant::now() + Duration::from_secs(20);
        while Instant::now() < bound {
            if let Some(status) = process.ended().expect("a child of ours") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the script does not end");
    }

    #[test]
    fn a_daemon_gets_its_directories_and_its_last_words_are_kept() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dirs = dirs(tmp.path());
        std::fs::write(dirs.daemon_log(), "from an earlier start\n").expect("writable");
        let binary = script(tmp.path(), "echo one; echo $BANGER_DATA_DIR >&2; pwd; exit 3");
        let mut process = start(&binary, &dirs).expect("it can be started");
        assert_eq!(wait_for_end(&mut process).code(), Some(3));
        let data = dirs.data.display().to_string();
        assert_eq!(process.last_words(9), ["one", &data, "/"]);
        assert_eq!(process.last_words(1), ["/"]);
    }

    #[test]
    fn a_daemon_is_in_a_session_of_its_own() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dirs = dirs(tmp.path());
        let binary = script(tmp.path(), "cut -d' ' -f1,6 /proc/$$/stat");
        let mut process = start(&binary, &dirs).expect("it can be started");
        wait_for_end(&mut process);
        let words = process.last_words(1).join("");
        let (pid, session) = words.split_once(' ').expect("two numbers");
        assert_eq!(pid, session);
    }

    #[test]
    fn a_large_log_is_put_aside() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dirs = dirs(tmp.path());
        let log = dirs.daemon_log();
        let file = std::fs::File::create(&log).expect("writable");
        file.set_len(LOG_LIMIT + 1).expect("sparse");
        put_aside_if_large(&log).expect("it can be renamed");
        assert!(!log.exists());
        assert!(dirs.data.join("daemon.log.1").exists());
        put_aside_if_large(&log).expect("nothing to do");
    }
}
