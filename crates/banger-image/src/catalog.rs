//! The catalog: the images and kernels that banger knows by name, and how to get each.
//!
//! It is part of the program, so that a name means the same on every host with the same release.

use std::sync::OnceLock;

use serde::Deserialize;

/// The catalog's text.
const TEXT: &str = include_str!("../catalog.toml");

/// All known images and kernels.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Catalog {
    #[serde(rename = "image")]
    pub(crate) images: Vec<ImageEntry>,
    #[serde(rename = "kernel")]
    pub(crate) kernels: Vec<KernelEntry>,
}

/// A known image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageEntry {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) source: String,
    pub(crate) kernel: String,
    /// Roughly what it takes on the host.
    pub(crate) size_mib: u64,
    /// Free space that making it needs.
    pub(crate) build_mib: u64,
    /// How to make it.
    pub(crate) debian: DebianImage,
}

/// An image made of Debian packages.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DebianImage {
    /// Codename of the release.
    pub(crate) release: String,
    /// What is installed beyond the essential packages and apt.
    pub(crate) packages: Vec<String>,
}

/// A known kernel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KernelEntry {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) source: String,
    /// Roughly what it takes on the host.
    pub(crate) size_mib: u64,
    /// Free space that making it needs.
    pub(crate) build_mib: u64,
    /// How to get it.
    pub(crate) debian: DebianKernel,
}

/// A kernel out of a Debian package.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DebianKernel {
    /// Codename of the release.
    pub(crate) release: String,
    /// The package that depends on the newest kernel package.
    pub(crate) package: String,
}

impl Catalog {
    /// The catalog of this release.
    pub(crate) fn get() -> &'static Self {
        static CATALOG: OnceLock<Catalog> = OnceLock::new();
        CATALOG.get_or_init(|| toml::from_str(TEXT).expect("catalog.toml is tested"))
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
            assert!(kernels.contains(&entry.kernel), "{} needs an unknown kernel", entry.name);
            assert!(entry.build_mib > entry.size_mib, "{}", entry.name);
        }
    }

    #[test]
    fn packages_are_named_as_debian_names_them() {
        for entry in &Catalog::get().images {
            for package in &entry.debian.packages {
                let legal =
                    |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
                assert!(package.chars().all(legal), "{package}");
            }
        }
    }
}
