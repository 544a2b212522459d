//! What several end-to-end tests need besides the testkit. The tests are in `tests/`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_testkit::{Host, wait};

mod image;

pub use image::{LocalImage, configure, file, stored};

/// For what takes a moment in a running guest.
pub const SOON: Duration = Duration::from_secs(30);
/// For what takes a boot.
pub const BOOT: Duration = Duration::from_secs(60);

/// Compiles one of `programs/*.c` into a static program that the host's user can run.
///
/// # Panics
/// If there is no compiler, or it fails.
#[must_use]
pub fn static_program(host: &Host, name: &str) -> PathBuf {
    static_program_with(host, name, "PLAIN")
}

/// The same, with a word defined: `MODE=1`.
///
/// # Panics
/// If there is no compiler, or it fails.
#[must_use]
pub fn static_program_with(host: &Host, name: &str, definition: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(format!("{name}.c"));
    let text = std::fs::read(source).expect("the program is in the repository");
    let program = host.scratch.join(name);
    // Through a pipe: the host's user may not be able to read the repository.
    let arguments = ["-x", "c", "-static", "-O1", "-Wall", "-o"].map(str::to_owned);
    let mut arguments = Vec::from(arguments);
    let define = format!("-D{definition}");
    arguments.extend([program.to_string_lossy().into_owned(), define, "-".to_owned()]);
    host.program(Path::new("/usr/bin/cc"), arguments).stdin(text).run().assert_ok();
    program
}

/// A `lib` directory whose agent is `agent`, for `BANGER_LIB_DIR`.
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn lib_dir_with_agent(host: &Host, agent: &Path) -> PathBuf {
    let dir = host.scratch.join("lib");
    host.program(Path::new("/bin/mkdir"), [&dir]).run().assert_ok();
    host.program(Path::new("/bin/cp"), [agent, &dir.join("banger-agent")]).run().assert_ok();
    dir
}

/// Whether a program of that exact name runs in the guest.
///
/// # Panics
/// If the guest does not say.
#[must_use]
pub fn runs_in_guest(host: &Host, vm: &str, program: &str) -> bool {
    let found = host.banger(["exec", vm, "--", "pgrep", "-x", program]).run();
    match found.code {
        0 => true,
        1 => false,
        _ => panic!("pgrep: {found}"),
    }
}

/// Removes a directory that a daemon may be putting files into.
///
/// # Panics
/// If it stays.
pub fn remove_whole(dir: &Path) {
    wait::until("the directory is gone", SOON, || std::fs::remove_dir_all(dir).ok());
}

/// Waits until a file is in the guest.
///
/// # Panics
/// If it does not come soon.
pub fn wait_for_guest_file(host: &Host, vm: &str, file: &str) {
    wait::until(file, SOON, || {
        (host.banger(["exec", vm, "--", "test", "-e", file]).run().code == 0).then_some(())
    });
}
