//! What `docker save` and its likes write: `manifest.json` with a list of images, each with the
//! names of the files that are its configuration and its layers.

use banger_core::reference::Digest;
use serde::Deserialize;

use super::Fault;
use super::image::{ArchivedImage, ArchivedLayer, Config, suggested};
use super::members::Members;
use crate::layer::shown;
use crate::registry::manifest::MAX_MANIFEST;

/// How many images a message names.
const MAX_SHOWN: usize = 10;

/// The one image of the list.
pub(super) struct Listed {
    /// What it is called.
    pub(super) name: Option<String>,
    config: String,
    layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Read the list, if there is one.
pub(super) fn read_list(members: &Members) -> Result<Option<Listed>, Fault> {
    let Some(json) = members.read("manifest.json", MAX_MANIFEST)? else { return Ok(None) };
    let mut items: Vec<Item> = serde_json::from_slice(&json)
        .map_err(|error| format!("manifest.json: {}", shown(error.to_string().as_bytes())))?;
    if items.len() > 1 {
        let names: Vec<String> = items
            .iter()
            .take(MAX_SHOWN)
            .map(|item| item.repo_tags.iter().flatten().next().unwrap_or(&item.config))
            .map(|name| shown(name.as_bytes()))
            .collect();
        let (count, names) = (items.len(), names.join(", "));
        return Err(format!("there are {count} images in it, and one is wanted: {names}").into());
    }
    let Some(Item { config, repo_tags, layers }) = items.pop() else {
        return Err("there is no image in it".into());
    };
    let name = repo_tags.iter().flatten().find_map(|name| suggested(name));
    Ok(Some(Listed { name, config, layers: layers.unwrap_or_default() }))
}

/// The image of the list.
pub(super) fn read(members: &Members, listed: Listed) -> Result<ArchivedImage, Fault> {
    let config = Config::open(members, &listed.config, listed.layers.len())?;
    if named_digest(&listed.config).is_some_and(|digest| digest != config.digest) {
        return Err("it is damaged, its configuration is not what its name says".into());
    }
    let mut layers = Vec::new();
    for (member, diff_id) in listed.layers.into_iter().zip(config.diff_ids) {
        let Some((_, bytes)) = members.open(&member)? else {
            let member = shown(member.as_bytes());
            return Err(format!("it is incomplete, {member} is missing").into());
        };
        // Which of the two digests a layer's name may have depends on who wrote it; that of the tar
        // is checked in any case.
        layers.push(ArchivedLayer { member, bytes, digest: None, diff_id });
    }
    Ok(ArchivedImage {
        name: listed.name,
        config: config.run,
        digest: config.digest,
        origin: None,
        layers,
        members: members.clone(),
    })
}

/// The digest that a configuration's name may be: `<hex>.json`, `sha256:<hex>`, `blobs/sha256/<hex>`.
fn named_digest(name: &str) -> Option<Digest> {
    let file = name.rsplit('/').next()?;
    let hex = file.strip_suffix(".json").unwrap_or(file);
    let hex = hex.strip_prefix("sha256:").unwrap_or(hex);
    Digest::parse(&format!("sha256:{hex}")).ok()
}
