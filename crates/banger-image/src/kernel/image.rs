//! A kernel out of one file: a bzImage with the ELF file inside it, or just that.

use std::io::{Cursor, Read};

use super::vmlinux::{Vmlinux, is_release};
use crate::bzimage::{self, MAX_BZIMAGE, extract_vmlinux, is_bzimage};
use crate::packing::read_bounded;

/// How much of a file tells a bzImage.
const MAGIC_BYTES: u64 = 0x210;

/// A kernel.
#[derive(Debug)]
pub(crate) struct KernelImage {
    /// As it came, if that was a bzImage.
    pub(crate) bzimage: Option<Vec<u8>>,
    /// What a monitor starts.
    pub(crate) vmlinux: Vmlinux,
    /// What `uname -r` will say.
    pub(crate) release: String,
}

impl KernelImage {
    /// Read one.
    ///
    /// # Errors
    /// It is none, in words.
    pub(crate) fn read(mut file: impl Read) -> Result<Self, String> {
        let cannot_read = |error| format!("it cannot be read: {error}");
        let mut first = Vec::new();
        Read::by_ref(&mut file).take(MAGIC_BYTES).read_to_end(&mut first).map_err(cannot_read)?;
        let is_packed = is_bzimage(&first);
        let whole = Cursor::new(first).chain(file);
        let (bzimage, vmlinux) = if is_packed {
            let bytes = read_bounded(whole, MAX_BZIMAGE).map_err(cannot_read)?;
            let unpacked = extract_vmlinux(&bytes).map_err(|error| error.to_string())?;
            (Some(bytes), Vmlinux::read(&unpacked[..])?)
        } else {
            (None, Vmlinux::read(whole)?)
        };
        let header = bzimage.as_deref().and_then(bzimage::release).filter(|it| is_release(it));
        let release = vmlinux.release().or(header);
        let release = release.ok_or("it does not say which Linux it is")?.to_owned();
        Ok(Self { bzimage, vmlinux, release })
    }
}

#[cfg(test)]
mod tests {
    use super::super::vmlinux::tests::vmlinux;
    use super::*;
    use crate::bzimage::tests::packed_bzimage;

    #[test]
    fn a_kernel_is_read_packed_or_not() {
        let plain = vmlinux("6.1.0-plain", &[], true);
        let image = KernelImage::read(&plain[..]).expect("a kernel");
        assert_eq!((image.bzimage, image.release.as_str()), (None, "6.1.0-plain"));
        let packed = packed_bzimage("zstd", &plain);
        let image = KernelImage::read(&packed[..]).expect("a kernel");
        assert_eq!(image.bzimage, Some(packed));
        assert_eq!(image.vmlinux.bytes(), plain);
        assert_eq!(image.release, "6.1.0-plain");
    }

    #[test]
    fn a_bzimage_may_say_its_release_in_its_header_only() {
        let nameless = vmlinux("%s", &[], true);
        let error = KernelImage::read(&nameless[..]).expect_err("it has no name");
        assert_eq!(error, "it does not say which Linux it is");
        let packed = packed_bzimage("gzip", &nameless);
        assert_eq!(KernelImage::read(&packed[..]).expect("a kernel").release, "6.1.0-test");
    }

    #[test]
    fn what_is_no_kernel_is_told_apart() {
        let read = |bytes: &[u8]| KernelImage::read(bytes).expect_err("no kernel");
        assert_eq!(read(b""), "it is neither a bzImage nor an ELF file");
        assert!(read(&packed_bzimage("lzma", b"\x7fELF")).contains("lzma, which is not supported"));
    }
}
