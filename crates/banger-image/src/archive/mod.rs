//! Local files that images are made of: which kind they are, and what is in them.
//!
//! An archive is looked through once to learn what it is and where its members are; what is needed
//! is then read from where it lies. Nothing is unpacked, except that the compression of a whole
//! archive is taken off, into the work directory, because nobody can read at a place in it.
//!
//! ```text
//! look.rs      what kind of file it is
//! members.rs   the members of an archive, or of a directory that was one, by name
//! layout.rs    OCI layouts
//! docker.rs    what `docker save` writes
//! image.rs     the image in either
//! ```

mod docker;
mod image;
mod layout;
mod look;
mod members;
#[cfg(test)]
mod tests;

use std::path::Path;

use banger_host::command::Cancel;

pub(crate) use image::ArchivedImage;

use crate::error::PullError;
use members::Members;

/// What local files are.
#[derive(Debug)]
pub(crate) enum Source {
    /// An ext4 file system.
    Ext4,
    /// A tar, compressed or not, with a root filesystem. It is a layer as it stands.
    Tar,
    /// A directory with a root filesystem.
    Directory,
    /// An image in layers.
    Image(Box<ArchivedImage>),
}

/// Learn what `path` is. `work` is an empty directory for what this needs on the way, and until the
/// layers of the image have been read.
///
/// # Errors
/// It cannot be read, is nothing that an image can be made of, or an image that is damaged or for
/// another machine.
pub(crate) fn open(path: &Path, work: &Path, cancel: &Cancel) -> Result<Source, PullError> {
    let members = match look::look(path, work, cancel)? {
        look::Seen::Ext4 => return Ok(Source::Ext4),
        look::Seen::Tar => return Ok(Source::Tar),
        look::Seen::Directory => return Ok(Source::Directory),
        look::Seen::Image(members) => members,
    };
    let image = read_image(&members).map_err(|fault| fault.of(path))?;
    Ok(Source::Image(Box::new(image)))
}

fn read_image(members: &Members) -> Result<ArchivedImage, Fault> {
    // Both are there in what newer Dockers save. The layout says more, the list knows the name.
    let listed = docker::read_list(members)?;
    if layout::is_one(members)? {
        let mut image = layout::read(members)?;
        image.name = listed.and_then(|list| list.name).or(image.name);
        return Ok(image);
    }
    docker::read(members, listed.ok_or("it is no image archive")?)
}

/// What is wrong with an archive.
#[derive(Debug)]
enum Fault {
    /// It is not what it should be.
    Invalid(String),
    /// It cannot be read.
    Read(std::io::Error),
}

impl Fault {
    fn of(self, path: &Path) -> PullError {
        match self {
            Self::Invalid(reason) => PullError::invalid(path.display().to_string(), reason),
            Self::Read(error) => PullError::io("read", path)(error),
        }
    }
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Invalid(reason)
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Self {
        Self::Invalid(reason.to_owned())
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Read(error)
    }
}
