//! The catalog: the images and kernels that banger knows by name, and how to get each.
//!
//! Banger's own is part of the program, so that a name means the same on every host with the same
//! release. A user's own, `catalog.toml` in the configuration directory, adds to it; what has the
//! same name takes the place of banger's.

use std::path::Path;
use std::sync::OnceLock;

use banger_api::vm::InitMode;
use banger_core::reference::Reference;
use banger_core::spec::DEFAULT_KERNEL;
use serde::Deserialize;

use crate::error::LibraryError;

/// File name of a user's own catalog.
pub(crate) const CATALOG_FILE: &str = "catalog.toml";
/// Largest catalog that is read.
const MAX_BYTES: u64 = 1 << 20;
/// The text of banger's catalog.
const TEXT: &str = include_str!("../catalog.toml");

/// All known images and kernels.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Catalog {
    #[serde(default, rename = "image")]
    pub(crate) images: Vec<ImageEntry>,
    #[serde(default, rename = "kernel")]
    pub(crate) kernels: Vec<KernelEntry>,
}

/// A known image.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageEntry {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: String,
    #[serde(default = "default_kernel")]
    pub(crate) kernel: String,
    #[serde(default)]
    pub(crate) init: InitMode,
    /// Roughly what it takes on the host.
    #[serde(default)]
    pub(crate) size_mib: u64,
    /// Free space that making it needs.
    #[serde(default)]
    pub(crate) build_mib: u64,
    debian: Option<DebianImage>,
    oci: Option<OciImage>,
    file: Option<FileImage>,
    /// Whether it is of the user's catalog.
    #[serde(skip)]
    pub(crate) user_defined: bool,
}

/// Where an image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageSource<'a> {
    Debian(&'a DebianImage),
    Oci(&'a OciImage),
    File(&'a FileImage),
}

/// An image made of Debian packages.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DebianImage {
    /// Codename of the release.
    pub(crate) release: String,
    /// What is installed beyond the essential packages and apt.
    pub(crate) packages: Vec<String>,
}

/// An image of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OciImage {
    /// Which, as in `docker pull`.
    pub(crate) reference: String,
}

/// An image in a file: whatever `banger image register` takes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileImage {
    /// Where it is: `https://…`, `http://…` or `file:///…`.
    pub(crate) url: String,
    /// Digest of the file, 64 hex digits.
    pub(crate) sha256: String,
}

/// A known kernel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KernelEntry {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: String,
    /// Roughly what it takes on the host.
    #[serde(default)]
    pub(crate) size_mib: u64,
    /// Free space that making it needs.
    #[serde(default)]
    pub(crate) build_mib: u64,
    /// How to get it.
    pub(crate) debian: DebianKernel,
}

/// A kernel out of a Debian package.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DebianKernel {
    /// Codename of the release.
    pub(crate) release: String,
    /// The package that depends on the newest kernel package.
    pub(crate) package: String,
}

impl ImageEntry {
    /// Where it comes from.
    pub(crate) fn source(&self) -> ImageSource<'_> {
        match (&self.debian, &self.oci, &self.file) {
            (Some(debian), None, None) => ImageSource::Debian(debian),
            (None, Some(oci), None) => ImageSource::Oci(oci),
            (None, None, Some(file)) => ImageSource::File(file),
            _ => unreachable!("a catalog whose entries have not one source is not loaded"),
        }
    }

    /// Where it comes from, for people.
    pub(crate) fn source_text(&self) -> String {
        match self.source() {
            ImageSource::Debian(debian) => format!("Debian archive, {}", debian.release),
            ImageSource::Oci(oci) => format!("registry, {}", oci.reference),
            ImageSource::File(file) => file.url.clone(),
        }
    }

    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        Reference::parse(name).map_err(|error| format!("image {name:?}: {error}"))?;
        match (&self.debian, &self.oci, &self.file) {
            (Some(_), None, None) => Ok(()),
            (None, Some(oci), None) => Reference::parse(&oci.reference)
                .map(drop)
                .map_err(|error| format!("image {name}: {error}")),
            (None, None, Some(file)) => {
                let digits = file.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
                if digits && file.sha256.len() == 64 {
                    Ok(())
                } else {
                    Err(format!("image {name}: sha256 must be 64 hexadecimal digits"))
                }
            }
            _ => Err(format!(
                "image {name} needs exactly one of [image.debian], [image.oci], [image.file]"
            )),
        }
    }
}

impl KernelEntry {
    /// Where it comes from, for people.
    pub(crate) fn source_text(&self) -> String {
        format!("Debian archive, {}", self.debian.release)
    }
}

