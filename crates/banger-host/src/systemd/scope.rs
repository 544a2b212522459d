//! A shim's scope.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use banger_core::scope::{Surroundings, cgroup_in, unit_name, wants_scope};
use nix::unistd::{Uid, getuid};

use super::bus::{Bus, BusError, Writer};

/// How long the manager may take. A VM that stays where it is runs as well.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often to look.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long the VM may take to stop when its scope is stopped, before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// What the manager says while the scope of the VM's last run is not gone yet.
const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// Why there is no scope.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// The manager could not be asked, or refused.
    #[error("systemd made no scope {unit}")]
    Refused {
        /// The scope.
        unit: String,
        /// Why.
        #[source]
        source: BusError,
    },
    /// The manager agreed and nothing happened.
    #[error("systemd did not move this process to {0} in time")]
    TooLate(String),
}

/// Moves the calling process into a scope of its own, if there is a manager that can make one and
/// the VM lives longer there. To be called before it has threads, children or namespaces.
///
/// Returns whether it did.
///
/// # Errors
/// [`ScopeError`]; the process is where it was then.
pub fn enter(vm_id: &str) -> Result<bool, ScopeError> {
    let uid = getuid();
    let bus = bus_of(uid);
    let cgroup = own_cgroup();
    let around = Surroundings {
        uid: uid.as_raw(),
        has_manager: super::is_booted() && bus.exists(),
        cgroup: cgroup_in(&cgroup),
    };
    if !wants_scope(around) {
        return Ok(false);
    }
    let unit = unit_name(vm_id);
    let deadline = Instant::now() + PATIENCE;
    ask(&bus, &unit, deadline)
        .map_err(|source| ScopeError::Refused { unit: unit.clone(), source })?;
    while !cgroup_in(&own_cgroup()).ends_with(&unit) {
        if Instant::now() > deadline {
            return Err(ScopeError::TooLate(unit));
        }
        std::thread::sleep(INTERVAL);
    }
    Ok(true)
}

fn own_cgroup() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// The socket of the bus on which the manager of this user's units is.
fn bus_of(uid: Uid) -> PathBuf {
    if uid.is_root() {
        "/run/dbus/system_bus_socket".into()
    } else {
        format!("/run/user/{uid}/bus").into()
    }
}

fn ask(socket: &std::path::Path, unit: &str, deadline: Instant) -> Result<(), BusError> {
    let mut bus = Bus::connect(socket, getuid().as_raw(), PATIENCE)?;
    loop {
        match bus.call("StartTransientUnit", "ssa(sv)a(sa(sv))", &request(unit)) {
            Err(BusError::Refused { name, .. }) if name == EXISTS && Instant::now() < deadline => {
                std::thread::sleep(INTERVAL);
            }
            other => return other,
        }
    }
}

/// The arguments of `StartTransientUnit`: name, mode, properties, no further units.
fn request(unit: &str) -> Vec<u8> {
    let mut body = Writer::default();
    body.string(unit);
    body.string("fail");
    body.array(8, |properties| {
        properties.property("Description", "s", |value| value.string("virtual machine of banger"));
        properties.property("PIDs", "au", |value| {
            value.array(4, |pids| pids.number(std::process::id()));
        });
        properties.property("CollectMode", "s", |value| value.string("inactive-or-failed"));
        let limit = u64::try_from(STOP_LIMIT.as_micros()).unwrap_or(u64::MAX);
        properties.property("TimeoutStopUSec", "t", |value| value.long(limit));
    });
    body.array(8, |_| {});
    body.into_bytes()
}

impl From<io::Error> for BusError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
