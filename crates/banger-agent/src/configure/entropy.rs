//! Random bytes from the host. Two guests from one template would otherwise draw the same numbers.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

use super::ConfigureError;

const LEAST: usize = 32;
const MOST: usize = 1024;
/// `RNDADDENTROPY`: _IOW('R', 0x03, int [2])
const ADD: libc::c_ulong = 0x4008_5203;
/// `RNDRESEEDCRNG`: _IO('R', 0x07)
const RESEED: libc::c_ulong = 0x5207;

/// A `struct rand_pool_info`.
#[repr(C)]
struct Pool {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; MOST],
}

/// Adds the bytes to the kernel's pool and makes it use them from this moment on.
pub fn add(hex: &str) -> Result<(), ConfigureError> {
    let bytes = decode(hex)?;
    let mut pool = Pool { entropy_bits: 0, bytes: 0, buffer: [0; MOST] };
    pool.buffer[..bytes.len()].copy_from_slice(&bytes);
    pool.bytes = libc::c_int::try_from(bytes.len()).unwrap_or(0);
    pool.entropy_bits = pool.bytes * 8;
    stir(&pool).map_err(ConfigureError::step("adding entropy"))
}

fn stir(pool: &Pool) -> io::Result<()> {
    let device = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads the header of `pool` and `pool.bytes` bytes, which it has.
    if unsafe { libc::ioctl(device.as_raw_fd(), ADD, &raw const *pool) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Adding alone leaves the generator with its old key for up to five minutes.
    // SAFETY: this call takes no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), RESEED) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn decode(hex: &str) -> Result<Vec<u8>, ConfigureError> {
    let invalid = |reason: &str| ConfigureError::invalid("entropy_hex", reason);
    if !hex.len().is_multiple_of(2) || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(invalid("it is not pairs of hex digits"));
    }
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .filter_map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
        .collect();
    if !(LEAST..=MOST).contains(&bytes.len()) {
        return Err(invalid("it must be 32 to 1024 bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_checked() {
        assert_eq!(decode(&"0aFf".repeat(16)).expect("fine"), [0x0a, 0xff].repeat(16));
        for bad in ["", "00", &"é".repeat(32), &"0".repeat(65), &"+1".repeat(32)] {
            assert!(decode(bad).is_err(), "{bad}");
        }
        assert!(decode(&"00".repeat(MOST + 1)).is_err());
    }
}
