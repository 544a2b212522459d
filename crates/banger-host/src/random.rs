//! Randomness from the host's kernel.

/// `N` random bytes, fit for keys.
///
/// # Panics
/// If the kernel has no random source, which no supported kernel can lack.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("getrandom(2) works on every supported kernel");
    bytes
}

/// `N` random bytes in lower-case hex.
#[must_use]
pub fn hex<const N: usize>() -> String {
    hex::encode(bytes::<N>())
}