impl Catalog {
    /// The catalog of this release.
    pub(crate) fn built_in() -> &'static Self {
        static CATALOG: OnceLock<Catalog> = OnceLock::new();
        CATALOG.get_or_init(|| toml::from_str(TEXT).expect("catalog.toml is tested"))
    }

    /// The catalog of this release and the user's own, which may be missing.
    pub(crate) fn load(user_file: &Path) -> Result<Self, LibraryError> {
        let invalid = |reason| LibraryError::Catalog { path: user_file.to_owned(), reason };
        let text = match std::fs::metadata(user_file) {
            Ok(meta) if meta.len() > MAX_BYTES => {
                return Err(invalid("it is larger than 1 MiB".to_owned()));
            }
            Ok(_) => {
                std::fs::read_to_string(user_file).map_err(LibraryError::io("read", user_file))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::built_in().clone());
            }
            Err(error) => return Err(LibraryError::io("read", user_file)(error)),
        };
        Self::built_in().with_user(&text).map_err(invalid)
    }

    /// This catalog with the entries of a user's.
    fn with_user(&self, text: &str) -> Result<Self, String> {
        let user: Self =
            toml::from_str(text).map_err(|error| error.to_string().trim().to_owned())?;
        user.images.iter().try_for_each(ImageEntry::check)?;
        let mut all = self.clone();
        for mut entry in user.images {
            entry.user_defined = true;
            all.images.retain(|known| known.name != entry.name);
            all.images.push(entry);
        }
        for entry in user.kernels {
            all.kernels.retain(|known| known.name != entry.name);
            all.kernels.push(entry);
        }
        Ok(all)
    }

    /// A fuzz target: a user's catalog.
    #[cfg(feature = "fuzz")]
    pub(crate) fn fuzz(text: &str) {
        if let Ok(catalog) = Self::built_in().with_user(text) {
            for image in catalog.images.iter().filter(|image| image.user_defined) {
                let _ = image.source_text();
                assert!(catalog.image(&image.name).is_some(), "it is found by its name");
            }
        }
    }

    /// The image of that name.
    pub(crate) fn image(&self, name: &str) -> Option<&ImageEntry> {
        self.images.iter().find(|entry| entry.name == name)
    }

    /// The kernel of that name.
    pub(crate) fn kernel(&self, name: &str) -> Option<&KernelEntry> {
        self.kernels.iter().find(|entry| entry.name == name)
    }
}

fn default_kernel() -> String {
    DEFAULT_KERNEL.to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_catalog_can_be_read_and_is_consistent() {
        let catalog: Catalog = toml::from_str(TEXT).expect("well formed");
        let images: BTreeSet<_> = catalog.images.iter().map(|entry| &entry.name).collect();
        let kernels: BTreeSet<_> = catalog.kernels.iter().map(|entry| &entry.name).collect();
        assert_eq!(images.len(), catalog.images.len(), "names are unique");
        assert_eq!(kernels.len(), catalog.kernels.len(), "names are unique");
        for entry in &catalog.images {
            entry.check().expect("it is good");
            assert!(kernels.contains(&entry.kernel), "{} needs an unknown kernel", entry.name);
            assert!(entry.build_mib > entry.size_mib, "{}", entry.name);
            assert!(!entry.description.is_empty(), "{}", entry.name);
        }
    }

    #[test]
    fn packages_are_named_as_debian_names_them() {
        for entry in &Catalog::built_in().images {
            let ImageSource::Debian(debian) = entry.source() else { continue };
            for package in &debian.packages {
                let legal =
                    |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
                assert!(package.chars().all(legal), "{package}");
            }
        }
    }

    #[test]
    fn a_users_entries_are_added_and_win() {
        let text = "[[image]]\nname = 'team'\n[image.oci]\nreference = 'localhost:5000/team:1'\n\
                    [[image]]\nname = 'alpine'\n[image.file]\nurl = 'file:///a.tar'\n\
                    sha256 = '0000000000000000000000000000000000000000000000000000000000000000'\n";
        let catalog = Catalog::built_in().with_user(text).expect("good");
        let team = catalog.image("team").expect("added");
        assert_eq!(team.source_text(), "registry, localhost:5000/team:1");
        assert_eq!(team.kernel, DEFAULT_KERNEL);
        assert!(team.user_defined);
        assert_eq!(catalog.image("alpine").expect("there").source_text(), "file:///a.tar");
        assert!(!catalog.image("ubuntu").expect("there").user_defined);
    }

    #[test]
    fn what_is_wrong_with_a_users_catalog_is_said() {
        let cases = [
            ("[[image]]\nname = 'x'\n", "exactly one of"),
            ("[[image]]\nname = 'X'\n[image.oci]\nreference = 'a'\n", "image \"X\""),
            ("[[image]]\nname = 'x'\n[image.oci]\nreference = 'A'\n", "image x"),
            ("[[image]]\nname = 'x'\nsise_mib = 1\n", "sise_mib"),
            ("[[image]]\nname = 'x'\n[image.file]\nurl = 'file:///a'\nsha256 = 'ab'\n", "64"),
        ];
        for (text, want) in cases {
            let error = Catalog::built_in().with_user(text).expect_err(text);
            assert!(error.contains(want), "{error}");
        }
    }
}
