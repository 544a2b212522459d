//! The kernel inside a bzImage.
//!
//! A bzImage is a small program that unpacks the real kernel, an ELF file. A virtual machine monitor
//! can start that ELF directly, and does so faster: Firecracker knows nothing else, and QEMU's
//! emulation need not execute the unpacking. Format: the kernel's `Documentation/arch/x86/boot.rst`.

use std::io;

use crate::packing::{Packing, read_bounded};

/// Largest bzImage that is read, in bytes. Debian's has about 14 MB, a generic one 15.
pub(crate) const MAX_BZIMAGE: u64 = 128 << 20;
/// Largest kernel that is unpacked, in bytes. Debian's has about 50 MB.
pub(crate) const MAX_KERNEL: u64 = 256 << 20;
pub(crate) const ELF_MAGIC: &[u8] = b"\x7fELF";

/// Why a kernel could not be taken out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BzImageError {
    /// The file does not begin like a Linux kernel.
    #[error("it is no bzImage")]
    NotBzImage,
    /// It is packed in a way that this program cannot unpack.
    #[error(
        "the kernel in it is packed with {0}, which is not supported; gzip, lz4, xz and zstd are"
    )]
    Unsupported(Packing),
    /// It is packed in a way that nobody knows.
    #[error("the kernel in it is packed in an unknown way")]
    Unknown,
    /// It begins well and goes on badly.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

impl BzImageError {
    fn damaged(reason: impl Into<String>) -> Self {
        Self::Damaged(reason.into())
    }
}

/// Whether a file begins like a bzImage.
pub(crate) fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(0x202..0x206) == Some(b"HdrS")
}

/// What `uname -r` will say, as far as the header tells.
pub(crate) fn release(bytes: &[u8]) -> Option<&str> {
    let offset = usize::from(u16::from_le_bytes(bytes.get(0x20e..0x210)?.try_into().ok()?));
    if !is_bzimage(bytes) || offset == 0 {
        return None;
    }
    let text = bytes.get(0x200 + offset..)?;
    let text = text.get(..256).unwrap_or(text).split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok()?.split_ascii_whitespace().next()
}

/// The uncompressed kernel of a bzImage, an ELF file.
pub(crate) fn extract_vmlinux(bytes: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let payload = payload(bytes)?;
    if payload.starts_with(ELF_MAGIC) {
        return Ok(without_size(payload).to_vec());
    }
    let packing = Packing::of(payload).ok_or(BzImageError::Unknown)?;
    // The last four bytes are the unpacked size. gzip's own last four bytes are just that.
    let packed = if packing == Packing::Gzip { payload } else { without_size(payload) };
    let unpacked = packing.open(packed).map_err(|error| match error.kind() {
        io::ErrorKind::Unsupported => BzImageError::Unsupported(packing),
        _ => BzImageError::damaged(error.to_string()),
    })?;
    let kernel = read_bounded(unpacked, MAX_KERNEL)
        .map_err(|error| BzImageError::damaged(error.to_string()))?;
    if kernel.starts_with(ELF_MAGIC) {
        Ok(kernel)
    } else {
        Err(BzImageError::damaged("what is in it is no ELF file"))
    }
}

fn without_size(payload: &[u8]) -> &[u8] {
    &payload[..payload.len().saturating_sub(4)]
}

