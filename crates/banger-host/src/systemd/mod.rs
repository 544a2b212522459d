//! What systemd does for banger where it runs: scopes of their own for VMs ([`scope`]), the daemon
//! as a service ([`service`]). Without systemd everything works without.

mod bus;
pub mod scope;
pub mod service;

use std::path::Path;

/// Whether systemd manages this host.
pub(crate) fn is_booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether logind keeps the user's manager when nobody is logged in.
pub(crate) fn lingers(user: &str) -> bool {
    Path::new("/var/lib/systemd/linger").join(user).exists()
}
