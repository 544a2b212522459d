//! What can be wrong with a layer.

use std::io;

use banger_api::ErrorCode;

use super::tar::TarError;
use crate::error::PullError;

/// Longest name that an error repeats.
const SHOWN: usize = 200;

/// Why a layer could not be put on a disk.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Somebody called it off.
    #[error("it was cancelled")]
    Cancelled,
    /// It is not what it should be, unsafe, or too large.
    #[error("{layer}: {}{reason}", place(entry.as_deref()))]
    Invalid {
        /// Which layer.
        layer: String,
        /// Which of its entries, if it is one's fault.
        entry: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// Its file or stream cannot be read.
    #[error("cannot read {layer}")]
    Read {
        /// Which layer.
        layer: String,
        /// Why.
        source: io::Error,
    },
    /// A layer cannot be written.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    /// The disk cannot be written, or the files do not fit on it.
    #[error("cannot make the disk")]
    Disk(#[source] banger_ext4::Error),
}

impl LayerError {
    /// The kind of failure.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        use banger_ext4::Error as Disk;
        match self {
            Self::Cancelled => ErrorCode::Cancelled,
            Self::Invalid { .. } => ErrorCode::ImageInvalid,
            Self::Read { source, .. } | Self::Write(source) | Self::Disk(Disk::Io(source))
                if is_disk_full(source) =>
            {
                ErrorCode::HostDiskFull
            }
            Self::Disk(
                Disk::NoSpace { .. }
                | Disk::NoInodes { .. }
                | Disk::TooLarge { .. }
                | Disk::BadXattr { .. },
            ) => ErrorCode::ImageInvalid,
            Self::Read { .. } | Self::Write(_) | Self::Disk(_) => ErrorCode::PullFailed,
        }
    }

    /// What to type next, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        (self.code() == ErrorCode::HostDiskFull).then(|| "banger system df".to_owned())
    }

    /// What was found out about `layer` while its tar was read.
    pub(super) fn tar(layer: &str, error: TarError) -> Self {
        let layer = layer.to_owned();
        match error {
            TarError::Malformed { entry, reason } => {
                let entry = entry.map(|entry| shown(entry.as_bytes()));
                Self::Invalid { layer, entry, reason }
            }
            TarError::Read(source) => Self::read(layer, source),
        }
    }

    /// A stream that failed: whether that is the layer's own fault, its kind says.
    pub(super) fn read(layer: String, source: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, InvalidData, UnexpectedEof, Unsupported};
        match source.kind() {
            UnexpectedEof => {
                Self::Invalid { layer, entry: None, reason: "it ends too early".into() }
            }
            FileTooLarge | InvalidData | Unsupported if source.raw_os_error().is_none() => {
                Self::Invalid { layer, entry: None, reason: source.to_string() }
            }
            _ => Self::Read { layer, source },
        }
    }
}

impl From<LayerError> for PullError {
    fn from(error: LayerError) -> Self {
        match error {
            LayerError::Cancelled => Self::Cancelled,
            error => Self::Layer(error),
        }
    }
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn place(entry: Option<&str>) -> String {
    entry.map(|entry| format!("{entry}: ")).unwrap_or_default()
}

/// A name that a stranger chose, fit for a terminal.
pub(crate) fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        match character {
            _ if count == SHOWN => {
                shown.push('…');
                break;
            }
            character if character.is_control() => shown.extend(character.escape_default()),
            character => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_layer_and_the_entry() {
        let malformed = |entry: Option<&str>| TarError::Malformed {
            entry: entry.map(str::to_owned),
            reason: "a bad size".to_owned(),
        };
        let text = |error| LayerError::tar("layer 2", error).to_string();
        assert_eq!(text(malformed(None)), "layer 2: a bad size");
        assert_eq!(text(malformed(Some("a/\x1b[1mb"))), "layer 2: a/\\u{1b}[1mb: a bad size");
        let long = shown(&[b'x'; 5000]);
        assert_eq!(long.chars().count(), SHOWN + 1);
    }

    #[test]
    fn whose_fault_it_is_decides_the_code() {
        let read = |kind: io::ErrorKind| LayerError::read("it".to_owned(), kind.into()).code();
        let disk = |error| LayerError::Disk(error).code();
        assert_eq!(read(io::ErrorKind::UnexpectedEof), ErrorCode::ImageInvalid);
        assert_eq!(read(io::ErrorKind::StorageFull), ErrorCode::HostDiskFull);
        assert_eq!(read(io::ErrorKind::NotFound), ErrorCode::PullFailed);
        assert_eq!(disk(banger_ext4::Error::NoSpace { bytes: 1 }), ErrorCode::ImageInvalid);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(disk(banger_ext4::Error::Io(full)), ErrorCode::HostDiskFull);
    }
}