/// The packed kernel and the size that follows it.
fn payload(bytes: &[u8]) -> Result<&[u8], BzImageError> {
    let u32_at = |at: usize| -> Option<usize> {
        let field = bytes.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(field)).ok()
    };
    let version = bytes.get(0x206..0x208).map_or(0, |v| u16::from_le_bytes([v[0], v[1]]));
    if !is_bzimage(bytes) || version < 0x208 {
        return Err(BzImageError::NotBzImage);
    }
    let truncated = || BzImageError::damaged("it is cut off");
    // Zero means four, for the sake of very old kernels.
    let setup_sectors = match bytes.get(0x1f1) {
        Some(0) | None => 4,
        Some(sectors) => usize::from(*sectors),
    };
    let offset = u32_at(0x248).ok_or_else(truncated)?;
    let length = u32_at(0x24c).ok_or_else(truncated)?;
    let begin = (setup_sectors + 1) * 512 + offset;
    let payload = begin.checked_add(length).and_then(|end| bytes.get(begin..end));
    payload.ok_or_else(truncated)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::packing::tests::{PACKERS, packed};

    /// A bzImage of the kernel `6.1.0-test` with that payload, which ends with the unpacked size.
    pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1024 + 64];
        bytes[0x1f1] = 1;
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        bytes[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        let version = b"6.1.0-test (me@here) #1 SMP\0";
        bytes[0x300..0x300 + version.len()].copy_from_slice(version);
        let length = u32::try_from(payload.len()).expect("small");
        bytes[0x248..0x24c].copy_from_slice(&64_u32.to_le_bytes());
        bytes[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// The same, packed as the kernel's build packs: only gzip brings the size along.
    pub(crate) fn packed_bzimage(packer: &str, kernel: &[u8]) -> Vec<u8> {
        let mut payload = packed(packer, kernel);
        if packer != "gzip" {
            payload.extend(u32::try_from(kernel.len()).expect("small").to_le_bytes());
        }
        bzimage(&payload)
    }

    fn kernel(length: usize) -> Vec<u8> {
        let mut kernel = ELF_MAGIC.to_vec();
        kernel.extend((0..length).map(|i| u8::try_from(i * i % 251).expect("small")));
        kernel
    }

    #[test]
    fn a_packed_kernel_comes_out_as_it_went_in() {
        let kernel = kernel(100_000);
        for packer in PACKERS {
            let unpacked = extract_vmlinux(&packed_bzimage(packer, &kernel));
            let want = match packer {
                "lzma" => Err(BzImageError::Unsupported(Packing::Lzma)),
                _ => Ok(kernel.clone()),
            };
            assert_eq!(unpacked, want, "{packer}");
        }
    }

    #[test]
    fn an_unpacked_kernel_is_taken_as_it_is() {
        let payload = [kernel(100), vec![0; 4]].concat();
        assert_eq!(extract_vmlinux(&bzimage(&payload)), Ok(kernel(100)));
    }

    #[test]
    fn other_methods_are_named() {
        let lzo = bzimage(b"\x89LZO\0\r\n\x1a\n........");
        let error = extract_vmlinux(&lzo).expect_err("unsupported");
        assert_eq!(
            error.to_string(),
            "the kernel in it is packed with lzo, which is not supported; gzip, lz4, xz and zstd are"
        );
        assert_eq!(extract_vmlinux(&bzimage(b"whatever")), Err(BzImageError::Unknown));
    }

    #[test]
    fn the_header_tells_the_release() {
        let image = bzimage(b"whatever");
        assert_eq!(release(&image), Some("6.1.0-test"));
        for length in 0..0x300 {
            assert_eq!(release(&image[..length]).filter(|release| !release.is_empty()), None);
        }
    }

    #[test]
    fn every_cut_is_an_error_and_no_panic() {
        for packer in ["gzip", "zstd", "lz4"] {
            let whole = packed_bzimage(packer, &kernel(5000));
            for length in 0..whole.len() {
                assert!(extract_vmlinux(&whole[..length]).is_err(), "{length}");
            }
        }
    }

    #[test]
    fn damage_is_an_error() {
        let mut image = packed_bzimage("lz4", &kernel(5000));
        let size_at = 1024 + 64 + 4;
        image[size_at..size_at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(extract_vmlinux(&image), Err(BzImageError::Damaged(_))));
        let not_elf = packed_bzimage("gzip", b"no elf at all");
        assert!(matches!(extract_vmlinux(&not_elf), Err(BzImageError::Damaged(_))));
    }
}
