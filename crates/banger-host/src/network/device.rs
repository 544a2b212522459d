//! Network devices of the calling thread's network namespace, by the classic ioctls.

use std::fs::OpenOptions;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `TUNSETIFF` of `linux/if_tun.h`: `_IOW('T', 202, int)`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
/// `TUNSETPERSIST` of `linux/if_tun.h`: `_IOW('T', 203, int)`.
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;

/// Creates a tap device that lives as long as its network namespace, with virtio-net headers.
///
/// Not as long as the descriptor: whoever closes the last one of a device waits until the kernel has removed
/// it, some 40 ms, and that would be the shim, at every end of a VM. The namespace is removed with all that is
/// in it, and nobody waits.
pub(super) fn create_lasting_tap(name: &str) -> io::Result<OwnedFd> {
    let tap = create_tap(name)?;
    // SAFETY: this operation takes a number.
    if unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETPERSIST, 1) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(tap)
}

/// Creates a tap device that is there as long as its descriptor.
pub(super) fn create_tap(name: &str) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request_for(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    ioctl(file.as_raw_fd(), TUNSETIFF, &mut request)?;
    Ok(file.into())
}

/// Gives a device its IPv4 address and prefix.
pub(super) fn set_address(name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    for (operation, value) in
        [(libc::SIOCSIFADDR, u32::from(address)), (libc::SIOCSIFNETMASK, mask)]
    {
        with_device(name, operation, |request| {
            // SAFETY: sockaddr_in and sockaddr have the same size and no invalid values.
            request.ifr_ifru.ifru_addr = unsafe {
                std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(ipv4_sockaddr(value))
            };
        })?;
    }
    Ok(())
}

/// Sets a device's largest packet.
pub(super) fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    with_device(name, libc::SIOCSIFMTU, |request| request.ifr_ifru.ifru_mtu = mtu.into())
}

/// Brings a device up.
pub(super) fn set_up(name: &str) -> io::Result<()> {
    with_device(name, libc::SIOCSIFFLAGS, |request| {
        request.ifr_ifru.ifru_flags =
            libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).expect("small flags");
    })
}

fn ipv4_sockaddr(address: u32) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).expect("AF_INET is 2"),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: address.to_be() },
        sin_zero: [0; 8],
    }
}

fn request_for(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    Ok(request)
}

fn with_device(
    name: &str,
    operation: libc::c_ulong,
    fill: impl FnOnce(&mut libc::ifreq),
) -> io::Result<()> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = request_for(name)?;
    fill(&mut request);
    ioctl(any.as_raw_fd(), operation, &mut request)
}

fn ioctl(fd: RawFd, operation: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every operation used here takes a pointer to an ifreq, which lives through the call.
    let result = unsafe { libc::ioctl(fd, operation, std::ptr::from_mut(request)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
