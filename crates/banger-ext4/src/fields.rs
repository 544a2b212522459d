//! Little-endian fields of the structures on disk.
//!
//! Offsets are constants, or have been checked against the length of the bytes by the caller.

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A number whose lower 32 bits and upper 32 bits are in different places.
pub(crate) fn u64_of(bytes: &[u8], low: usize, high: usize) -> u64 {
    u64::from(u32_at(bytes, low)) | u64::from(u32_at(bytes, high)) << 32
}

pub(crate) fn set_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Set the lower 16 bits in one place, the upper 16 in another.
pub(crate) fn set_u32_halves(bytes: &mut [u8], low: usize, high: usize, value: u32) {
    let parts = value.to_le_bytes();
    bytes[low..low + 2].copy_from_slice(&parts[..2]);
    bytes[high..high + 2].copy_from_slice(&parts[2..]);
}

/// Set the lower 32 bits in one place, the upper 32 in another.
pub(crate) fn set_u64_halves(bytes: &mut [u8], low: usize, high: usize, value: u64) {
    let parts = value.to_le_bytes();
    bytes[low..low + 4].copy_from_slice(&parts[..4]);
    bytes[high..high + 4].copy_from_slice(&parts[4..]);
}

/// Set the lower 32 bits in one place, the next 16 in another.
pub(crate) fn set_u48_parts(bytes: &mut [u8], low: usize, high: usize, value: u64) {
    let parts = value.to_le_bytes();
    bytes[low..low + 4].copy_from_slice(&parts[..4]);
    bytes[high..high + 2].copy_from_slice(&parts[4..6]);
}

/// A number that counts things in memory. Only for what is known to fit.
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("addresses have 64 bits")
}
