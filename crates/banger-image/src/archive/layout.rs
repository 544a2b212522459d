//! OCI layouts: `oci-layout`, `index.json`, and blobs named by digest.

use std::collections::BTreeMap;

use banger_api::image::{ImageLayer, OciOrigin};
use banger_core::reference::Digest;
use serde::Deserialize;

use super::Fault;
use super::image::{ArchivedImage, ArchivedLayer, Config, digest_of, suggested};
use super::members::Members;
use crate::layer::shown;
use crate::registry::manifest::{Document, MAX_MANIFEST, Manifest, Platform, choose};

/// How deep an index may lie in another.
const MAX_DEPTH: usize = 4;
/// How many images a message names.
const MAX_SHOWN: usize = 10;
/// What the whole name of an image is noted as, and the name or only the tag.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

/// An image of a layout. Only what is chosen has to be right.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Entry {
    fn is_image(&self) -> bool {
        let kind = &self.media_type;
        kind.is_empty() || kind.contains("manifest") || kind.contains("image.index")
    }

    fn fits(&self, machine: &Platform) -> bool {
        let fits = |p: &Platform| (&p.os, &p.architecture) == (&machine.os, &machine.architecture);
        self.platform.as_ref().is_none_or(fits)
    }

    fn noted(&self) -> impl Iterator<Item = &String> {
        NAMES.iter().filter_map(|key| self.annotations.as_ref()?.get(*key))
    }
}

/// Whether it is one.
pub(super) fn is_one(members: &Members) -> Result<bool, Fault> {
    Ok(members.open("oci-layout")?.is_some() && members.open("index.json")?.is_some())
}

/// The image for this machine in a layout.
pub(super) fn read(members: &Members) -> Result<ArchivedImage, Fault> {
    let layout: Layout = document(members, "oci-layout")?;
    if !layout.image_layout_version.starts_with("1.") {
        let version = shown(layout.image_layout_version.as_bytes());
        return Err(format!("it is an OCI layout of version {version}").into());
    }
    let index: Index = document(members, "index.json")?;
    let entry = choose_image(&index.manifests)?;
    let name = entry.noted().find_map(|name| suggested(name));
    let top = parse_digest(&entry.digest)?;
    let (digest, manifest) = manifest_at(members, top.clone(), entry.size)?;
    manifest.check()?;
    let config = blob(members, &manifest.config.digest, manifest.config.size)?;
    let config = Config::read(&config, manifest.layers.len())?;
    let mut layers = Vec::new();
    for (layer, diff_id) in manifest.layers.iter().zip(config.diff_ids) {
        let member = place_of(&layer.digest);
        let there = members.open(&member)?.map(|(_, bytes)| bytes);
        if there != Some(layer.size) {
            return Err(incomplete(&layer.digest, layer.size, there).into());
        }
        let digest = Some(layer.digest.clone());
        layers.push(ArchivedLayer { member, bytes: layer.size, digest, diff_id });
    }
    let origin = OciOrigin {
        reference: None,
        digest: top.to_string(),
        manifest_digest: digest.to_string(),
        config_digest: config.digest.to_string(),
        layers: manifest
            .layers
            .iter()
            .map(|layer| ImageLayer { digest: layer.digest.to_string(), bytes: layer.size })
            .collect(),
    };
    let members = members.clone();
    Ok(ArchivedImage { name, config: config.run, digest, origin: Some(origin), layers, members })
}

/// The only image of a layout that can be meant.
fn choose_image(entries: &[Entry]) -> Result<&Entry, Fault> {
    let machine = Platform::of_this_machine();
    let fitting: Vec<&Entry> =
        entries.iter().filter(|entry| entry.is_image() && entry.fits(&machine)).collect();
    match fitting[..] {
        [] if entries.is_empty() => Err("there is no image in it".into()),
        [] => Err(format!("there is no image for {} in it", machine.name()).into()),
        [first, ..] if fitting.iter().all(|entry| entry.digest == first.digest) => Ok(first),
        _ => {
            let names: Vec<String> = fitting
                .iter()
                .take(MAX_SHOWN)
                .map(|entry| entry.noted().next().unwrap_or(&entry.digest))
                .map(|name| shown(name.as_bytes()))
                .collect();
            let (count, names) = (fitting.len(), names.join(", "));
            Err(format!("there are {count} images in it, and one is wanted: {names}").into())
        }
    }
}

/// The manifest for this machine that a digest leads to, and its own digest.
fn manifest_at(
    members: &Members,
    mut digest: Digest,
    mut size: u64,
) -> Result<(Digest, Manifest), Fault> {
    for _ in 0..MAX_DEPTH {
        match Document::parse(&blob(members, &digest, size)?, None)? {
            Document::Manifest(manifest) => return Ok((digest, manifest)),
            Document::Index(entries) => {
                let machine = Platform::of_this_machine();
                let chosen = choose(&entries, &machine).map_err(|others| {
                    let others = others.join(", ");
                    format!("there is no image for {} in it, only for {others}", machine.name())
                })?;
                (digest, size) = (parse_digest(&chosen.digest)?, chosen.size);
            }
        }
    }
    Err("there are indexes in indexes in it".into())
}

/// A small blob, which is what its name says.
fn blob(members: &Members, digest: &Digest, size: u64) -> Result<Vec<u8>, Fault> {
    let bytes = members.read(&place_of(digest), MAX_MANIFEST)?;
    let there = bytes.as_ref().map(|bytes| bytes.len() as u64);
    match bytes {
        Some(bytes) if there == Some(size) && digest_of(&bytes) == *digest => Ok(bytes),
        _ => Err(incomplete(digest, size, there).into()),
    }
}

fn incomplete(digest: &Digest, wanted: u64, there: Option<u64>) -> String {
    match there {
        None => format!("it is incomplete, {digest} is missing"),
        Some(there) if there != wanted => {
            format!("it is damaged, {digest} has {there} of {wanted} bytes")
        }
        Some(_) => format!("it is damaged, {digest} is something else"),
    }
}

fn place_of(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn parse_digest(text: &str) -> Result<Digest, Fault> {
    Digest::parse(text).map_err(|error| shown(error.to_string().as_bytes()).into())
}

/// A JSON document of the layout itself.
fn document<T: for<'de> Deserialize<'de>>(members: &Members, name: &str) -> Result<T, Fault> {
    let json = members.read(name, MAX_MANIFEST)?.ok_or_else(|| format!("{name} is missing"))?;
    serde_json::from_slice(&json)
        .map_err(|error| format!("{name}: {}", shown(error.to_string().as_bytes())).into())
}
