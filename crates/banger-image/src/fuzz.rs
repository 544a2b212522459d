//! Fuzz targets: each takes any bytes, gives them to one decoder, and panics if what comes out
//! breaks a promise. `fuzz/README.md` says how they are run; `banger-fuzz` names them all.

use std::io::{Cursor, Read};
use std::path::Path;

use banger_core::reference::Reference;
use banger_host::command::Cancel;

use crate::archive::{self, Source};
use crate::bzimage;
use crate::catalog::Catalog;
use crate::debian::deb::{PackagedFile, read_package};
use crate::kernel;
use crate::layer;
use crate::modules;
use crate::oci;
use crate::packing::{read_bounded, unpacked};
use crate::registry;

/// What comes out of a bomb is looked at up to here.
pub(crate) const UNPACKED: u64 = 16 << 20;

/// Layers: tar streams and what they do to a tree. A null byte begins the next layer.
pub fn layers(data: &[u8]) {
    layer::fuzz::layers(data);
}

/// A tar stream alone.
pub fn tar(data: &[u8]) {
    layer::fuzz::tar(data);
}

/// Compression of layers.
pub fn compression(data: &[u8]) {
    if let Ok((_, stream)) = layer::compression::decompress(data) {
        let _ = read_bounded(stream, UNPACKED);
    }
}

/// Packing of kernels, modules and packages.
pub fn packing(data: &[u8]) {
    if let Ok(stream) = unpacked(data) {
        let _ = read_bounded(stream, UNPACKED);
    }
}

/// A file that may be an archive of an image. `work` is an empty directory.
pub fn archive(file: &Path, work: &Path) {
    match archive::open(file, work, &Cancel::new()) {
        Ok(Source::Image(image)) => {
            if let Some(name) = &image.name {
                Reference::parse(name).expect("a name is suggested that can be one");
            }
            for layer in image.layers().flatten() {
                let _ = std::io::copy(&mut layer.stream.take(UNPACKED), &mut std::io::sink());
            }
        }
        Ok(Source::Ext4 | Source::Tar | Source::Directory) => {}
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains(char::is_control), "errors are shown to people: {text:?}");
        }
    }
}

/// The configuration of an image.
pub fn image_config(data: &[u8]) {
    if let Ok(config) = oci::image_config(data) {
        let again = oci::config_json(&config, "sha256:0", "2026-01-01T00:00:00Z");
        assert_eq!(oci::image_config(&again).as_ref(), Ok(&config), "it is read as it was written");
    }
}

/// Manifests, indexes and what goes with them.
pub fn manifest(data: &[u8]) {
    registry::fuzz::manifest(data);
}

/// What a registry's headers say: challenges, locations, waits.
pub fn registry_headers(data: &[u8]) {
    registry::fuzz::headers(data);
}

/// Files of a user: who they are at registries, and how these are reached.
pub fn registry_files(data: &[u8]) {
    registry::fuzz::files(data);
}

/// A user's catalog.
pub fn catalog(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        Catalog::fuzz(text);
    }
}

/// A kernel: a bzImage or an ELF file.
pub fn kernel_image(data: &[u8]) {
    let _ = bzimage::release(data);
    kernel::fuzz_image(data);
}

/// A kernel module.
pub fn kernel_module(data: &[u8]) {
    modules::fuzz_module(data);
}

/// A Debian package.
pub fn debian_package(data: &[u8]) {
    let mut left = UNPACKED;
    let _ = read_package::<std::io::Error>(Cursor::new(data), &mut |file: PackagedFile<'_>| {
        let read = std::io::copy(&mut file.contents.take(left), &mut std::io::sink())?;
        left -= read;
        Ok(())
    });
}
