//! A VM's network: a namespace of its own between the guest's tap and pasta's uplink.
//!
//! ```text
//!  guest eth0 172.30.0.2 ── tap0 172.30.0.1 ──(forward, masquerade)── 172.30.0.6 ── pasta ── host sockets
//!                              │ DNS on port 53: sockets that the shim serves
//! ```
//!
//! The namespace lives as long as the shim: it is held by the mounted file, which is in the shim's
//! mount namespace, and by pasta, which is in its process namespace. Nothing here needs an undo.
//!
//! The calling process, a shim, stays in the host's network namespace. A thread that has entered
//! the new one makes what must be made there, and hands out the descriptors.

mod device;
pub mod ruleset;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use banger_api::vm::NetworkPolicy;

use crate::command::find_program;

/// The namespace's end of the guest's network; also the guest's name server.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// The guest. The same in every VM: each has a network namespace of its own.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 2);
/// Prefix length of the guest's network.
pub const PREFIX: u8 = 30;
/// The namespace's end of the uplink. pasta would give it the host's own address, which packets for
/// the host would then never leave.
const UPLINK: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 6);
/// pasta's end of the uplink.
const UPLINK_GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 5);
/// Netmask of the uplink.
const UPLINK_MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 252);
/// Largest packet between guest and namespace.
pub const MTU: u16 = 1500;
/// Name of the tap device in the namespace.
pub const TAP: &str = "tap0";
/// Name of one that leads nowhere.
const SPARE_TAP: &str = "tap1";
/// The guest's MAC address, locally administered. The same in every VM, too.
pub const GUEST_MAC: &str = "52:54:00:ba:6e:02";

/// How long pasta may take; it is ready in 30-70 ms.
const UPLINK_TIMEOUT: Duration = Duration::from_secs(5);

/// A VM's network, ready for the VMM.
#[derive(Debug)]
pub struct Network {
    /// The tap device, with virtio-net headers.
    pub tap: OwnedFd,
    /// Where the guest asks for names.
    pub dns_udp: UdpSocket,
    /// Where the guest asks for long names.
    pub dns_tcp: TcpListener,
    /// The file that names the namespace.
    pub namespace: PathBuf,
    /// Whoever loads the rules.
    rules: Option<Child>,
    /// The host's own addresses, as the rules have them.
    host_addresses: Vec<Ipv4Addr>,
}

