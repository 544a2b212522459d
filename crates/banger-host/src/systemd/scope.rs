//! A shim's scope, and how systemd asks who is in there to stop.
//!
//! The system's manager sends SIGTERM. A user's manager cannot be relied on to: the kernel keeps
//! threads of KVM in the VMM's control group, a user may not signal those, and systemd 252 takes
//! this for a failure and kills everybody at once. So the shim is its scope's controller, whom
//! systemd asks over the message bus, and sends no signal to before the time is over.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use banger_core::scope::{Surroundings, cgroup_in, unit_name, wants_scope};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::{Uid, getuid};

use super::bus::{self, Bus, BusError, Writer};

/// How long the manager may take. A VM that stays where it is runs as well.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often to look.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long the VM may take to stop when its scope is stopped, before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How a manager asks.
const SCOPE_INTERFACE: &str = "org.freedesktop.systemd1.Scope";
const REQUEST_STOP: &str = "RequestStop";
/// The bus must not be stopped before those that are asked over it.
const BUS_UNITS: [&str; 2] = ["dbus.service", "dbus.socket"];
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

/// The connection over which a user's manager asks the VM to stop.
#[derive(Debug)]
pub struct StopLine(UnixStream);

impl StopLine {
    /// Keeps it open for the program that this process becomes, where it has the number returned.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn hand_on(self) -> io::Result<RawFd> {
        fcntl(&self.0, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(self.0.into_raw_fd())
    }

    /// Takes over what [`StopLine::hand_on`] returned before this program was executed. To be called
    /// once, before anything is started that could inherit it.
    ///
    /// # Errors
    /// If no descriptor has the number.
    pub fn take_over(number: RawFd) -> io::Result<Self> {
        // SAFETY: who handed it on forgot it, so it has no other owner. It is a number only here.
        let stream = unsafe { UnixStream::from_raw_fd(number) };
        fcntl(&stream, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(Self(stream))
    }

    /// Waits until the manager asks.
    ///
    /// # Errors
    /// If the bus is gone; from then on the manager sends SIGTERM.
    pub async fn asked(self) -> Result<(), BusError> {
        self.0.set_nonblocking(true)?;
        let mut stream = tokio::net::UnixStream::from_std(self.0)?;
        bus::wait_for_signal(&mut stream, SCOPE_INTERFACE, REQUEST_STOP).await
    }
}

/// Moves the calling process into a scope of its own, if there is a manager that can make one and
/// the VM lives longer there. To be called before it has threads, children or namespaces.
///
/// Returns how a user's manager asks it to stop; the system's sends SIGTERM.
///
/// # Errors
/// [`ScopeError`]; the process is where it was then.
pub fn enter(vm_id: &str) -> Result<Option<StopLine>, ScopeError> {
    let uid = getuid();
    let bus = bus_of(uid);
    let cgroup = own_cgroup();
    let around = Surroundings {
        uid: uid.as_raw(),
        has_manager: super::is_booted() && bus.exists(),
        cgroup: cgroup_in(&cgroup),
    };
    if !wants_scope(around) {
        return Ok(None);
    }
    let unit = unit_name(vm_id);
    let deadline = Instant::now() + PATIENCE;
    let bus = ask(&bus, &unit, deadline)
        .map_err(|source| ScopeError::Refused { unit: unit.clone(), source })?;
    while !cgroup_in(&own_cgroup()).ends_with(&unit) {
        if Instant::now() > deadline {
            return Err(ScopeError::TooLate(unit));
        }
        std::thread::sleep(INTERVAL);
    }
    Ok((!uid.is_root()).then(|| StopLine(bus.into_stream())))
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

fn ask(socket: &std::path::Path, unit: &str, deadline: Instant) -> Result<Bus, BusError> {
    let uid = getuid();
    let mut bus = Bus::connect(socket, uid.as_raw(), PATIENCE)?;
    let controller = (!uid.is_root()).then(|| bus.name().to_owned());
    loop {
        match bus.call("StartTransientUnit", SIGNATURE, &request(unit, controller.as_deref())) {
            Err(BusError::Refused { name, .. }) if name == EXISTS && Instant::now() < deadline => {
                std::thread::sleep(INTERVAL);
            }
            other => return other.map(|()| bus),
        }
    }
}

/// Types of the arguments of `StartTransientUnit`: name, mode, properties, further units.
const SIGNATURE: &str = "ssa(sv)a(sa(sv))";

/// These arguments. Whoever is named as controller is asked to stop the VM.
fn request(unit: &str, controller: Option<&str>) -> Vec<u8> {
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
        if let Some(name) = controller {
            properties.property("Controller", "s", |value| value.string(name));
            properties.property("After", "as", |value| {
                value.array(4, |units| BUS_UNITS.iter().for_each(|unit| units.string(unit)));
            });
        }
    });
    body.array(8, |_| {});
    body.into_bytes()
}

impl From<io::Error> for BusError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_signals_are_not_enough_is_there_a_controller() {
        let says =
            |request: &[u8], word: &[u8]| request.windows(word.len()).any(|window| window == word);
        let (user, root) = (request("a.scope", Some(":1.7")), request("a.scope", None));
        for word in ["Controller", ":1.7", "dbus.service"] {
            assert!(says(&user, word.as_bytes()), "{word}");
            assert!(!says(&root, word.as_bytes()), "{word}");
        }
    }

    #[tokio::test]
    async fn the_line_passes_to_the_next_program_and_no_further() {
        let (line, bus) = UnixStream::pair().expect("the kernel has sockets");
        let number = StopLine(line).hand_on().expect("it is open");
        let flags = || {
            // SAFETY: F_GETFD takes a number and touches no memory.
            unsafe { libc::fcntl(number, libc::F_GETFD) }
        };
        assert_eq!(flags(), 0, "the next program has it");
        let line = StopLine::take_over(number).expect("it is still open");
        assert_eq!(flags(), libc::FD_CLOEXEC, "what that one starts has not");
        drop(bus);
        assert!(matches!(line.asked().await, Err(BusError::Io(_))), "nobody can ask any more");
    }
}
