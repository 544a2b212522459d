//! What every VM does first, done once before the guest is saved: what it reads is then in memory, and what it
//! changes of the disk has been copied already. Nothing of it stays on the disk, and nothing depends on it.

use std::fs;
use std::io::Read;
use std::path::Path;

use super::host_keys;
use crate::files;

/// A file in the directory that most of `configure` writes to.
const SCRATCH: &str = "/etc/.banger-rehearsal";
/// What `configure` and the start of any command look at.
const LOOKED_AT: [&str; 12] = [
    "/etc/machine-id",
    "/var/lib/dbus/machine-id",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/usr/local/share/ca-certificates",
    "/etc/passwd",
    "/etc/group",
    "/root",
    "/etc/ld.so.cache",
    "/bin/sh",
    "/usr/bin/env",
];
/// Where the loaders and C libraries of distributions are, of which almost every program needs one each.
const LIBRARIES: [&str; 8] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib64/libc.so.6",
    "/usr/lib/libc.so.6",
    "/lib/x86_64-linux-gnu/libtinfo.so.6",
    "/lib64/libtinfo.so.6",
    "/usr/lib/libtinfo.so.6",
];
/// Where programs are looked for.
const PLACES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Most bytes that are read of one file: all of a large C library.
const MOST: u64 = 4 << 20;

/// Goes through it.
pub fn run() {
    for path in LOOKED_AT.into_iter().chain(LIBRARIES).chain(host_keys::looked_at()) {
        look_at(Path::new(path));
    }
    for place in PLACES {
        let _ = fs::metadata(place);
    }
    // Made, replaced and removed, as files are in `configure`.
    for contents in ["first", "second"] {
        let _ = files::put(Path::new(SCRATCH), contents.as_bytes(), 0o600);
    }
    let _ = fs::remove_file(SCRATCH);
    nix::unistd::sync();
}

fn look_at(path: &Path) {
    let is_file = fs::metadata(path).is_ok_and(|found| found.is_file());
    if !is_file {
        let _ = fs::read_dir(path).map(Iterator::count);
    } else if let Ok(file) = fs::File::open(path) {
        let _ = std::io::copy(&mut file.take(MOST), &mut std::io::sink());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_at_what_is_missing_or_no_file_does_no_harm() {
        let dir = tempfile::tempdir().expect("a directory");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        fs::write(dir.path().join("file"), "text").expect("a file");
        for path in [dir.path(), &pipe, &dir.path().join("file"), Path::new("/nowhere")] {
            look_at(path);
        }
    }
}