/// Why a VM's network could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused a step.
    #[error("cannot {what}")]
    Step {
        /// The step, as a verb and its object.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program is not installed.
    #[error("{program} is not installed")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// nft did not take the rules.
    #[error("nft refused the rules: {0}")]
    Rules(String),
    /// pasta ended at once.
    #[error("pasta could not connect the VM to the host's network: {0}")]
    Uplink(String),
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> NetworkError {
    move |source| NetworkError::Step { what, source: source.into() }
}

impl Network {
    /// Makes the namespace, the tap and the name server's sockets, and begins to load the rules: see
    /// [`Network::await_rules`].
    ///
    /// Called by a shim, which is root in its own user and mount namespaces.
    ///
    /// # Errors
    /// [`NetworkError`] names the step.
    pub fn create(vm_dir: &Path, vm_id: &str, policy: NetworkPolicy) -> Result<Self, NetworkError> {
        let namespace = namespace_file(vm_dir, vm_id)?;
        let host_addresses = host_addresses()?;
        let create = move || {
            let rules = ruleset::ruleset(policy, &host_addresses);
            Self::create_in_new_namespace(namespace, &rules, host_addresses)
        };
        std::thread::Builder::new()
            .spawn(create)
            .map_err(step("start a thread"))?
            .join()
            .unwrap_or_else(|_| Err(step("make the network")(io::Error::other("thread panicked"))))
    }

    /// Waits until the rules are in force. Before that nothing may connect the namespace with anything.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn await_rules(&mut self) -> Result<(), NetworkError> {
        self.rules.take().map_or(Ok(()), loaded)
    }

    /// Brings the rules up to date with the host's own addresses, which change with its networks.
    /// To be called now and then; costs next to nothing when nothing has changed.
    ///
    /// # Errors
    /// [`NetworkError`]; the rules are then as they were.
    pub fn refresh_rules(&mut self) -> Result<(), NetworkError> {
        let now = host_addresses()?;
        if now == self.host_addresses {
            return Ok(());
        }
        let update = ruleset::update(&now);
        in_namespace(&self.namespace, || load_rules(&update).and_then(loaded))?;
        self.host_addresses = now;
        Ok(())
    }

    /// One more tap in the VM's namespace, that leads nowhere: for a VMM that has the guest's devices and
    /// never runs it. It goes with its descriptor.
    ///
    /// # Errors
    /// [`NetworkError`] names the step.
    pub fn spare_tap(&self) -> Result<OwnedFd, NetworkError> {
        let mut tap = None;
        in_namespace(&self.namespace, || {
            tap = Some(device::create_tap(SPARE_TAP).map_err(step("create a spare tap device"))?);
            Ok(())
        })?;
        tap.ok_or_else(|| step("create a spare tap device")(io::Error::other("there is none")))
    }

    fn create_in_new_namespace(
        namespace: PathBuf,
        rules: &str,
        host_addresses: Vec<Ipv4Addr>,
    ) -> Result<Self, NetworkError> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(step("create a network namespace"))?;
        // It is a process of its own, and what follows need not wait for it.
        let rules = Some(load_rules(rules)?);
        let here = Path::new("/proc/thread-self/ns/net");
        mount(Some(here), &namespace, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(step("name the network namespace"))?;
        let tap = device::create_lasting_tap(TAP).map_err(step("create the tap device"))?;
        device::set_address(TAP, GATEWAY, PREFIX).map_err(step("give the tap its address"))?;
        device::set_mtu(TAP, MTU).map_err(step("set the tap's packet size"))?;
        for name in ["lo", TAP] {
            device::set_up(name).map_err(step("bring the devices up"))?;
        }
        // Of the thread's network namespace, by the kernel's rules for /proc/sys/net.
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(step("enable forwarding"))?;
        let dns_udp = UdpSocket::bind((GATEWAY, 53)).map_err(step("bind the name server"))?;
        let dns_tcp = TcpListener::bind((GATEWAY, 53)).map_err(step("bind the name server"))?;
        Ok(Self { tap, dns_udp, dns_tcp, namespace, rules, host_addresses })
    }
}

/// Starts pasta for the namespace. It ends with the shim's process namespace.
///
/// # Errors
/// If it cannot be started.
#[expect(clippy::disallowed_methods, reason = "pasta lives as long as the VM")]
pub fn start_uplink(namespace: &Path, log: File) -> Result<Child, NetworkError> {
    let pasta = find_program("pasta")
        .ok_or(NetworkError::Missing { program: "pasta", package: "passt" })?;
    let mut command = Command::new(pasta);
    command
        .args(["-f", "-q", "--config-net", "--no-map-gw"])
        .args(["-a", &UPLINK.to_string()])
        .args(["-n", &UPLINK_MASK.to_string()])
        .args(["-g", &UPLINK_GATEWAY.to_string()])
        .args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"])
        .args(["--netns-only", "--netns"])
        .arg(namespace)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    // SAFETY: the closure allocates nothing and calls only what is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            crate::process::keep_only(&[])?;
            // A guest that is being stopped with its host still has its network.
            crate::process::block_polite_signals()
        });
    }
    command.spawn().map_err(step("start pasta"))
}

