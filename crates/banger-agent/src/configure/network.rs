//! The guest's network interface, by the kernel's oldest calls: an address, a mask, an MTU, a route.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use banger_api::agent::GuestNetwork;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::ConfigureError;

/// Turns on the interface that leads to the guest itself.
pub fn bring_up_loopback() -> Result<(), ConfigureError> {
    turn_on("lo").map_err(ConfigureError::step("turning on the loopback interface"))
}

/// Gives the guest's one interface its address and makes it the way out.
pub fn bring_up(network: &GuestNetwork) -> Result<(), ConfigureError> {
    if network.prefix > 32 {
        return Err(ConfigureError::invalid("network.prefix", "it is more than 32"));
    }
    let name = interface(Path::new("/sys/class/net")).ok_or(ConfigureError::NoInterface)?;
    set_addresses(&name, network).map_err(ConfigureError::step("setting the network address"))?;
    turn_on(&name).map_err(ConfigureError::step("turning on the network interface"))?;
    add_default_route(network.gateway).map_err(ConfigureError::step("setting the default route"))
}

/// The first interface that is a device; those the kernel made up have none.
fn interface(class: &Path) -> Option<String> {
    let mut names: Vec<String> = fs::read_dir(class)
        .ok()?
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names.into_iter().next()
}

fn set_addresses(name: &str, network: &GuestNetwork) -> io::Result<()> {
    let socket = control_socket()?;
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_mtu = libc::c_int::from(network.mtu);
    call(&socket, libc::SIOCSIFMTU, &mut request)?;
    request.ifr_ifru.ifru_addr = address(network.address);
    call(&socket, libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_netmask = address(mask(network.prefix));
    call(&socket, libc::SIOCSIFNETMASK, &mut request)
}

fn turn_on(name: &str) -> io::Result<()> {
    let socket = control_socket()?;
    let mut request = interface_request(name);
    call(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel has just written the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    request.ifr_ifru.ifru_flags = flags | up;
    call(&socket, libc::SIOCSIFFLAGS, &mut request)
}

fn add_default_route(gateway: Ipv4Addr) -> io::Result<()> {
    let socket = control_socket()?;
    // SAFETY: all zeros is a valid `rtentry`: its pointers may be null.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    match call(&socket, libc::SIOCADDRT, &mut route) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn control_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// One call about an interface or a route; `T` is the structure that `code` takes.
fn call<T>(socket: &OwnedFd, code: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: `argument` is the structure that the call reads and writes; callers pair them.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), code, &raw mut *argument) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: all zeros is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero. Names come from the kernel and are never longer.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn address(ip: Ipv4Addr) -> libc::sockaddr {
    let family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(2);
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(ip.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr { sa_family: family, sa_data: data }
}

fn mask(prefix: u8) -> Ipv4Addr {
    let host_bits = 32 - u32::from(prefix.min(32));
    Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_become_masks() {
        let cases =
            [(0, "0.0.0.0"), (8, "255.0.0.0"), (30, "255.255.255.252"), (32, "255.255.255.255")];
        for (prefix, want) in cases {
            assert_eq!(mask(prefix).to_string(), want);
        }
    }

    #[test]
    fn the_interface_is_one_with_a_device() {
        let class = tempfile::tempdir().expect("a directory");
        for name in ["lo", "sit0", "eth0/device", "eth1/device"] {
            fs::create_dir_all(class.path().join(name)).expect("an interface");
        }
        assert_eq!(interface(class.path()).as_deref(), Some("eth0"));
        fs::remove_dir_all(class.path().join("eth0")).expect("removed");
        fs::remove_dir_all(class.path().join("eth1")).expect("removed");
        assert_eq!(interface(class.path()), None);
    }

    #[test]
    fn addresses_are_in_network_order() {
        let address = address(Ipv4Addr::new(172, 30, 0, 2));
        let bytes: Vec<u8> = address.sa_data[..6].iter().map(|byte| byte.cast_unsigned()).collect();
        assert_eq!(bytes, [0, 0, 172, 30, 0, 2]);
    }
}
