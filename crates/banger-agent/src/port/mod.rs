//! The virtio-serial port that leads to the host.

mod stream;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_api::agent::PORT_NAME;

pub use stream::Port;

use crate::boot::Uevents;
use crate::console;

/// Waits for the port and opens it. There is nothing else an agent without a port could do.
pub fn open_device() -> OwnedFd {
    let uevents = Uevents::listen();
    loop {
        let found =
            uevents.wait_for(console::PATIENCE, || find(Path::new("/sys/class/virtio-ports")));
        let Some(name) = found else {
            console::say(&format!("there is no virtio-serial port {PORT_NAME}; waiting for it"));
            continue;
        };
        match open(&Path::new("/dev").join(name)) {
            Ok(device) => return device,
            Err(error) => {
                console::say(&format!("the port to the host cannot be opened: {error}"));
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// The device name of the port among those in a directory like `/sys/class/virtio-ports`.
fn find(class: &Path) -> Option<PathBuf> {
    fs::read_dir(class).ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim_end() == PORT_NAME).then(|| PathBuf::from(entry.file_name()))
    })
}

fn open(path: &Path) -> std::io::Result<OwnedFd> {
    let device = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    // Nobody but root has anything to say to the host, and the port takes only one opener anyway.
    device.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(device.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_known_by_its_name() {
        let class = tempfile::tempdir().expect("a directory");
        assert_eq!(find(class.path()), None);
        for (device, name) in [("vport0p1", "org.qemu.guest_agent.0\n"), ("vport1p1", "")] {
            fs::create_dir(class.path().join(device)).expect("a port");
            fs::write(class.path().join(device).join("name"), name).expect("a name");
        }
        assert_eq!(find(class.path()), None);
        fs::write(class.path().join("vport1p1/name"), format!("{PORT_NAME}\n")).expect("a name");
        assert_eq!(find(class.path()), Some(PathBuf::from("vport1p1")));
    }
}