/// Waits until the namespace has a default route, which pasta adds last.
///
/// # Errors
/// [`NetworkError::Uplink`] if pasta ends first or takes too long: the host has no network, or
/// pasta's log says why.
pub fn wait_for_uplink(namespace: &Path, pasta: &mut Child) -> Result<(), NetworkError> {
    in_namespace(namespace, || {
        let deadline = Instant::now() + UPLINK_TIMEOUT;
        while !has_default_route()? {
            if let Some(status) = pasta.try_wait().map_err(step("watch pasta"))? {
                return Err(NetworkError::Uplink(format!("it ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(NetworkError::Uplink("no default route appeared".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    })
}

/// Does something in a network namespace, on a thread of its own: this process stays where it is.
fn in_namespace(
    namespace: &Path,
    work: impl FnOnce() -> Result<(), NetworkError> + Send,
) -> Result<(), NetworkError> {
    let namespace = File::open(namespace).map_err(step("open the network namespace"))?;
    let enter = move || {
        nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET)
            .map_err(step("enter the network namespace"))?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new();
        thread.spawn_scoped(scope, enter).map_err(step("start a thread"))?.join().unwrap_or_else(
            |_| Err(step("work in the network namespace")(io::Error::other("thread panicked"))),
        )
    })
}

fn has_default_route() -> Result<bool, NetworkError> {
    let routes =
        fs::read_to_string("/proc/thread-self/net/route").map_err(step("read the routes"))?;
    // Columns: interface, destination, gateway, flags, …; a default route has destination 0.
    Ok(routes.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some("00000000")))
}

/// An empty file for the namespace to be mounted on.
///
/// Debian's `AppArmor` profile lets pasta open only what is below `/run/user/<uid>`. A tmpfs over
/// `/run/user`, seen by this shim alone, makes that a private place. A machine without that
/// directory (a container) has no such profile, and the VM's own directory serves.
fn namespace_file(vm_dir: &Path, vm_id: &str) -> Result<PathBuf, NetworkError> {
    let run_user = Path::new("/run/user");
    let directory = if run_user.is_dir() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("banger"), run_user, Some("tmpfs"), flags, Some("mode=0755,size=64k"))
            .map_err(step("mount a private /run/user"))?;
        run_user.join(host_uid()?.to_string()).join("netns")
    } else {
        vm_dir.join(banger_api::shim::RUN_DIR)
    };
    fs::create_dir_all(&directory).map_err(step("create the namespace's directory"))?;
    let file = directory.join(format!("{vm_id}.netns"));
    File::create(&file).map_err(step("create the namespace's file"))?;
    Ok(file)
}

/// The user's number outside of the shim's user namespace.
fn host_uid() -> Result<u32, NetworkError> {
    let map = fs::read_to_string("/proc/self/uid_map").map_err(step("read the uid map"))?;
    map.split_whitespace()
        .nth(1)
        .and_then(|outside| outside.parse().ok())
        .ok_or_else(|| step("read the uid map")(io::Error::from(io::ErrorKind::InvalidData)))
}

/// The addresses of the host's own interfaces.
fn host_addresses() -> Result<Vec<Ipv4Addr>, NetworkError> {
    let interfaces =
        nix::ifaddrs::getifaddrs().map_err(step("list the host's network addresses"))?;
    let mut addresses: Vec<Ipv4Addr> = interfaces
        .filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()))
        .filter(|address| !address.is_loopback())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

#[expect(
    clippy::disallowed_methods,
    reason = "nft must run in the network namespace of this thread"
)]
fn load_rules(rules: &str) -> Result<Child, NetworkError> {
    let nft =
        find_program("nft").ok_or(NetworkError::Missing { program: "nft", package: "nftables" })?;
    let mut child = Command::new(nft)
        .args(["-f", "-"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(step("start nft"))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(rules.as_bytes()).map_err(step("hand nft the rules"))?;
    }
    Ok(child)
}

fn loaded(nft: Child) -> Result<(), NetworkError> {
    let output = nft.wait_with_output().map_err(step("wait for nft"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetworkError::Rules(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
