//! `/proc/self`, opened while there still was a `/proc`.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

static DIRECTORY: OnceLock<File> = OnceLock::new();

/// Opens it. To be called once, before the root is closed.
pub(super) fn remember() -> io::Result<()> {
    let directory =
        File::options().read(true).custom_flags(libc::O_DIRECTORY).open("/proc/self")?;
    DIRECTORY.set(directory).map_err(|_| io::ErrorKind::AlreadyExists.into())
}

/// Writes one of its files.
pub(super) fn write(name: &str, text: &str) -> io::Result<()> {
    let directory = DIRECTORY.get().ok_or(io::ErrorKind::NotFound)?;
    let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC;
    let fd = nix::fcntl::openat(directory, name, flags, nix::sys::stat::Mode::empty())?;
    File::from(fd).write_all(text.as_bytes())
}
