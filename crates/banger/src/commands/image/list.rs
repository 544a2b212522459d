//! `banger image ls`, and images as lines of tables.

use std::collections::BTreeMap;

use banger_api::image::{CatalogImage, Image};
use banger_core::size;
use serde::Serialize;

use super::PATH;
use crate::client::{Client, escape};
use crate::commands::vm_row::age;
use crate::failure::Failure;
use crate::ui::{Row, Ui};

/// A local image, whether its name still means it, and the time at which it is looked at.
#[derive(Debug, Serialize)]
struct ImageRow {
    #[serde(flatten)]
    image: Image,
    /// A newer version has its name; only the digest leads to it.
    superseded: bool,
    #[serde(skip)]
    now_ms: u64,
}

/// Lists local images.
pub async fn run(ui: &Ui) -> Result<u8, Failure> {
    let client = Client::ready(ui).await?;
    let images: Vec<Image> = client.get(PATH).await?;
    // A name means one version; which one, only the daemon can tell.
    let mut meant: BTreeMap<String, Option<String>> = BTreeMap::new();
    for image in &images {
        if !meant.contains_key(&image.name) {
            let found = client.get::<Image>(&format!("{PATH}/{}", escape(&image.name))).await;
            meant.insert(image.name.clone(), found.ok().map(|image| image.digest));
        }
    }
    ui.list(&rows(images, &meant, banger_host::clock::now_ms()))?;
    Ok(0)
}

fn rows(
    images: Vec<Image>,
    meant: &BTreeMap<String, Option<String>>,
    now_ms: u64,
) -> Vec<ImageRow> {
    let row = |image: Image| {
        let superseded =
            meant.get(&image.name).and_then(Option::as_ref).is_none_or(|it| *it != image.digest);
        ImageRow { image, superseded, now_ms }
    };
    images.into_iter().map(row).collect()
}

impl Row for ImageRow {
    const HEADERS: &'static [&'static str] = &["NAME", "DIGEST", "SIZE", "BUILT", "SOURCE"];

    fn name(&self) -> &str {
        // What a script does with a name must not happen to another version.
        if self.superseded { &self.image.digest } else { &self.image.name }
    }

    fn cells(&self) -> Vec<String> {
        let image = &self.image;
        let mark = if self.superseded { " (superseded)" } else { "" };
        vec![
            format!("{}{mark}", image.name),
            short(&image.digest),
            size::format(image.allocated_bytes),
            format!("{} ago", age(image.created_at_ms, self.now_ms)),
            image.source.clone(),
        ]
    }
}

impl Row for CatalogImage {
    const HEADERS: &'static [&'static str] =
        &["NAME", "LOCAL", "SIZE", "KERNEL", "SOURCE", "DESCRIPTION"];

    fn name(&self) -> &str {
        &self.name
    }

    fn cells(&self) -> Vec<String> {
        let mark = if self.user_defined { " (yours)" } else { "" };
        vec![
            self.name.clone(),
            yes_or_no(self.local),
            format!("~{}", size::format(self.size_hint_bytes)),
            self.kernel.clone(),
            self.source.clone(),
            format!("{}{mark}", self.description),
        ]
    }
}

/// The twelve digits by which people tell digests apart.
pub fn short(digest: &str) -> String {
    let digits = digest.rsplit(':').next().unwrap_or(digest);
    digits.get(..12).unwrap_or(digits).to_owned()
}

/// A flag in a table.
pub fn yes_or_no(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::ui::render_table;

    /// An image, as the daemon would show it.
    pub fn image(name: &str, digit: char) -> Image {
        let digest = format!("sha256:{}", String::from(digit).repeat(64));
        serde_json::from_value(serde_json::json!({
            "name": name,
            "digest": digest,
            "disk_sha256": "00",
            "disk_bytes": 512u64 << 20,
            "allocated_bytes": 90u64 << 20,
            "source": "docker.io/library/alpine:3.20",
            "created_at_ms": 1_000,
        }))
        .expect("an image")
    }

    #[test]
    fn versions_that_have_lost_their_name_are_marked() {
        let images = vec![image("alpine", 'b'), image("alpine", 'a'), image("old", 'c')];
        let meant = BTreeMap::from([
            ("alpine".to_owned(), Some(images[0].digest.clone())),
            ("old".to_owned(), None),
        ]);
        let rows = rows(images, &meant, 121_000);
        insta::assert_snapshot!(render_table(&rows), @"
        NAME                 DIGEST        SIZE    BUILT          SOURCE
        alpine               bbbbbbbbbbbb  90 MiB  2 minutes ago  docker.io/library/alpine:3.20
        alpine (superseded)  aaaaaaaaaaaa  90 MiB  2 minutes ago  docker.io/library/alpine:3.20
        old (superseded)     cccccccccccc  90 MiB  2 minutes ago  docker.io/library/alpine:3.20
        ");
        assert_eq!(rows[0].name(), "alpine");
        assert!(rows[1].name().starts_with("sha256:aa"), "{rows:?}");
        assert!(rows[2].name().starts_with("sha256:cc"), "{rows:?}");
    }

    #[test]
    fn the_catalog_says_what_is_here_and_whose_it_is() {
        let entry = |name: &str, local, user_defined| CatalogImage {
            name: name.to_owned(),
            description: "Something".to_owned(),
            source: "docker.io/library/x:1".to_owned(),
            kernel: "debian-cloud".to_owned(),
            init: banger_api::vm::InitMode::Agent,
            size_hint_bytes: 10 << 20,
            local,
            user_defined,
        };
        let rows = [entry("alpine", true, false), entry("mine", false, true)];
        insta::assert_snapshot!(render_table(&rows), @"
        NAME    LOCAL  SIZE     KERNEL        SOURCE                 DESCRIPTION
        alpine  yes    ~10 MiB  debian-cloud  docker.io/library/x:1  Something
        mine    no     ~10 MiB  debian-cloud  docker.io/library/x:1  Something (yours)
        ");
    }
}
