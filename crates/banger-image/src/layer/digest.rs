//! Streams whose digest is known before.

use std::io::{self, ErrorKind, Read};

use sha2::{Digest, Sha256};

/// A stream that ends with [`ErrorKind::InvalidData`] if it is not what it should be.
pub(crate) struct Verified<R> {
    inner: R,
    sha: Sha256,
    expected: String,
}

/// The same stream, which must have the digest `expected`: `sha256:` and 64 hex digits.
pub(crate) fn verified<R: Read>(inner: R, expected: String) -> Verified<R> {
    Verified { inner, sha: Sha256::new(), expected }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = self.inner.read(buffer)?;
        if count > 0 {
            self.sha.update(&buffer[..count]);
            return Ok(count);
        }
        let digest = format!("sha256:{}", hex::encode(self.sha.clone().finalize()));
        if digest == self.expected {
            return Ok(0);
        }
        let reason = format!("its digest is {digest}, and should be {}", self.expected);
        Err(io::Error::new(ErrorKind::InvalidData, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_comes_only_if_all_was_right() {
        let digest = |text: &str| format!("sha256:{}", hex::encode(Sha256::digest(text)));
        let read = |text: &str, expected| {
            let mut read = String::new();
            verified(text.as_bytes(), expected).read_to_string(&mut read).map(|_| read)
        };
        assert_eq!(read("text", digest("text")).expect("it is right"), "text");
        assert_eq!(read("", digest("")).expect("it is right"), "");
        for wrong in [digest("texT"), "sha256:".to_owned(), "sha512:0".to_owned()] {
            let error = read("text", wrong).expect_err("it is wrong");
            assert_eq!(error.kind(), ErrorKind::InvalidData);
        }
    }
}
