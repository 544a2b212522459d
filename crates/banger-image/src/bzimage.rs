//! The kernel inside a bzImage.
//!
//! A bzImage is a small program that unpacks the real kernel, an ELF file. A virtual machine monitor
//! can start that ELF directly, and does so faster: Firecracker knows nothing else, and QEMU's
//! emulation need not execute the unpacking. Format: the kernel's `Documentation/arch/x86/boot.rst`.

/// Largest kernel that is unpacked, in bytes. Debian's has about 50 MB.
const MAX_KERNEL: usize = 512 * 1024 * 1024;
/// Blocks of LZ4's legacy frame unpack to at most this.
const LEGACY_BLOCK: usize = 8 * 1024 * 1024;
const LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// Why a kernel could not be taken out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BzImageError {
    /// The file does not begin like a Linux kernel.
    #[error("it is no bzImage")]
    NotBzImage,
    /// It is packed in a way that this program cannot unpack.
    #[error("the kernel in it is packed with an unsupported method")]
    Unsupported,
    /// It begins well and goes on badly.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// Whether a file begins like a bzImage.
pub(crate) fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(0x202..0x206) == Some(b"HdrS")
}

/// The uncompressed kernel of a bzImage.
pub(crate) fn extract_vmlinux(bytes: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let payload = payload(bytes)?;
    if payload.starts_with(&LEGACY_MAGIC) {
        let kernel = unpack_lz4_legacy(&payload[4..])?;
        return if kernel.starts_with(ELF_MAGIC) {
            Ok(kernel)
        } else {
            Err(BzImageError::Damaged("what is in it is no ELF file"))
        };
    }
    if payload.starts_with(ELF_MAGIC) {
        return Ok(payload.to_vec());
    }
    Err(BzImageError::Unsupported)
}

/// The packed kernel, without the size that follows it.
fn payload(bytes: &[u8]) -> Result<&[u8], BzImageError> {
    let u32_at = |at: usize| -> Option<usize> {
        let field = bytes.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(field)).ok()
    };
    let version = bytes.get(0x206..0x208).map_or(0, |v| u16::from_le_bytes([v[0], v[1]]));
    if !is_bzimage(bytes) || version < 0x208 {
        return Err(BzImageError::NotBzImage);
    }
    let truncated = BzImageError::Damaged("it is cut off");
    // Zero means four, for the sake of very old kernels.
    let setup_sectors = match bytes.get(0x1f1) {
        Some(0) | None => 4,
        Some(sectors) => usize::from(*sectors),
    };
    let offset = u32_at(0x248).ok_or(truncated.clone())?;
    let length = u32_at(0x24c).ok_or(truncated.clone())?;
    let begin = (setup_sectors + 1) * 512 + offset;
    let payload = begin.checked_add(length).and_then(|end| bytes.get(begin..end));
    // The last four bytes are the unpacked size.
    payload.and_then(|payload| payload.get(..payload.len().checked_sub(4)?)).ok_or(truncated)
}

/// Unpack LZ4's legacy frame: blocks, each preceded by its packed size.
fn unpack_lz4_legacy(mut packed: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let damaged = || BzImageError::Damaged("the packed kernel makes no sense");
    let mut kernel = Vec::new();
    let mut block = vec![0; LEGACY_BLOCK];
    while let Some((size, rest)) = packed.split_first_chunk::<4>() {
        // The kernel's build may append frames to frames.
        if *size == LEGACY_MAGIC {
            packed = rest;
            continue;
        }
        let size = usize::try_from(u32::from_le_bytes(*size)).map_err(|_| damaged())?;
        let (bytes, rest) = rest.split_at_checked(size).ok_or_else(damaged)?;
        let length = lz4_flex::block::decompress_into(bytes, &mut block).map_err(|_| damaged())?;
        kernel.extend_from_slice(&block[..length]);
        if kernel.len() > MAX_KERNEL {
            return Err(BzImageError::Damaged("the kernel in it is too large"));
        }
        packed = rest;
    }
    if packed.is_empty() { Ok(kernel) } else { Err(damaged()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with that payload.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1024 + 64];
        bytes[0x1f1] = 1;
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        let length = u32::try_from(payload.len() + 4).expect("small");
        bytes[0x248..0x24c].copy_from_slice(&64_u32.to_le_bytes());
        bytes[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(&[0; 4]);
        bytes
    }

    fn legacy_frame(kernel: &[u8]) -> Vec<u8> {
        let mut frame = LEGACY_MAGIC.to_vec();
        for chunk in kernel.chunks(LEGACY_BLOCK) {
            let packed = lz4_flex::block::compress(chunk);
            frame.extend(u32::try_from(packed.len()).expect("small").to_le_bytes());
            frame.extend(packed);
        }
        frame
    }

    fn kernel(length: usize) -> Vec<u8> {
        let mut kernel = ELF_MAGIC.to_vec();
        kernel.extend((0..length).map(|i| u8::try_from(i * i % 251).expect("small")));
        kernel
    }

    #[test]
    fn a_packed_kernel_comes_out_as_it_went_in() {
        for length in [0, 1000, LEGACY_BLOCK + 12345] {
            let kernel = kernel(length);
            assert_eq!(extract_vmlinux(&bzimage(&legacy_frame(&kernel))), Ok(kernel));
        }
    }

    #[test]
    fn an_unpacked_kernel_is_taken_as_it_is() {
        assert_eq!(extract_vmlinux(&bzimage(&kernel(100))), Ok(kernel(100)));
    }

    #[test]
    fn other_methods_are_unsupported() {
        assert_eq!(
            extract_vmlinux(&bzimage(b"\x28\xb5\x2f\xfd....")),
            Err(BzImageError::Unsupported)
        );
    }

    #[test]
    fn every_cut_is_an_error_and_no_panic() {
        let whole = bzimage(&legacy_frame(&kernel(5000)));
        for length in 0..whole.len() {
            assert!(extract_vmlinux(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn damage_is_an_error() {
        let mut frame = legacy_frame(&kernel(5000));
        frame[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(extract_vmlinux(&bzimage(&frame)), Err(BzImageError::Damaged(_))));
        let not_elf = legacy_frame(b"no elf at all");
        assert!(matches!(extract_vmlinux(&bzimage(&not_elf)), Err(BzImageError::Damaged(_))));
    }
}
