//! The fuzz targets: one function for each decoder of what a guest, a registry or a file says.
//!
//! A target takes any bytes. It panics if the decoder does, or if what comes out breaks a promise:
//! a bound, an order, text that could command a terminal. `cargo xtask fuzz` looks for such bytes;
//! the test of this crate gives every target its corpus, so that what was found once stays mended.
//!
//! Decoders of programs, which are no libraries, are compiled in by their path.

mod archives;
mod disk;
mod guest;
mod state;
mod wire;
mod words;

#[allow(dead_code, reason = "only its decoder is wanted")]
#[path = "../../banger-agent/src/exec/account.rs"]
mod account;
#[path = "../../banger-agent/src/preamble.rs"]
mod preamble;
#[allow(dead_code, reason = "only its bounds are wanted")]
#[path = "../../banger-shim/src/console.rs"]
mod shim_console;
#[allow(dead_code, reason = "the shim does more with it")]
#[path = "../../banger-shim/src/guest.rs"]
mod shim_guest;

/// What `account.rs` reads the guest's files with: here there are none.
mod files {
    pub(crate) fn read_text(path: &std::path::Path) -> std::io::Result<String> {
        Err(std::io::Error::other(path.display().to_string()))
    }
}

use banger_image::fuzz as image;

/// A target: its name, which is also its corpus's, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("accounts", guest::accounts),
    ("agent_answers", guest::answers),
    ("archive", archives::archive),
    ("catalog", image::catalog),
    ("compression", image::compression),
    ("console", guest::console),
    ("cow", disk::cow),
    ("debian_package", image::debian_package),
    ("exec_frames", guest::frames),
    ("exec_stream", guest::stream),
    ("ext4", disk::ext4),
    ("http", wire::http),
    ("image_config", image::image_config),
    ("kernel_image", image::kernel_image),
    ("kernel_module", image::kernel_module),
    ("layers", image::layers),
    ("manifest", image::manifest),
    ("packing", image::packing),
    ("preamble", guest::preamble),
    ("qmp", wire::qmp),
    ("reference", words::reference),
    ("registry_files", image::registry_files),
    ("registry_headers", image::registry_headers),
    ("state_files", state::files),
    ("tar", image::tar),
    ("words", words::words),
    ("yamux", wire::yamux),
];

/// Gives `data` to the target of that name.
///
/// # Panics
/// If there is no such target, or it found something.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a known target");
    target(data);
}
